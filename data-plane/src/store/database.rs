//! The connections, and the few places where the two engines differ.
//!
//! SQLite has one writer connection and a pool of read-only ones: a transaction begins `IMMEDIATE`, so it holds the
//! database's only write lock from its first statement, and other processes wait for it in SQLite's busy handler.
//! PostgreSQL has one pool; what must not run side by side locks rows.
//!
//! No call may wait for ever: statements, locks and idle transactions end on the server after [`STATEMENT_DEADLINE`],
//! so that a worker which freezes in the middle of a transaction can't keep another from claiming its sessions, and the
//! client gives up after [`CALL_DEADLINE`].

use std::{future::Future, time::Duration};

use chrono::{DateTime, Utc};
use migration::data_plane::Migrator;
use sea_orm::{
    ConnectOptions, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult,
    RuntimeErr, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait, Value,
    sqlx::{
        self,
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
    },
};
use sea_orm_migration::MigratorTrait;

use super::{
    StoreOptions,
    error::{FailureClass, Result, StoreError},
};

/// How long the server lets a statement, a wait for a lock or an idle transaction last.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(8);
/// How long a caller waits for one operation as a whole.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait for a free connection, or for another SQLite writer.
const WAIT_FOR_CONNECTION: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is tried before use: a restarted server must not fail the first write.
const PING_AFTER_IDLE: Duration = Duration::from_secs(2);
/// Any number, the same in every process: who migrates holds it.
const MIGRATION_LOCK: i64 = 0x5357_4244_5053;

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A file.
    Sqlite,
    /// A server.
    Postgres,
}

impl Engine {
    /// SQL for the store's time, in milliseconds since 1970: the moment of the statement, not of its transaction.
    pub const fn now_ms(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)",
            Self::Postgres => "CAST(extract(epoch from clock_timestamp()) * 1000 AS BIGINT)",
        }
    }

    /// Appended to a SELECT: the row may not change until the transaction ends. SQLite's writer is alone anyway.
    pub const fn for_share(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => " FOR SHARE",
        }
    }

    /// Appended to a SELECT: nobody else may lock the row until the transaction ends.
    pub const fn for_update(self) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => " FOR UPDATE",
        }
    }

    const fn backend(self) -> DbBackend {
        match self {
            Self::Sqlite => DbBackend::Sqlite,
            Self::Postgres => DbBackend::Postgres,
        }
    }

    /// A statement with `$1`, `$2`, … for its values: both drivers understand them.
    pub fn statement(self, sql: impl Into<String>, values: impl IntoIterator<Item = Value>) -> Statement {
        Statement::from_sql_and_values(self.backend(), sql, values)
    }
}

/// The connections of one store handle.
#[derive(Clone)]
pub struct Database {
    pub engine: Engine,
    writer: DatabaseConnection,
    reader: DatabaseConnection,
}

impl Database {
    /// Connects and migrates.
    pub async fn open(url: &str, options: &StoreOptions) -> Result<Self> {
        let database = if url.starts_with("sqlite:") {
            Self::connect_sqlite(url, options).await?
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            let all = connect("connect", postgres(url, options)).await?;
            Self { engine: Engine::Postgres, writer: all.clone(), reader: all }
        } else {
            return Err(StoreError::UnknownEngine);
        };
        database.migrate().await?;
        Ok(database)
    }

    async fn connect_sqlite(url: &str, options: &StoreOptions) -> Result<Self> {
        let writer = first_sqlite_connection(url).await?;
        let reader = connect("connect for reading", sqlite(url, options.max_connections.max(1), true)).await?;
        Ok(Self { engine: Engine::Sqlite, writer, reader })
    }

    /// Under a lock, since the workers of a store may start at the same moment.
    async fn migrate(&self) -> Result<()> {
        let tx = self.begin().await?;
        if self.engine == Engine::Postgres {
            // The deadlines of other statements are too short for a large table, and for the wait until others have migrated.
            tx.execute_unprepared(
                "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; \
                 SET LOCAL idle_in_transaction_session_timeout = 0",
            )
            .await
            .map_err(failed("prepare for migration"))?;
            tx.execute_raw(self.engine.statement("SELECT pg_advisory_xact_lock($1)", [MIGRATION_LOCK.into()]))
                .await
                .map_err(failed("lock for migration"))?;
        }
        Migrator::up(&tx, None).await.map_err(failed("migrate"))?;
        tx.commit().await.map_err(failed("migrate"))
    }

    /// Begins a transaction that may write.
    pub async fn begin(&self) -> Result<DatabaseTransaction> {
        let sqlite_transaction_mode = (self.engine == Engine::Sqlite).then_some(SqliteTransactionMode::Immediate);
        self.writer
            .begin_with_options(TransactionOptions { sqlite_transaction_mode, ..TransactionOptions::default() })
            .await
            .map_err(failed("begin"))
    }

