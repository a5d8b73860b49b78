//! Redis: what replicas share for speed, and never for truth.
//!
//! Rate limits are counted there together, and replicas tell each other there what to forget and what to look at
//! ([`subscriber`]); where sessions are, and their QR codes, are remembered there ([`sealed`]). Whatever is kept there can be lost at any moment: every caller has another way, slower or stricter.
//!
//! **Invariants.** No request waits longer than `REDIS_TIMEOUT` for an answer, and after three failures in a row ([`breaker`]) none asks
//! any more: a task of its own looks whether Redis is back ([`Redis::watch`]). A failure is never an error of a request. Every
//! name begins with a prefix that is derived from the master key, so that installations can share one Redis. Keys hold no
//! address and no secret.

mod breaker;
pub mod sealed;
pub mod subscriber;

use std::{
    fs,
    path::PathBuf,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context;
use breaker::Breaker;
use redis::{
    Client, ClientTlsConfig, RedisError, RedisResult, TlsCertificates,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use secrecy::ExposeSecret;
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{auth::KeyedHash, config::RedisConfig, master_key::MasterKey};

/// How often to look whether Redis is back.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// How long what is written for it stays, in milliseconds.
const PROBE_LASTS: u32 = 1_000;
/// Why it is away, if it doesn't say anything.
const LATE: &str = "no answer in time";
/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// What every PEM file holds. The driver takes a file without certificates for one that names nobody.
const BEGIN: &[u8] = b"-----BEGIN ";

/// Redis doesn't answer, or not in time. There is nothing to be done about it but to do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Redis is away")]
pub struct Away;

/// A connection that mends itself.
pub struct Redis {
    client: Client,
    manager: RwLock<ConnectionManager>,
    breaker: Breaker,
    /// Rung when it goes and when it comes back.
    pub(crate) changed: Notify,
    prefix: String,
    /// How long an answer is waited for.
    timeout: Duration,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis(…)")
    }
}

impl Redis {
    /// Prepares the connection, and waits a moment for it. Redis may be away: then it is found when it comes. Nothing without
    /// `REDIS_URL`.
    ///
    /// # Errors
    /// If the URL, or a file for TLS, can't be used. The message doesn't hold the URL.
    pub async fn connect(config: &RedisConfig, master_key: &MasterKey) -> anyhow::Result<Option<Self>> {
        let Some(url) = &config.url else { return Ok(None) };
        let unusable = |_| anyhow::anyhow!("REDIS_URL must be set to a URL such as redis://user:password@host:6379/0");
        let client = match certificates(config)? {
            None => Client::open(url.expose_secret()).map_err(unusable)?,
            Some(certificates) => Client::build_with_tls(url.expose_secret(), certificates).map_err(|_| {
                anyhow::anyhow!(
                    "REDIS_TLS_CA, REDIS_TLS_CERT and REDIS_TLS_KEY must be paths of certificates and their key in PEM"
                )
            })?,
        };
        let manager = RwLock::new(manager(&client).map_err(unusable)?);
        let name = KeyedHash::new(&master_key.derive("redis-prefix")).of("switchboard");
        let prefix = name.iter().take(6).fold(String::from("sb:"), |text, byte| format!("{text}{byte:02x}"));
        let redis = Self {
            client,
            manager,
            breaker: Breaker::default(),
            changed: Notify::new(),
            prefix,
            timeout: config.timeout,
        };
        if let Err(why) = redis.probe().await {
            redis.breaker.trip();
            metrics::gauge!("redis_up").set(0.0);
            tracing::warn!(why, "Redis can't be used: going on without it");
        }
        Ok(Some(redis))
    }

    /// Whether it answered when it was last asked.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.breaker.lets_through()
    }

    /// A name of this installation's own.
    #[must_use]
    pub fn name(&self, of: &str) -> String {
        format!("{}:{of}", self.prefix)
    }

    /// Asks Redis something.
    ///
    /// # Errors
    /// [`Away`], at the latest after `REDIS_TIMEOUT`.
    pub async fn call<T, F>(&self, what: &'static str, ask: F) -> Result<T, Away>
    where
        F: AsyncFnOnce(ConnectionManager) -> RedisResult<T>,
    {
        if !self.breaker.lets_through() {
            count(what, "spared");
            return Err(Away);
        }
        let (outcome, why) = match timeout(self.timeout, ask(self.manager())).await {
            Ok(Ok(answer)) => {
                self.answered();
                count(what, "answered");
                return Ok(answer);
            }
            Ok(Err(error)) => ("failed", why(&error)),
            Err(_) => ("late", LATE.to_owned()),
        };
        count(what, outcome);
        if self.breaker.failed() {
            self.changed.notify_one();
            metrics::gauge!("redis_up").set(0.0);
            tracing::warn!(why, "Redis is away: going on without it");
        }
        Err(Away)
    }

    /// Tells every replica that listens.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn publish(&self, channel: &str, payload: &str) -> Result<(), Away> {
        let channel = self.name(channel);
        self.call("publish", async move |mut connection| {
            redis::cmd("PUBLISH").arg(channel).arg(payload).query_async::<i64>(&mut connection).await
        })
        .await
        .map(drop)
    }

    /// Looks for Redis while it is away, until the process stops.
    pub async fn watch(&self, stop: CancellationToken) {
        let mut every = tokio::time::interval(PROBE_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = every.tick() => {}
            }
            if self.breaker.lets_through() {
                continue;
            }
            if self.probe().await.is_ok() {
                self.answered();
            } else if let Ok(fresh) = manager(&self.client) {
                // One that hangs would hang on.
                *self.manager.write().unwrap_or_else(PoisonError::into_inner) = fresh;
            }
        }
    }

    /// Redis answered, which it may do while nobody asks: a call was on its way.
    fn answered(&self) {
        if self.breaker.succeeded() {
            self.changed.notify_one();
            metrics::gauge!("redis_up").set(1.0);
            tracing::info!("Redis is back");
        }
    }

    /// Whether Redis takes what we write, given the time that a connection takes. One that was demoted, or whose memory is full, answers a
    /// PING, and is of no use.
    ///
    /// # Errors
    /// Why not, for whoever operates it, in a word or two.
    pub async fn probe(&self) -> Result<(), String> {
        let mut connection = self.manager();
        let mut command = redis::cmd("SET");
        command.arg(self.name("probe")).arg(1).arg("PX").arg(PROBE_LASTS);
        let written = command.query_async::<()>(&mut connection);
        match timeout(CONNECT_WITHIN, written).await {
            Ok(Ok(())) => {
                metrics::gauge!("redis_up").set(1.0);
                Ok(())
            }
            Ok(Err(error)) => Err(why(&error)),
            Err(_) => Err(LATE.to_owned()),
        }
    }

    fn manager(&self) -> ConnectionManager {
        self.manager.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What Redis is known by, and what it is shown, if that is set.
fn certificates(config: &RedisConfig) -> anyhow::Result<Option<TlsCertificates>> {
    let read = |path: &Option<PathBuf>, name: &'static str| -> anyhow::Result<Option<Vec<u8>>> {
        let Some(path) = path else { return Ok(None) };
        let pem = fs::read(path).ok().filter(|pem| pem.windows(BEGIN.len()).any(|bytes| bytes == BEGIN));
        Ok(Some(pem.with_context(|| format!("{name} must be the path of a PEM file"))?))
    };
    let root_cert = read(&config.tls_ca, "REDIS_TLS_CA")?;
    let cert = read(&config.tls_cert, "REDIS_TLS_CERT")?;
    let client_tls = cert
        .zip(read(&config.tls_key, "REDIS_TLS_KEY")?)
        .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    Ok((root_cert.is_some() || client_tls.is_some()).then_some(TlsCertificates { client_tls, root_cert }))
}

