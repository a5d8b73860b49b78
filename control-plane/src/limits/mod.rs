//! How often callers may ask: by key (or by person), by tenant, and, for those who aren't known, by address.
//!
//! **Owns** the table `replicas`. With `REDIS_URL` a request asks Redis once for all its buckets, in one script; so all
//! replicas count together. Without Redis, or while it is away, each replica decides by itself at limit / replicas, so
//! that together they never admit more. How many there are is read from heartbeats in the database ([`replicas`]) and not from
//! Redis, because the number is needed just when Redis is away. It may be away for some only: those that count together leave
//! the others their shares.
//!
//! **Going over.** A replica remembers the TATs that Redis told it. While Redis is away it goes on from them, and when Redis is back,
//! whether empty or out of date, it says what they have become and Redis takes the later ones. A bucket that it hasn't seen
//! while Redis was there begins empty: it gives its share of the rate, and no burst. So neither way gives anybody a
//! new burst, which is why both sides share one policy ([`policy`]) rather than each having a limiter of its own: one with a state
//! of its own, such as the crate `governor`, can be told nothing and asked nothing.
//!
//! **Floods.** Who is not known is counted by address, and to know whether somebody is, the database is asked. Once an address has
//! used up its requests, that is asked only for credentials that look good without it, and now and then for others; so what is
//! refused costs next to nothing.
//!
//! **Invariants.** A request that is refused by one bucket costs none of the others. Redis never makes a request fail. Memory is
//! bounded: the buckets that were not used for longest are forgotten, and those were full again but for floods.

mod layer;
pub mod policy;
pub mod replicas;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use layer::{around, covers};
use moka::sync::Cache;
use policy::{Gcra, Micros, Rate, Verdict, admit};
use redis::Script;
use tokio::sync::Notify;

use crate::{
    config::RateLimitConfig,
    redis::{Away, Redis},
};

/// How many buckets a replica remembers.
const BUCKETS: u64 = 200_000;
/// How long: longer than any burst takes to come back at sensible settings.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// How often credentials that nobody knows are looked up for an address that has used up its requests: often enough for a good one
/// that comes from there for the first time, too seldom to keep the database busy.
const LOOKED_UP: Rate = Rate { per_minute: 60, burst: 5 };

/// Who is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// An API key, or a person.
    Key,
    /// A tenant.
    Tenant,
    /// An address, of somebody who isn't known.
    Address,
}

impl By {
    const fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Tenant => "tenant",
            Self::Address => "address",
        }
    }
}

/// What is counted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Who.
    pub by: By,
    /// Which, without an address in clear.
    pub id: String,
    /// How often.
    pub rate: Rate,
}

/// Where a caller stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether the request is admitted, and if not, by whom it was refused and how long to wait.
    pub refused: Option<(By, Duration)>,
    /// How many at once.
    pub limit: u64,
    /// How many more right now, of the bucket that has the fewest left.
    pub remaining: u64,
    /// When that bucket is full again.
    pub reset: Duration,
}

/// Decides on requests.
#[derive(Debug)]
pub struct Limits {
    config: RateLimitConfig,
    redis: Option<Arc<Redis>>,
    script: Script,
    /// The TATs that were last known here.
    known: Cache<String, Micros>,
    /// The hashes of keys that were good lately. It says nothing about whether they still are.
    good: Cache<Vec<u8>, ()>,
    /// One decision at a time, here.
    deciding: Mutex<()>,
    replicas: AtomicU32,
    /// How many of the others count alone, though this one may have Redis.
    apart: AtomicU32,
    /// Rung when another replica has come or gone.
    pub(crate) count_again: Notify,
    /// How far Redis' clock is ahead of ours, in microseconds.
    ahead: AtomicI64,
}

impl Limits {
    /// With these settings.
    #[must_use]
    pub fn new(config: RateLimitConfig, redis: Option<Arc<Redis>>) -> Self {
        Self {
            config,
            redis,
            script: Script::new(include_str!("gcra.lua")),
            known: Cache::builder().max_capacity(BUCKETS).time_to_idle(REMEMBERED).build(),
            good: Cache::builder().max_capacity(BUCKETS).time_to_idle(REMEMBERED).build(),
            deciding: Mutex::new(()),
            replicas: AtomicU32::new(1),
            apart: AtomicU32::new(0),
            count_again: Notify::new(),
            ahead: AtomicI64::new(0),
        }
    }

