//! What other replicas, and commands, tell by Redis: keys to forget, jobs to look for, replicas to count, a new signing key.
//!
//! Each is a hint beside a way that holds without it: keys are cached only while this task hears, and for seconds
//! ([`KeyCache`](crate::keys::KeyCache)); jobs are found by polling, and so are signing keys.

use std::{pin::pin, time::Duration};

use futures_util::StreamExt;
use redis::{Msg, RedisError, aio::PubSub};
use tokio::time::{MissedTickBehavior, timeout};

use super::Redis;
use crate::{jobs::JobKind, state::App};

/// Tenants whose keys are to be forgotten.
pub const KEYS: &str = "keys";
/// Kinds of jobs that are due.
pub const JOBS: &str = "jobs";
/// A replica has come or gone.
pub const REPLICAS: &str = "replicas";

/// Access tokens are signed with a new key.
pub const SIGNING_KEYS: &str = "signing-keys";

/// How often to look whether the connection is alive, and how long that may take.
const PING_EVERY: Duration = Duration::from_millis(500);
const PING_WITHIN: Duration = Duration::from_millis(500);
/// How long to wait before connecting again.
const AGAIN: Duration = Duration::from_millis(500);

/// Listens until the process stops.
pub async fn listen(app: App) {
    let Some(redis) = &app.redis else { return };
    loop {
        let heard = tokio::select! {
            () = app.stop.cancelled() => return,
            heard = hear(&app, redis) => heard,
        };
        // From here on a key can be revoked without our hearing of it.
        app.key_cache.deaf();
        app.limits.count_again.notify_one();
        if heard.is_err() {
            tracing::debug!("other replicas are not heard by Redis");
        }
        tokio::select! {
            () = app.stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Why listening ended.
enum Lost {
    Connection,
}

impl From<RedisError> for Lost {
    fn from(_: RedisError) -> Self {
        Self::Connection
    }
}

impl From<tokio::time::error::Elapsed> for Lost {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Connection
    }
}

async fn hear(app: &App, redis: &Redis) -> Result<(), Lost> {
    let [keys, jobs, replicas, signing] = [KEYS, JOBS, REPLICAS, SIGNING_KEYS].map(|channel| redis.name(channel));
    let mut connection: PubSub = timeout(PING_WITHIN, redis.client.get_async_pubsub()).await??;
    timeout(PING_WITHIN, connection.subscribe(&[&keys, &jobs, &replicas, &signing])).await??;
    let (mut sink, stream) = connection.split();
    let mut stream = pin!(stream);
    app.key_cache.hears();
    app.limits.count_again.notify_one();
    app.keyring.rotated();
    for kind in JobKind::ALL {
        app.bell.ring_inside(kind);
    }
    let mut every = tokio::time::interval(PING_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = stream.next() => {
                let Some(message) = message else { return Err(Lost::Connection) };
                if message.get_channel_name() == keys {
                    forget(app, &message);
                } else if message.get_channel_name() == replicas {
                    app.limits.count_again.notify_one();
                } else if message.get_channel_name() == signing {
                    app.keyring.rotated();
                } else if let Some(kind) = payload(&message).and_then(|name| JobKind::named(&name)) {
                    app.bell.ring_inside(kind);
                }
            }
            _ = every.tick() => {
                timeout(PING_WITHIN, sink.ping::<redis::Value>()).await??;
            }
        }
    }
}

fn payload(message: &Msg) -> Option<String> {
    message.get_payload().ok()
}

fn forget(app: &App, message: &Msg) {
    match payload(message).and_then(|tenant| tenant.parse().ok()) {
        Some(tenant) => app.key_cache.forget(&tenant),
        // Another version's way to say it.
        None => app.key_cache.forget_all(),
    }
}
