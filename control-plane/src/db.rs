//! The control plane's database: SQLite in one file, or PostgreSQL. One URL chooses.
//!
//! SQLite runs with WAL and `synchronous=FULL` and has one writer: [`Db::write`] begins with `BEGIN IMMEDIATE` on a pool of
//! one connection, so a transaction never fails half-way for a lock, and reads go to a pool of their own. PostgreSQL serves both from
//! one pool with `synchronous_commit=on`. Statements, waits for locks and idle transactions end on the server after a while,
//! so that a process which freezes in the middle of a transaction doesn't hold up the others.

use std::time::Duration;

use migration::control_plane::Migrator;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait,
};
use sea_orm_migration::{IntoSchemaManagerConnection, MigratorTrait, SchemaManager};
use serde::{Serialize, de::DeserializeOwned};

/// How long PostgreSQL lets a statement last: less than a request may take.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(20);
/// How long PostgreSQL lets a statement wait for a lock, or a transaction do nothing.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);

/// The tables aren't those of this version.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It holds a migration that this version doesn't know.
    #[error("a newer version of Switchboard made this database ({0}): run that version, or one after it")]
    Newer(String),
    /// Migrations are missing.
    #[error("the database is empty or of an older version of Switchboard: run `control-plane migrate` first")]
    Older,
    /// The database said no.
    #[error("migrating failed ({})", crate::error::database_error_kind(.0))]
    Database(#[from] DbErr),
}

/// Connections to the control plane's database.
#[derive(Debug, Clone)]
pub struct Db {
    write: DatabaseConnection,
    read: DatabaseConnection,
}

impl Db {
    /// Connects to `sqlite://…` or `postgres://…`.
    ///
    /// # Errors
    /// As the driver; the URL is never part of the message.
    pub async fn connect(url: &str, pool_size: u32) -> Result<Self, DbErr> {
        if url.starts_with("sqlite:") {
            let write = Database::connect(options(url, 1)).await?;
            let read = Database::connect(options(url, pool_size)).await?;
            Ok(Self { write, read })
        } else {
            let pool = Database::connect(options(url, pool_size)).await?;
            Ok(Self { write: pool.clone(), read: pool })
        }
    }

    /// Applies the migrations that are missing, all or none. Of programs that start at once one migrates; the others wait for it and
    /// then find nothing to do.
    ///
    /// # Errors
    /// [`SchemaError::Newer`] if there are some that this version doesn't know; else as the driver.
    pub async fn migrate(&self) -> Result<(), SchemaError> {
        let tx = self.write().await?;
        if self.engine() == DbBackend::Postgres {
            for statement in [
                "SET LOCAL statement_timeout = 0",
                "SET LOCAL lock_timeout = 0",
                "SELECT pg_advisory_xact_lock(7208146351)",
            ] {
                tx.execute_unprepared(statement).await?;
            }
        }
        schema_of(&tx).await?;
        Migrator::up(&tx, None).await?;
        Ok(tx.commit().await?)
    }

    /// Makes sure that the tables are those of this version.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub async fn is_migrated(&self) -> Result<(), SchemaError> {
        if schema_of(&self.read).await? < Migrator::migrations().len() { Err(SchemaError::Older) } else { Ok(()) }
    }

    /// Ends all connections, once nothing uses them any more.
    pub async fn close(self) {
        // On PostgreSQL both are one pool, and closing it again does nothing.
        for pool in [self.write, self.read] {
            if let Err(error) = pool.close().await {
                tracing::warn!(kind = crate::error::database_error_kind(&error), "a connection pool was not closed");
            }
        }
    }

    /// Which engine it is.
    #[must_use]
    pub fn engine(&self) -> DbBackend {
        self.write.get_database_backend()
    }

    /// For reads that need no transaction.
    #[must_use]
    pub const fn read(&self) -> &DatabaseConnection {
        &self.read
    }

    /// For single-statement writes.
    #[must_use]
    pub const fn autocommit(&self) -> &DatabaseConnection {
        &self.write
    }

    /// A transaction that will write.
    ///
    /// # Errors
    /// As the driver; on SQLite also after waiting 10 s for the writer.
    pub async fn write(&self) -> Result<DatabaseTransaction, DbErr> {
        self.write
            .begin_with_options(TransactionOptions {
                sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                ..TransactionOptions::default()
            })
            .await
    }
}

/// How many of the migrations that this version knows have been applied.
async fn schema_of<'c, C>(connection: &'c C) -> Result<usize, SchemaError>
where
    C: ConnectionTrait,
    &'c C: IntoSchemaManagerConnection<'c>,
{
    let table = Migrator::migration_table_name().to_string();
    if !SchemaManager::new(connection).has_table(&table).await? {
        return Ok(0);
    }
    let known: Vec<String> = Migrator::migrations().iter().map(|migration| migration.name().to_owned()).collect();
    let applied = Statement::from_string(
        connection.get_database_backend(),
        format!("SELECT version FROM {table} ORDER BY version"),
    );
    let mut count = 0;
    for row in connection.query_all_raw(applied).await? {
        let version: String = row.try_get("", "version")?;
        if !known.contains(&version) {
            return Err(SchemaError::Newer(version));
        }
        count += 1;
    }
    Ok(count)
}

fn options(url: &str, connections: u32) -> ConnectOptions {
    let mut options = shared::pool::options(url);
    options
        .max_connections(connections)
        .min_connections(1)
        .connect_timeout(Duration::from_secs(10))
        .acquire_timeout(Duration::from_secs(10))
        .sqlx_logging(false)
        .test_before_acquire(true)
        .map_sqlx_postgres_opts(|postgres| {
            let (statement, lock) = (in_millis(STATEMENT_DEADLINE), in_millis(LOCK_DEADLINE));
            postgres.options([
                ("statement_timeout", statement.as_str()),
                ("lock_timeout", lock.as_str()),
                ("idle_in_transaction_session_timeout", lock.as_str()),
                ("synchronous_commit", "on"),
            ])
        })
        .map_sqlx_sqlite_opts(|sqlite| {
            sqlite
                .journal_mode(sea_orm::sqlx::sqlite::SqliteJournalMode::Wal)
                .synchronous(sea_orm::sqlx::sqlite::SqliteSynchronous::Full)
                .busy_timeout(Duration::from_secs(10))
                .foreign_keys(true)
                .create_if_missing(true)
        });
    options
}

/// The database's own clock in milliseconds, as an expression.
pub(crate) const fn now_of(engine: DbBackend) -> &'static str {
    match engine {
        DbBackend::Postgres => "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::BIGINT",
        _ => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    }
}

/// A duration as such a clock counts.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn in_millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// A value as JSON in a column of text, which both engines store and read alike. For
/// `#[sea_orm(value_type = "String", from_str = "crate::db::from_json", to_str = "crate::db::to_json")]`.
pub(crate) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value)
        .unwrap_or_else(|_| unreachable!("column types have string keys and no refusing fields"))
}

/// See [`to_json`].
pub(crate) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(text)
}
