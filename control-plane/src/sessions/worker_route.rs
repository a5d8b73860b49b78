//! Which worker holds a session, remembered in Redis for commands that go there: it spares two reads of the database, or one
//! while the session's row is locked.
//!
//! A route is a hint. It is dropped whenever the placement or the wish changes, and lasts for [`KEEP`]; should Redis have missed that,
//! the worker refuses, since commands carry the generation of the route: then the database is asked, once
//! ([`linking`](super::linking)). Sending takes a route only if it is the one of the locked row. A worker that comes back at another address
//! takes its sessions under new generations.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::{
    ids::{SessionId, TenantId, WorkerId},
    wire::session::Network,
};

use super::entity::{DesiredColumn, Model};
use crate::{
    auth::TenantScope,
    redis::sealed::{self, Slot},
    state::App,
    workers::{client::Peer, entity as worker},
};

/// How long a route is kept.
const KEEP: Duration = Duration::from_secs(60);

/// Where a session that is to run is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerRoute {
    tenant_id: TenantId,
    network: Network,
    worker_id: WorkerId,
    endpoint: String,
    /// Under which placement.
    pub generation: i64,
}

impl WorkerRoute {
    /// The route of a session that is placed and to run.
    #[must_use]
    pub fn of(row: &Model, holder: &worker::Model) -> Option<Self> {
        let placed = row.worker_id.as_ref() == Some(&holder.id) && row.desired == DesiredColumn::Running;
        placed.then(|| Self {
            tenant_id: row.tenant_id.clone(),
            network: row.network.into(),
            worker_id: holder.id.clone(),
            endpoint: holder.endpoint.clone(),
            generation: row.generation,
        })
    }

    /// Whom to call.
    #[must_use]
    pub fn peer(&self) -> Peer {
        Peer { id: self.worker_id.clone(), endpoint: self.endpoint.clone() }
    }

    /// Whether it is the placement that the row tells of.
    #[must_use]
    pub fn is_of(&self, row: &Model) -> bool {
        row.worker_id.as_ref() == Some(&self.worker_id) && row.generation == self.generation
    }
}

/// The route as it is remembered.
pub async fn remembered(app: &App, session: &SessionId) -> Option<WorkerRoute> {
    sealed::get(app, Slot::Route, session).await
}

/// The route as it is remembered, if the session is the caller's.
pub(super) async fn remembered_of(app: &App, scope: &TenantScope, session: &SessionId) -> Option<WorkerRoute> {
    let route = remembered(app, session).await;
    route.filter(|route| route.tenant_id == *scope.id() && scope.reaches(session, route.network))
}

/// Remembers where a session is, as the database says.
pub async fn remember(app: &App, session: &SessionId, route: &WorkerRoute) {
    sealed::put(app, Slot::Route, session, route, KEEP).await;
}
