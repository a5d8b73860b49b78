//! Rings between replicas, by Redis, or else by PostgreSQL's `NOTIFY`. A hint like every ring: when the listening connection is away, jobs are
//! found by polling. SQLite has one process, and its [`Bell`](super::Bell) is enough.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, sqlx::postgres::PgListener};

use super::JobKind;
use crate::{
    db::Db,
    error::database_error_kind,
    redis::{Redis, subscriber},
    state::App,
};

const CHANNEL: &str = "switchboard_jobs";
/// Rings of one kind within this time are one notification. PostgreSQL lets one transaction with notifications commit at a time.
const TOGETHER: Duration = Duration::from_millis(50);
/// How long to wait before listening again after the connection was lost.
const AGAIN: Duration = Duration::from_secs(2);

/// Tells other replicas of rings here, until the app stops.
pub(super) async fn tell(app: App) {
    if app.db.engine() != DbBackend::Postgres {
        return;
    }
    loop {
        let kinds = tokio::select! {
            () = app.stop.cancelled() => return,
            kinds = app.bell.rung_here() => kinds,
        };
        for kind in kinds {
            if let Err(error) = ring(&app.db, app.redis.as_deref(), kind).await {
                tracing::debug!(kind = database_error_kind(&error), "other replicas were not rung; they poll");
            }
        }
        tokio::time::sleep(TOGETHER).await;
    }
}

/// Tells every replica that listens that jobs of a kind are due.
///
/// # Errors
/// As the driver.
pub async fn ring(db: &Db, redis: Option<&Redis>, kind: JobKind) -> Result<(), DbErr> {
    if let Some(redis) = redis
        && redis.publish(subscriber::JOBS, kind.as_str()).await.is_ok()
    {
        return Ok(());
    }
    if db.engine() != DbBackend::Postgres {
        return Ok(());
    }
    let payload = format!("{} {}", std::process::id(), kind.as_str());
    let values = [CHANNEL.into(), payload.into()];
    let notify = Statement::from_sql_and_values(DbBackend::Postgres, "SELECT pg_notify($1, $2)", values);
    db.autocommit().query_one_raw(notify).await.map(drop)
}

/// Rings here when another replica says so, until the app stops.
pub(super) async fn listen(app: App) {
    if app.db.engine() != DbBackend::Postgres {
        return;
    }
    loop {
        let heard = tokio::select! {
            () = app.stop.cancelled() => return,
            heard = hear(&app) => heard,
        };
        if heard.is_err() {
            // The driver's words can hold the address; that it happened is enough.
            tracing::warn!("the doorbell between replicas is away: jobs are found by polling");
        }
        // What was rung meanwhile was not heard.
        for kind in JobKind::ALL {
            app.bell.ring_inside(kind);
        }
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn hear(app: &App) -> Result<(), sea_orm::sqlx::Error> {
    let mut listener = PgListener::connect_with(app.db.read().get_postgres_connection_pool()).await?;
    listener.listen(CHANNEL).await?;
    // `None`: the connection was lost, and with it perhaps a ring.
    while let Some(notification) = listener.try_recv().await? {
        let kind = notification.payload().split_once(' ').and_then(|(_, kind)| JobKind::named(kind));
        if let Some(kind) = kind {
            app.bell.ring_inside(kind);
        }
    }
    Ok(())
}