    /// Gives Redis the script, so that the first request needn't. One that is away gets it with the first call that finds it back.
    pub async fn prepare(&self) {
        let Some(redis) = &self.redis else { return };
        let load = async |mut connection| self.script.load_async(&mut connection).await;
        if redis.call("script_load", load).await.is_err() {
            tracing::debug!("Redis gets the script of the limits later");
        }
    }

    /// How often, by whom; nothing: as often as they like.
    #[must_use]
    pub fn rate(&self, by: By) -> Option<Rate> {
        match by {
            By::Key => self.config.key.0,
            By::Tenant => self.config.tenant.0,
            By::Address => self.config.address.0,
        }
    }

    /// Whether anything is limited.
    fn any(&self) -> bool {
        [By::Key, By::Tenant, By::Address].into_iter().any(|by| self.rate(by).is_some())
    }

    /// How many replicas share a limit when they can't count together, and how many of the others count alone.
    pub(crate) fn set_replicas(&self, replicas: u32, apart: u32) {
        self.replicas.store(replicas.max(1), Ordering::Release);
        self.apart.store(apart, Ordering::Release);
        metrics::gauge!("rate_limit_replicas").set(f64::from(replicas.max(1)));
        metrics::gauge!("rate_limit_replicas_apart").set(f64::from(apart));
    }

    /// What those that count together may admit.
    fn together(&self, rate: Rate) -> Gcra {
        match self.apart.load(Ordering::Acquire) {
            0 => rate.gcra(),
            apart => {
                let replicas = self.replicas.load(Ordering::Acquire);
                rate.part(replicas.saturating_sub(apart), replicas)
            }
        }
    }

    /// Counts a request in each of its buckets, or, if one of them refuses, in none.
    pub async fn take(&self, buckets: &[Bucket]) -> Standing {
        if let Some(redis) = &self.redis
            && let Ok((verdict, now)) = self.take_together(redis, buckets).await
        {
            return standing(buckets, &verdict, now, |rate| self.together(rate));
        }
        let source = if self.redis.is_some() { "away" } else { "alone" };
        metrics::counter!("rate_limit_decisions_total", "source" => source).increment(1);
        let (verdict, now, replicas) = self.take_alone(buckets);
        standing(buckets, &verdict, now, |rate| rate.share_of(replicas))
    }

    /// A key was found to be good.
    pub(crate) fn note_good(&self, hash: Vec<u8>) {
        self.good.insert(hash, ());
    }

    /// A key was found not to be good, or not any more.
    pub(crate) fn note_bad(&self, hash: &[u8]) {
        self.good.invalidate(hash);
    }

    /// Whether it was lately.
    pub(crate) fn was_good(&self, hash: &[u8]) -> bool {
        self.good.contains_key(hash)
    }

    /// Whether credentials that don't look good may be looked up: if the address that they come from has requests left, as far as is
    /// known here, and now and then if not.
    fn may_look_up(&self, address: &Bucket) -> bool {
        let now = here().saturating_add_signed(self.ahead.load(Ordering::Acquire));
        let tat = self.known.get(&name(address)).unwrap_or(0);
        let replicas = if self.redis.is_some() { 1 } else { self.replicas.load(Ordering::Acquire) };
        if address.rate.share_of(replicas).remaining(tat, now) > 0 {
            return true;
        }
        let _one_at_a_time = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("look:{}", address.id);
        let verdict = admit(&[(LOOKED_UP.gcra(), self.known.get(&name).unwrap_or(0))], now);
        if let (true, [tat]) = (verdict.admitted(), verdict.tats.as_slice()) {
            self.known.insert(name, *tat);
        }
        verdict.admitted()
    }

