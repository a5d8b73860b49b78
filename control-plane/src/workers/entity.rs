//! The table `workers`.

use sea_orm::entity::prelude::*;
use serde::Serialize;
use shared::{
    ids::{Incarnation, StoreId, WorkerId},
    time::Timestamp,
    wire::session::Network,
};
use utoipa::ToSchema;

use super::{
    client::Peer,
    policy::{Availability, availability},
};

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "workers")]
pub struct Model {
    /// The name its operator gave it.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: WorkerId,
    /// The store that it works on.
    pub store_id: StoreId,
    /// Its public key: a [`shared::identity::PublicKey`] as JSON.
    pub public_key: String,
    /// The run that may speak for it.
    pub incarnation: Incarnation,
    /// A [`shared::wire::session::Network`] by its name.
    pub network: String,
    /// Where its API is reached.
    pub endpoint: String,
    /// Availability zone.
    pub zone: Option<String>,
    /// Pool.
    pub pool: Option<String>,
    /// The most sessions it takes.
    pub capacity: i64,
    /// Sessions placed on it.
    pub assigned: i64,
    /// The wire protocol that it speaks.
    pub protocol_version: i64,
    /// A [`Schedulability`] by its name.
    pub schedulability: Schedulability,
    /// When this run joined.
    pub joined_at: Timestamp,
    /// When it was last heard.
    pub last_beat_at: Timestamp,
    /// Beats since the last silence, see [`super::policy`].
    pub good_beats: i64,
    /// When it last renewed its lease in the store.
    pub lease_renewed_at: Option<Timestamp>,
    /// Sessions that it says it holds.
    pub sessions: i64,
    /// Of them, connected.
    pub connected: i64,
    /// Rows that wait in its store's outbox.
    pub outbox_rows: i64,
}

/// Whether an operator lets a worker take sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EnumIter, DeriveActiveEnum, Serialize, ToSchema)]
#[sea_orm(rs_type = "String", db_type = "Text")]
#[serde(rename_all = "snake_case")]
pub enum Schedulability {
    /// It may.
    #[sea_orm(string_value = "schedulable")]
    Schedulable,
    /// It keeps what it has.
    #[sea_orm(string_value = "cordoned")]
    Cordoned,
    /// It gives what it has to others.
    #[sea_orm(string_value = "draining")]
    Draining,
}

impl Schedulability {
    /// The name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Schedulable => "schedulable",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        }
    }
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// The network that it speaks, unless this version doesn't know it.
    #[must_use]
    pub fn network(&self) -> Option<Network> {
        [Network::Whatsapp, Network::Sandbox].into_iter().find(|network| network.as_str() == self.network)
    }

    /// How its API is called.
    #[must_use]
    pub fn peer(&self) -> Peer {
        Peer { id: self.id.clone(), endpoint: self.endpoint.clone() }
    }

    /// See [`availability`].
    #[must_use]
    pub fn availability(&self, now: Timestamp) -> Availability {
        availability(self.last_beat_at, self.good_beats, now)
    }
}
