//! How many replicas there are: each says that it runs, by a row of the database. SQLite has one process.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, Value};
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use crate::{
    db::{millis, now_of},
    error::database_error_kind,
    redis::subscriber,
    state::App,
};

const BEAT: Duration = Duration::from_secs(5);
/// A replica that hasn't said so for this long doesn't run.
const GONE: Duration = Duration::from_secs(20);
/// Rows this old are deleted.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// Says that this replica runs. The first time before it serves, so that it knows how many it is one of; the others hear of it by
/// Redis, or else count it at their next beat.
#[derive(Debug)]
pub struct Heartbeat(String);

impl Heartbeat {
    /// Begins.
    ///
    /// # Errors
    /// As the driver.
    pub async fn begin(app: &App) -> Result<Self, DbErr> {
        let heartbeat = Self(Uuid::now_v7().simple().to_string());
        heartbeat.beat(app).await?;
        tell(app).await;
        Ok(heartbeat)
    }

    /// Goes on until the process stops, and then says so.
    pub async fn keep(self, app: App) {
        let mut every = tokio::time::interval_at(tokio::time::Instant::now() + BEAT, BEAT);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = app.stop.cancelled() => break,
                () = app.limits.count_again.notified() => {}
                _ = every.tick() => {}
            }
            if let Err(error) = self.beat(&app).await {
                tracing::warn!(kind = database_error_kind(&error), "replicas were not counted; the last number holds");
            }
        }
        let gone = run(&app, "DELETE FROM replicas WHERE id = $1", [self.0.into()]).await;
        if let Err(error) = gone {
            tracing::debug!(kind = database_error_kind(&error), "a replica stops without having said so");
        }
        tell(&app).await;
    }

    async fn beat(&self, app: &App) -> Result<(), DbErr> {
        if app.db.engine() != DbBackend::Postgres {
            app.limits.set_replicas(1);
            return Ok(());
        }
        // By the database's clock: theirs may differ, and one that isn't counted is one too few.
        let now = now_of(app.db.engine());
        let say = format!(
            "INSERT INTO replicas (id, beat_at) VALUES ($1, {now}) ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at"
        );
        run(app, &say, [self.0.clone().into()]).await?;
        run(app, &format!("DELETE FROM replicas WHERE beat_at < {now} - $1"), [millis(FORGOTTEN).into()]).await?;
        let count = Statement::from_sql_and_values(
            app.db.engine(),
            format!("SELECT COUNT(*) AS count FROM replicas WHERE beat_at >= {now} - $1"),
            [millis(GONE).into()],
        );
        if let Some(row) = app.db.read().query_one_raw(count).await? {
            app.limits.set_replicas(u32::try_from(row.try_get::<i64>("", "count")?).unwrap_or(1));
        }
        Ok(())
    }
}

/// Has the others count again.
async fn tell(app: &App) {
    if let Some(redis) = &app.redis
        && redis.publish(subscriber::REPLICAS, "").await.is_err()
    {
        tracing::debug!("other replicas count at their next heartbeat");
    }
}

async fn run(app: &App, sql: &str, values: impl IntoIterator<Item = Value>) -> Result<(), DbErr> {
    let statement = Statement::from_sql_and_values(app.db.engine(), sql, values);
    app.db.autocommit().execute_raw(statement).await.map(drop)
}