    async fn take_together(&self, redis: &Redis, buckets: &[Bucket]) -> Result<(Verdict, Micros), Away> {
        let names: Vec<String> = buckets.iter().map(name).collect();
        let mut call = self.script.prepare_invoke();
        let replicas = self.replicas.load(Ordering::Acquire);
        for (bucket, name) in buckets.iter().zip(&names) {
            let Gcra { interval, tolerance } = self.together(bucket.rate);
            let least = self.known.get(name).unwrap_or(0);
            // What a replica let through by its share lies further ahead.
            let furthest = bucket.rate.share_of(replicas).furthest();
            call.key(redis.name(name)).arg(interval).arg(tolerance).arg(least).arg(furthest);
        }
        let reply: Vec<u64> =
            redis.call("rate_limit", async |mut connection| call.invoke_async(&mut connection).await).await?;
        let [wait, now, tats @ ..] = reply.as_slice() else { return Err(Away) };
        for ((bucket, name), tat) in buckets.iter().zip(names).zip(tats) {
            let furthest = now.saturating_add(bucket.rate.share_of(replicas).furthest());
            // Another answer may have come in between, and a later one is truer, unless no clock that is right can have made it.
            self.known.entry(name).and_upsert_with(|held| {
                held.map(moka::Entry::into_value).filter(|held| *held <= furthest).map_or(*tat, |held| held.max(*tat))
            });
        }
        self.ahead.store(difference(*now, here()), Ordering::Release);
        metrics::counter!("rate_limit_decisions_total", "source" => "redis").increment(1);
        Ok((Verdict { wait: *wait, tats: tats.to_vec() }, *now))
    }

    fn take_alone(&self, buckets: &[Bucket]) -> (Verdict, Micros, u32) {
        let replicas = self.replicas.load(Ordering::Acquire);
        let now = here().saturating_add_signed(self.ahead.load(Ordering::Acquire));
        let names: Vec<String> = buckets.iter().map(name).collect();
        let _one_at_a_time = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let states: Vec<_> = buckets
            .iter()
            .zip(&names)
            .map(|(bucket, name)| {
                let gcra = bucket.rate.share_of(replicas);
                // What others let through while Redis counted for all isn't known here.
                let unknown = if self.redis.is_some() { now + gcra.tolerance } else { 0 };
                (gcra, self.known.get(name).unwrap_or(unknown))
            })
            .collect();
        let verdict = admit(&states, now);
        if verdict.admitted() {
            for (name, tat) in names.into_iter().zip(&verdict.tats) {
                self.known.insert(name, *tat);
            }
        }
        (verdict, now, replicas)
    }
}

/// What a bucket is known by.
fn name(bucket: &Bucket) -> String {
    format!("rate:{}:{}", bucket.by.name(), bucket.id)
}

