//! A store, a worker and a session in one step.

use std::{future::Future, sync::Arc, time::Duration};

use data_plane::store::{Claim, Fence, FencedBackend, Lease, Store, StoreOptions};
use sea_orm::{ConnectionTrait, QueryResult, Statement};
use shared::{
    ids::{Incarnation, SessionId, WorkerId},
    seal::DataKey,
};

pub use crate::test_database::{On, TestDatabase};

/// The longest that a test waits for something to come true.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn worker(name: &str) -> WorkerId {
    name.parse().unwrap()
}

pub fn options() -> StoreOptions {
    StoreOptions { max_connections: 4, ..StoreOptions::default() }
}

/// A run of a worker on a store.
pub struct Run {
    pub store: Store,
    pub lease: Lease,
}

impl Run {
    pub async fn start(database: &TestDatabase, name: &str) -> Self {
        Self::start_with(database, name, options()).await
    }

    pub async fn start_with(database: &TestDatabase, name: &str, options: StoreOptions) -> Self {
        let store = Store::open_with(&database.url, options).await.unwrap();
        let lease = Lease::acquire(&store, worker(name), Incarnation::new()).await.unwrap();
        Self { store, lease }
    }

    pub async fn claim(&self, session: &SessionId, generation: i64) -> Claim {
        self.store.claim(&self.lease, session, generation, 1).await.unwrap()
    }

    pub async fn hold(&self, session: &SessionId, generation: i64) -> Fence {
        match self.claim(session, generation).await {
            Claim::Held(fence) => fence,
            Claim::Busy { .. } => panic!("busy"),
            Claim::Stale { current_generation } => panic!("stale: {current_generation}"),
        }
    }

    /// Claims and opens a session.
    pub async fn open(&self, session: &SessionId, generation: i64, key: &DataKey) -> Arc<FencedBackend> {
        self.store.backend(self.hold(session, generation).await, key.clone(), self.lease.clone())
    }
}

/// Reads from outside.
pub async fn look(database: &TestDatabase, sql: &str) -> Vec<QueryResult> {
    let outside = database.outside().await;
    let statement = Statement::from_string(outside.get_database_backend(), sql);
    let rows = outside.query_all_raw(statement).await.unwrap();
    outside.close().await.unwrap();
    rows
}

/// Every byte of SQLite's files.
pub fn files(database: &TestDatabase) -> Vec<u8> {
    let file = database.url.strip_prefix("sqlite://").and_then(|url| url.strip_suffix("?mode=rwc")).unwrap();
    let folder = std::path::Path::new(file).parent().unwrap();
    std::fs::read_dir(folder).unwrap().flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

/// Asks until it is so.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("never came true: {what}"))
}