fn manager(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_number_of_retries(0)
        .set_connection_timeout(Some(CONNECT_WITHIN))
        .set_response_timeout(Some(CONNECT_WITHIN));
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}

/// What an error is: the server's own code for it, such as `READONLY` or `OOM`, or its kind. Never more of what it says, which may
/// name a user or a host.
fn why(error: &RedisError) -> String {
    let is_code = |code: &&str| code.len() <= 20 && code.bytes().all(|byte| byte.is_ascii_uppercase());
    error.code().filter(is_code).unwrap_or_else(|| error.category()).to_owned()
}

fn count(what: &'static str, outcome: &'static str) {
    metrics::counter!("redis_calls_total", "call" => what, "outcome" => outcome).increment(1);
}

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "redis_calls_total",
        "Calls of Redis, by call and outcome: answered, failed, late (after `REDIS_TIMEOUT`), or spared because it is away."
    );
    metrics::describe_counter!(
        "redis_values_total",
        "Values that were looked for in Redis, by value (route, qr) and outcome: hit, miss, or stale (the worker said so)."
    );
    metrics::describe_gauge!("redis_up", "Whether Redis answered when it was last asked.");
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use redis::ErrorKind;
    use shared::seal::DataKey;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_comes_after_three_failures_says_that_redis_is_up() {
        let Some(url) = std::env::var("TEST_REDIS_URL").ok().filter(|url| !url.is_empty()) else {
            assert!(std::env::var("CI_REQUIRE_REDIS").as_deref() != Ok("1"), "TEST_REDIS_URL is not set");
            eprintln!("\n*** SKIPPED: no TEST_REDIS_URL, so what is said of Redis is not tested here ***\n");
            return;
        };
        shared::tls::install_provider();
        let recorder = PrometheusBuilder::new().build_recorder();
        let figures = recorder.handle();
        let _here = metrics::set_default_local_recorder(&recorder);
        let timeout = Duration::from_secs(5);
        let config = RedisConfig { url: Some(url.into()), tls_ca: None, tls_cert: None, tls_key: None, timeout };
        let redis = Redis::connect(&config, &MasterKey::new(DataKey::generate())).await.unwrap().unwrap();
        let says = |up: u8| figures.render().lines().any(|line| line == format!("redis_up {up}"));
        // One call is on its way while three others fail.
        loop {
            let (answer, answered) = oneshot::channel();
            let slow = redis.call("slow", async |_| {
                answered.await.unwrap();
                Ok(())
            });
            let failing = async {
                for _ in 0..3 {
                    let failed = redis
                        .call("failing", async |_| Err::<(), _>(RedisError::from((ErrorKind::Io, "for the test"))));
                    assert_eq!(failed.await, Err(Away));
                }
                assert!(!redis.is_up() && says(0));
                answer.send(()).unwrap();
            };
            let (slow, ()) = tokio::join!(slow, failing);
            // Late, on a busy machine: once more.
            if slow.is_ok() {
                break;
            }
            assert!(redis.probe().await.is_ok());
            redis.answered();
        }
        assert!(redis.is_up() && says(1));

        let stranger = config.url.as_ref().unwrap().expose_secret().replace("redis://", "redis://nobody:sentinel@");
        let config = RedisConfig { url: Some(stranger.into()), ..config };
        let refused = Redis::connect(&config, &MasterKey::new(DataKey::generate())).await.unwrap().unwrap();
        assert!(!refused.is_up());
        assert_eq!(refused.probe().await, Err("authentication failed".to_owned()));
    }
}