/// The time here.
fn here() -> Micros {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

fn difference(there: Micros, here: Micros) -> i64 {
    i64::try_from(i128::from(there) - i128::from(here)).unwrap_or(0)
}

/// Where the caller stands in the bucket that has the fewest left.
fn standing(buckets: &[Bucket], verdict: &Verdict, now: Micros, gcra: impl Fn(Rate) -> Gcra) -> Standing {
    let mut tightest: Option<(By, Standing)> = None;
    for (bucket, tat) in buckets.iter().zip(&verdict.tats) {
        let gcra = gcra(bucket.rate);
        let here = Standing {
            refused: None,
            limit: gcra.burst(),
            remaining: gcra.remaining(*tat, now),
            reset: Duration::from_micros(tat.saturating_sub(now)),
        };
        if tightest.is_none_or(|(_, held)| here.remaining < held.remaining) {
            tightest = Some((bucket.by, here));
        }
    }
    let Some((by, standing)) = tightest else {
        return Standing { refused: None, limit: 0, remaining: 0, reset: Duration::ZERO };
    };
    let refused = (!verdict.admitted()).then_some((by, Duration::from_micros(verdict.wait)));
    Standing { refused, ..standing }
}

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "rate_limit_decisions_total",
        "Requests decided on, by who counted: Redis, a replica alone, or one alone because Redis is away."
    );
    metrics::describe_counter!("rate_limited_total", "Requests refused because there were too many, by who sent them.");
    metrics::describe_gauge!("rate_limit_replicas", "How many replicas share the limits when each counts alone.");
    metrics::describe_gauge!(
        "rate_limit_replicas_apart",
        "How many of the other replicas count alone at present, for want of Redis."
    );
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    use shared::seal::DataKey;

    use super::*;
    use crate::{config::RedisConfig, master_key::MasterKey};

    fn bucket(id: u8, per_minute: u32, burst: u32) -> Bucket {
        Bucket { by: By::Key, id: id.to_string(), rate: Rate { per_minute, burst } }
    }

    /// The script decides by Redis' clock and says which time it was, so the policy can be asked about the same moment.
    #[tokio::test]
    async fn the_script_decides_as_the_policy_does() {
        let Some(url) = std::env::var("TEST_REDIS_URL").ok().filter(|url| !url.is_empty()) else {
            assert!(std::env::var("CI_REQUIRE_REDIS").as_deref() != Ok("1"), "TEST_REDIS_URL is not set");
            eprintln!("\n*** SKIPPED: no TEST_REDIS_URL, so the script is not tested here ***\n");
            return;
        };
        shared::tls::install_provider();
        let master_key = MasterKey::new(DataKey::generate());
        let timeout = Duration::from_secs(5);
        let config = RedisConfig { url: Some(url.into()), tls_ca: None, tls_cert: None, tls_key: None, timeout };
        let redis = Arc::new(Redis::connect(&config, &master_key).await.unwrap().unwrap());
        let mut random = StdRng::seed_from_u64(11);
        let (mut admitted, mut refused) = (0, 0);
        'rounds: for round in 0..16_u8 {
            let limits = Limits::new(RateLimitConfig::OFF, Some(redis.clone()));
            let buckets: Vec<_> = (0..random.random_range(1..4_u8))
                .map(|n| bucket(round * 4 + n, random.random_range(600..60_000), random.random_range(1..9)))
                .collect();
            let mut model = vec![0; buckets.len()];
            for _ in 0..30 {
                // Now and then this replica knows better than Redis.
                let known = random.random_bool(0.2).then(|| name(&buckets[0]));
                if let Some(known) = known {
                    model[0] += 1_500;
                    limits.known.insert(known, model[0]);
                }
                let Ok((verdict, now)) = limits.take_together(&redis, &buckets).await else {
                    // Late, on a busy machine: nobody knows what Redis did.
                    continue 'rounds;
                };
                let states: Vec<_> = buckets.iter().zip(&model).map(|(b, tat)| (b.rate.gcra(), *tat)).collect();
                assert_eq!(verdict, admit(&states, now), "{buckets:?}");
                if verdict.admitted() {
                    admitted += 1;
                } else {
                    refused += 1;
                }
                model = verdict.tats;
                tokio::time::sleep(Duration::from_micros(random.random_range(0..6_000))).await;
            }
        }
        assert!(admitted > 50 && refused > 20, "{admitted} admitted, {refused} refused");

        // A clock that was an hour ahead, here or where Redis ran before: it costs the burst and not the hour.
        let limits = Limits::new(RateLimitConfig::OFF, Some(redis.clone()));
        let (ours, theirs) = ([bucket(100, 600, 3)], [bucket(101, 600, 3)]);
        let ahead = here() + 3_600_000_000;
        limits.known.insert(name(&ours[0]), ahead);
        let there = redis.name(&name(&theirs[0]));
        let set = redis.call("set", async |mut connection| {
            redis::cmd("SET").arg(there).arg(ahead).arg("PX").arg(60_000).query_async::<()>(&mut connection).await
        });
        // Late, on a busy machine: nobody knows what Redis did.
        let Ok(()) = set.await else { return };
        for buckets in [ours, theirs] {
            let mut model = ahead;
            for _ in 0..3 {
                let Ok((verdict, now)) = limits.take_together(&redis, &buckets).await else { return };
                assert_eq!(verdict, admit(&[(buckets[0].rate.gcra(), model)], now));
                model = verdict.tats[0];
            }
            assert!(model < ahead);
        }
    }

    #[test]
    fn one_bucket_that_refuses_costs_the_others_nothing() {
        let limits = Limits::new(RateLimitConfig::OFF, None);
        let (narrow, wide) = (bucket(1, 1, 2), bucket(2, 1, 5));
        let both = [narrow, wide.clone()];
        for n in 0..9 {
            assert_eq!(limits.take_alone(&both).0.admitted(), n < 2);
        }
        for n in 0..9 {
            assert_eq!(limits.take_alone(std::slice::from_ref(&wide)).0.admitted(), n < 3);
        }
    }
}