    /// Runs one writing statement by itself. Answers how many rows it touched.
    pub async fn execute(
        &self,
        operation: &'static str,
        sql: impl Into<String>,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<u64> {
        let statement = self.engine.statement(sql, values);
        within(operation, async {
            Ok(self.writer.execute_raw(statement).await.map_err(failed(operation))?.rows_affected())
        })
        .await
    }

    /// Reads what is committed.
    pub async fn all(
        &self,
        operation: &'static str,
        sql: impl Into<String>,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<QueryResult>> {
        let statement = self.engine.statement(sql, values);
        within(operation, async { self.reader.query_all_raw(statement).await.map_err(failed(operation)) }).await
    }

    /// Reads one row of what is committed.
    pub async fn one(
        &self,
        operation: &'static str,
        sql: impl Into<String>,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Option<QueryResult>> {
        let statement = self.engine.statement(sql, values);
        within(operation, async { self.reader.query_one_raw(statement).await.map_err(failed(operation)) }).await
    }

    /// Closes every connection.
    pub async fn close(&self) -> Result<()> {
        self.reader.close_by_ref().await.map_err(failed("close"))?;
        self.writer.close_by_ref().await.map_err(failed("close"))
    }
}

/// Turning a new file's log into WAL takes a lock that SQLite's busy handler doesn't wait for. Workers that open a new
/// store at the same moment therefore meet `SQLITE_BUSY` here once, and try again.
async fn first_sqlite_connection(url: &str) -> Result<DatabaseConnection> {
    const TRIES: u32 = 50;
    const PAUSE: Duration = Duration::from_millis(40);
    let mut tries = 1;
    loop {
        match connect("connect", sqlite(url, 1, false)).await {
            Err(StoreError::Database { class: FailureClass::Busy, .. }) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            connected => return connected,
        }
    }
}

async fn connect(operation: &'static str, options: ConnectOptions) -> Result<DatabaseConnection> {
    within(operation, async { sea_orm::Database::connect(options).await.map_err(failed(operation)) }).await
}

fn common(url: &str, connections: u32) -> ConnectOptions {
    let mut options = shared::pool::options(url);
    options
        .max_connections(connections)
        .min_connections(1)
        .connect_timeout(WAIT_FOR_CONNECTION)
        .acquire_timeout(WAIT_FOR_CONNECTION)
        .test_before_acquire_if_idle_for(PING_AFTER_IDLE)
        .sqlx_logging(false)
        .record_stmt_in_spans(false);
    options
}

fn postgres(url: &str, options: &StoreOptions) -> ConnectOptions {
    let mut connect = common(url, options.max_connections.max(2));
    connect.map_sqlx_postgres_opts(|postgres| {
        let deadline = format!("{}ms", STATEMENT_DEADLINE.as_millis());
        postgres.options([
            ("statement_timeout", deadline.as_str()),
            ("lock_timeout", deadline.as_str()),
            ("idle_in_transaction_session_timeout", deadline.as_str()),
            ("synchronous_commit", "on"),
        ])
    });
    connect
}

fn sqlite(url: &str, connections: u32, only_read: bool) -> ConnectOptions {
    let mut connect = common(url, connections);
    connect.map_sqlx_sqlite_opts(move |sqlite: SqliteConnectOptions| {
        let sqlite = sqlite
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(WAIT_FOR_CONNECTION);
        if only_read { sqlite.pragma("query_only", "ON") } else { sqlite }
    });
    connect
}

/// Gives an operation its deadline.
pub async fn within<T>(operation: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(CALL_DEADLINE, work).await.unwrap_or(Err(StoreError::Timeout { operation }))
}

/// Takes from a driver's error what may be shown: its class and code, never its text, which may quote a value.
pub fn failed(operation: &'static str) -> impl FnOnce(DbErr) -> StoreError {
    move |error| {
        let (class, code) = classify(&error);
        StoreError::Database { operation, class, code }
    }
}

fn classify(error: &DbErr) -> (FailureClass, Box<str>) {
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error))
        | DbErr::Conn(RuntimeErr::SqlxError(error)) => match &**error {
            sqlx::Error::Database(error) => {
                let code: Box<str> = error.code().unwrap_or_default().into();
                let class = if error.is_unique_violation() {
                    FailureClass::Conflict
                } else {
                    match &*code {
                        // SQLITE_BUSY and SQLITE_LOCKED with their extended codes; lock_timeout and query_canceled.
                        "5" | "6" | "261" | "262" | "517" | "518" | "55P03" | "57014" => FailureClass::Busy,
                        // The server is going away, or isn't ready yet.
                        "57P01" | "57P02" | "57P03" | "25P03" => FailureClass::Connection,
                        _ => FailureClass::Statement,
                    }
                };
                (class, code)
            }
            _ => (FailureClass::Connection, "".into()),
        },
        DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => (FailureClass::Connection, "".into()),
        _ => (FailureClass::Statement, "".into()),
    }
}

/// Reads a column.
pub fn column<T: sea_orm::TryGetable>(row: &QueryResult, name: &str) -> Result<T> {
    row.try_get("", name).map_err(failed("read a column"))
}

/// A column that holds one of our ids.
pub fn id_column<T: std::str::FromStr>(row: &QueryResult, name: &str) -> Result<T> {
    column::<String>(row, name)?.parse().map_err(|_| StoreError::Encoding("id"))
}

/// Milliseconds as a moment.
pub fn moment(ms: i64) -> Result<DateTime<Utc>> {
    DateTime::from_timestamp_millis(ms).ok_or(StoreError::Encoding("time"))
}

/// `$from, $from+1, …`: `count` of them.
pub fn placeholders(from: usize, count: usize) -> String {
    use std::fmt::Write;
    (from..from + count).fold(String::with_capacity(count * 5), |mut text, n| {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a String can't fail.
        let _ = write!(text, "{separator}${n}");
        text
    })
}
