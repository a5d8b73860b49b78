//! How many replicas there are: each says that it runs, by a row of the database. SQLite has one process.
//!
//! With `REDIS_URL` each also says there whether it lacks Redis, and looks every second whether others do: Redis may be away for
//! some of them only. While one counts alone, those that count together leave it its share; while one can't be heard, none
//! remembers keys, since it couldn't say that one was revoked.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement, Value};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use crate::{
    db::{millis, now_of},
    error::database_error_kind,
    redis::subscriber,
    state::App,
};

const BEAT: Duration = Duration::from_secs(5);
/// How often to look whether others have lost Redis.
const LOOK: Duration = Duration::from_secs(1);
/// A replica that hasn't said so for this long doesn't run.
const GONE: Duration = Duration::from_secs(20);
/// Rows this old are deleted.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// Says that this replica runs. The first time before it serves, so that it knows how many it is one of; the others hear of it by
/// Redis, or else count it at their next beat.
#[derive(Debug)]
pub struct Heartbeat {
    id: String,
    /// What was said last, and when.
    said: Option<(Lacks, Instant)>,
}

/// What a replica lacks of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lacks {
    /// It counts requests without it.
    counts_alone: bool,
    /// It can't tell others what to forget.
    unheard: bool,
}

impl Lacks {
    fn of(app: &App) -> Self {
        let counts_alone = app.redis.as_ref().is_none_or(|redis| !redis.is_up());
        Self { counts_alone, unheard: counts_alone || !app.key_cache.is_connected() }
    }
}

impl Heartbeat {
    /// Begins.
    ///
    /// # Errors
    /// As the driver.
    pub async fn begin(app: &App) -> Result<Self, DbErr> {
        let mut heartbeat = Self { id: Uuid::now_v7().simple().to_string(), said: None };
        heartbeat.beat(app).await?;
        tell(app).await;
        Ok(heartbeat)
    }

    /// Goes on until the process stops, and then says so.
    pub async fn keep(mut self, app: App) {
        let period = if app.redis.is_some() { LOOK } else { BEAT };
        let mut every = tokio::time::interval_at(Instant::now() + period, period);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = app.stop.cancelled() => break,
                () = app.limits.count_again.notified() => {}
                () = redis_changed(&app) => {}
                _ = every.tick() => {}
            }
            if let Err(error) = self.beat(&app).await {
                tracing::warn!(kind = database_error_kind(&error), "replicas were not counted; the last number holds");
            }
        }
        let gone = run(&app, "DELETE FROM replicas WHERE id = $1", [self.id.into()]).await;
        if let Err(error) = gone {
            tracing::debug!(kind = database_error_kind(&error), "a replica stops without having said so");
        }
        tell(&app).await;
    }

    async fn beat(&mut self, app: &App) -> Result<(), DbErr> {
        if app.db.engine() != DbBackend::Postgres {
            app.limits.set_replicas(1, 0);
            return Ok(());
        }
        let lacks = Lacks::of(app);
        if self.said.is_none_or(|(said, at)| said != lacks || at.elapsed() >= BEAT) {
            self.say(app, lacks).await?;
            self.said = Some((lacks, Instant::now()));
        }
        self.count(app).await
    }

    async fn say(&self, app: &App, lacks: Lacks) -> Result<(), DbErr> {
        // By the database's clock: theirs may differ, and one that isn't counted is one too few.
        let now = now_of(app.db.engine());
        let say = format!(
            "INSERT INTO replicas (id, beat_at, counts_alone, unheard) VALUES ($1, {now}, $2, $3) ON CONFLICT (id) DO UPDATE \
             SET beat_at = excluded.beat_at, counts_alone = excluded.counts_alone, unheard = excluded.unheard"
        );
        run(app, &say, [self.id.clone().into(), lacks.counts_alone.into(), lacks.unheard.into()]).await?;
        run(app, &format!("DELETE FROM replicas WHERE beat_at < {now} - $1"), [millis(FORGOTTEN).into()]).await
    }

    async fn count(&self, app: &App) -> Result<(), DbErr> {
        let now = now_of(app.db.engine());
        let count = Statement::from_sql_and_values(
            app.db.engine(),
            format!(
                "SELECT COUNT(*) AS count, COUNT(CASE WHEN counts_alone AND id <> $2 THEN 1 END) AS apart, \
                 COUNT(CASE WHEN unheard AND id <> $2 THEN 1 END) AS unheard FROM replicas WHERE beat_at >= {now} - $1"
            ),
            [millis(GONE).into(), self.id.clone().into()],
        );
        if let Some(row) = app.db.read().query_one_raw(count).await? {
            let number = |column| row.try_get::<i64>("", column).map(|n| u32::try_from(n).unwrap_or(1));
            app.limits.set_replicas(number("count")?, number("apart")?);
            app.key_cache.others_speak(number("unheard")? == 0);
        }
        Ok(())
    }
}

/// Redis has gone or come back, for this replica.
async fn redis_changed(app: &App) {
    match &app.redis {
        Some(redis) => redis.changed.notified().await,
        None => std::future::pending().await,
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
