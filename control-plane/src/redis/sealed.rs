//! Small values about a session, kept for a while: sealed with the master key, and bound to the session and to what they are. Whoever
//! reads or writes in Redis learns nothing from them, and can't have us believe anything.

use std::time::Duration;

use redis::AsyncCommands;
use serde::{Serialize, de::DeserializeOwned};
use shared::{ids::SessionId, seal::Place};

use crate::state::App;

/// A kind of value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Which worker holds it.
    Route,
    /// Its QR code.
    Qr,
}

impl Slot {
    const ALL: [Self; 2] = [Self::Route, Self::Qr];

    const fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Qr => "qr",
        }
    }

    fn place(self, session: &SessionId) -> Place<'_> {
        Place { owner: session.as_str(), table: "redis", row: self.name() }
    }

    fn key(self, app: &App, session: &SessionId) -> Option<String> {
        app.redis.as_ref().map(|redis| redis.name(&format!("{}:{session}", self.name())))
    }
}

/// What was kept, if Redis is there and has it.
pub async fn get<T: DeserializeOwned>(app: &App, slot: Slot, session: &SessionId) -> Option<T> {
    let (redis, key) = (app.redis.as_ref()?, slot.key(app, session)?);
    let found = redis
        .call("get", async move |mut connection| connection.get::<_, Option<Vec<u8>>>(key).await)
        .await
        .ok()
        .flatten()
        .and_then(|sealed| app.master_key.open(&slot.place(session), &sealed).ok())
        .and_then(|plain| serde_json::from_slice(&plain).ok());
    let outcome = if found.is_some() { "hit" } else { "miss" };
    metrics::counter!("redis_values_total", "value" => slot.name(), "outcome" => outcome).increment(1);
    found
}

/// Keeps a value. Does nothing without Redis.
pub async fn put<T: Serialize>(app: &App, slot: Slot, session: &SessionId, value: &T, keep: Duration) {
    let (Some(redis), Some(key)) = (&app.redis, slot.key(app, session)) else { return };
    let Ok(plain) = serde_json::to_vec(value) else { return };
    let Ok(sealed) = app.master_key.seal(&slot.place(session), &plain) else { return };
    let ms = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX).max(1);
    // Away or not: the value is found elsewhere.
    let _kept =
        redis.call("put", async move |mut connection| connection.pset_ex::<_, _, ()>(key, sealed, ms).await).await;
}

/// Drops all that is kept of sessions. What Redis doesn't drop because it is away, readers find out to be old.
pub async fn drop_all<'a>(app: &App, sessions: impl IntoIterator<Item = &'a SessionId>) {
    let Some(redis) = &app.redis else { return };
    let keys: Vec<String> =
        sessions.into_iter().flat_map(|session| Slot::ALL.map(|slot| slot.key(app, session))).flatten().collect();
    for some in keys.chunks(CHUNK) {
        let gone = redis.call("drop", async |mut connection| connection.del::<_, ()>(some).await).await;
        if gone.is_err() {
            return;
        }
    }
}

/// How many names a command has at most.
const CHUNK: usize = 500;
