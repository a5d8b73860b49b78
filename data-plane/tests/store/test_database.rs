//! A database of a test's own, on either engine.
//!
//! PostgreSQL needs `TEST_POSTGRES_URL`, a superuser's URL on a running server. Without it that half of the tests is
//! skipped, and says so; with `CI_REQUIRE_POSTGRES=1` it fails instead.

use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use tempfile::TempDir;

/// Which engine a case runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    Sqlite,
    Postgres,
}

pub struct TestDatabase {
    pub on: On,
    pub url: String,
    place: Place,
}

enum Place {
    Folder { _kept: TempDir },
    Server { admin: String, name: String },
}

impl TestDatabase {
    /// `None` if this engine isn't there, which has then been said.
    pub async fn new(on: On) -> Option<Self> {
        match on {
            On::Sqlite => {
                let folder = tempfile::tempdir().unwrap();
                let url = format!("sqlite://{}?mode=rwc", folder.path().join("store.db").display());
                Some(Self { on, url, place: Place::Folder { _kept: folder } })
            }
            On::Postgres => {
                let Ok(admin) = std::env::var("TEST_POSTGRES_URL") else {
                    assert!(
                        std::env::var("CI_REQUIRE_POSTGRES").as_deref() != Ok("1"),
                        "CI_REQUIRE_POSTGRES=1, but TEST_POSTGRES_URL is not set"
                    );
                    eprintln!("SKIPPED on PostgreSQL: TEST_POSTGRES_URL is not set");
                    return None;
                };
                let name = format!("dp_store_{}", uuid::Uuid::new_v4().simple());
                let server = Database::connect(shared::pool::options(&admin)).await.unwrap();
                server.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
                server.close().await.unwrap();
                let mut url: url::Url = admin.parse().unwrap();
                url.set_path(&name);
                Some(Self { on, url: url.into(), place: Place::Server { admin, name } })
            }
        }
    }

    /// A connection beside the store's, to look at the tables or to meddle with them.
    pub async fn outside(&self) -> DatabaseConnection {
        Database::connect(shared::pool::options(&self.url)).await.unwrap()
    }

    /// Runs one statement from outside.
    pub async fn meddle(&self, sql: &str) {
        let outside = self.outside().await;
        outside.execute_unprepared(sql).await.unwrap();
        outside.close().await.unwrap();
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Place::Server { admin, name } = &self.place else { return };
        let (admin, drop) = (admin.clone(), format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        // A runtime of its own, since the test's may be the one that is being left.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                Database::connect(shared::pool::options(&admin))
                    .await
                    .unwrap()
                    .execute_unprepared(&drop)
                    .await
                    .unwrap();
            });
        })
        .join();
        if dropped.is_err() {
            eprintln!("a test database was left behind");
        }
    }
}
