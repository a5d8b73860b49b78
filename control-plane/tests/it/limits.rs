//! Rate limits, alone and together; and what Redis is there for besides.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use control_plane::{
    config::{RateLimit, RateLimitConfig},
    limits::policy::Rate,
};
use futures_util::future::join_all;
use rstest::rstest;
use serde_json::json;

use crate::{
    fleet::until,
    harness::{Answer, Engine, TestApp},
    parts::execute,
    redis_server::RedisServer,
};

fn rate(per_minute: u32, burst: u32) -> RateLimit {
    RateLimit(Some(Rate { per_minute, burst }))
}

async fn key_of(app: &TestApp) -> (String, crate::harness::Owner) {
    let owner = app.sign_up().await;
    let key = app.api_key(&owner, "sandbox", &["sessions:read"]).await;
    (key, owner)
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test(flavor = "multi_thread")]
async fn each_key_has_its_own_limit_and_is_told_where_it_stands(#[case] engine: Engine) {
    let limits = RateLimitConfig { key: rate(1, 3), tenant: rate(1, 6), address: rate(1, 20) };
    let Some(app) = TestApp::start_with(engine, |config| config.rate_limits = limits).await else { return };
    let (key, owner) = key_of(&app).await;
    let get = |credential: &str| Answer::of(app.get("/api/v1/tenant").bearer_auth(credential));
    for left in [2, 1, 0] {
        let answer = get(&key).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("ratelimit-limit"), Some("3"));
        assert_eq!(answer.header("ratelimit-remaining"), Some(left.to_string().as_str()));
        assert!(answer.header("ratelimit-reset").unwrap().parse::<u64>().unwrap() <= 180);
    }
    let refused = get(&key).await;
    refused.assert_problem(429, "rate-limited");
    assert_eq!(refused.header("ratelimit-remaining"), Some("0"));
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((50..=60).contains(&wait), "{wait}");
    assert!(refused.json()["detail"].as_str().unwrap().contains("key"));

    // The owner has made a key, which was one of the tenant's six; the key has had three.
    assert_eq!(get(&owner.access_token).await.status, 200);
    let last = get(&owner.access_token).await;
    assert_eq!((last.status.as_u16(), last.header("ratelimit-remaining")), (200, Some("0")));
    let refused = get(&owner.access_token).await;
    refused.assert_problem(429, "rate-limited");

    // Others are not concerned, and nobody counts what says how the installation is.
    let (other, _) = key_of(&app).await;
    assert_eq!(get(&other).await.status, 200);
    for path in ["/livez", "/readyz", "/openapi.json"] {
        assert_eq!(Answer::of(app.get(path)).await.header("ratelimit-limit"), None, "{path}");
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_known_is_counted_by_address_with_whatever_credentials(#[case] engine: Engine) {
    let limits = RateLimitConfig { key: rate(1, 100), tenant: rate(1, 100), address: rate(1, 6) };
    let change = |config: &mut control_plane::config::Config| {
        config.rate_limits = limits;
        config.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    };
    let Some(app) = TestApp::start_with(engine, change).await else { return };
    let (key, _) = key_of(&app).await;
    let wrong = app.api_key(&app.sign_up().await, "sandbox", &["sessions:read"]).await;
    app.sql("UPDATE api_keys SET revoked_at = 1 WHERE last_four = $1", [wrong[wrong.len() - 4..].into()]).await;
    let from = |request: reqwest::RequestBuilder| Answer::of(request.header("x-forwarded-for", "203.0.113.9"));
    from(app.get("/api/v1/tenant")).await.assert_problem(401, "unauthenticated");
    from(app.get("/api/v1/tenant").bearer_auth("garbage")).await.assert_problem(401, "unauthenticated");
    from(app.get("/api/v1/tenant").bearer_auth(&wrong)).await.assert_problem(401, "unauthenticated");
    // Whoever brings rubbish to where nothing is needed is counted all the same.
    let login = json!({"email": "a@example.com", "password": "correct horse battery"});
    for _ in 0..2 {
        from(app.post("/api/v1/auth/login", &login).bearer_auth("garbage"))
            .await
            .assert_problem(401, "invalid-credentials");
    }
    from(app.get("/api/v1/no/such/thing")).await.assert_problem(404, "not-found");
    for request in
        [app.get("/api/v1/tenant"), app.post("/api/v1/auth/login", &login), app.get("/api/v1/x").bearer_auth(&wrong)]
    {
        let refused = from(request).await;
        refused.assert_problem(429, "rate-limited");
        assert!(refused.json()["detail"].as_str().unwrap().contains("address"));
    }
    // A key from the same address has its own limit; another address too.
    assert_eq!(from(app.get("/api/v1/tenant").bearer_auth(&key)).await.status, 200);
    Answer::of(app.get("/api/v1/tenant").header("x-forwarded-for", "203.0.113.10"))
        .await
        .assert_problem(401, "unauthenticated");
    app.stop().await;
}

/// What became of a run at the limit.
struct Run {
    admitted: u64,
    refused: u64,
    took: Duration,
    /// How long, at most, there was nothing for the limit to refuse, in stretches longer than `lull`: on average of both replicas. This
    /// process was held up then, and a bucket may have been full.
    idle: Duration,
}

/// How long, at most, lay between refusals (sent, and answered), in stretches longer than `lull`.
fn idle(mut refusals: Vec<(Instant, Instant)>, began: Instant, ended: Instant, lull: Duration) -> Duration {
    refusals.extend([(began, began), (ended, ended)]);
    refusals.sort_by_key(|(_, answered)| *answered);
    let gaps = refusals.windows(2).map(|pair| pair[1].1 - pair[0].0.min(pair[1].0));
    gaps.filter(|gap| *gap > lull).sum()
}

/// Asks two replicas for `lasts` as fast as `every` says, and has `half_way` done in the middle.
async fn run(app: &mut TestApp, lasts: Duration, every: Duration, lull: Duration, half_way: impl FnOnce()) -> Run {
    let other = app.replica().await;
    let bases = [app.base_url(), other];
    let (key, _) = key_of(app).await;
    let (admitted, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let refused = [Mutex::new(Vec::new()), Mutex::new(Vec::new())];
    let began = Instant::now();
    let callers = join_all((0..8).map(|n| {
        let (base, http) = (&bases[n % 2], &app.http);
        let (admitted, refused, stop, key) = (&admitted, &refused[n % 2], &stop, &key);
        async move {
            let mut every = tokio::time::interval(every * 8);
            while !stop.load(Ordering::SeqCst) {
                every.tick().await;
                let sent = Instant::now();
                let answer = Answer::of(http.get(format!("{base}/api/v1/tenant")).bearer_auth(key)).await;
                match answer.status.as_u16() {
                    200 => {
                        admitted.fetch_add(1, Ordering::SeqCst);
                    }
                    429 => refused.lock().unwrap().push((sent, Instant::now())),
                    _ => panic!("{answer:?}"),
                }
            }
        }
    }));
    let clock = async {
        tokio::time::sleep(lasts / 2).await;
        half_way();
        tokio::time::sleep(lasts / 2).await;
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(callers, clock);
    let (ended, refused) = (Instant::now(), refused.map(|refused| refused.into_inner().unwrap()));
    Run {
        admitted: admitted.into_inner(),
        refused: refused.iter().map(|refused| refused.len() as u64).sum(),
        took: ended - began,
        idle: refused.map(|refused| idle(refused, began, ended, lull)).iter().sum::<Duration>() / 2,
    }
}

/// Steady requests at several times the limit over two replicas and one Redis.
async fn at_the_limit(per_minute: u32, lasts: Duration, kill: bool) {
    const BURST: u32 = 10;
    let Some(mut redis) = RedisServer::start().await else { return };
    let url = redis.url();
    let limits = RateLimitConfig { key: rate(per_minute, BURST), ..RateLimitConfig::OFF };
    let change = |config: &mut control_plane::config::Config| {
        config.rate_limits = limits;
        config.redis.url = Some(url.into());
    };
    let Some(mut app) = TestApp::start_with(Engine::Postgres, change).await else { return };
    let interval = Duration::from_secs(60) / per_minute;
    // Within half a burst no bucket that was empty fills.
    let outcome = run(&mut app, lasts, interval / 4, interval * BURST / 2, || {
        if kill {
            redis.kill();
        }
    })
    .await;
    let grown = |time: Duration| u64::try_from(time.as_nanos() / interval.as_nanos()).unwrap();
    // One burst, and one request of each replica's when it goes on alone.
    let (least, most) = (grown(lasts.saturating_sub(outcome.idle)), grown(outcome.took) + u64::from(BURST) + 2);
    let (all, idle) = (outcome.admitted + outcome.refused, outcome.idle);
    eprintln!("{} admitted of {all}: {least} to {most}; held up for {idle:?}", outcome.admitted);
    let figures = app.figures().await.text;
    for line in figures.lines().filter(|line| line.starts_with("redis_calls") || line.starts_with("rate_limit")) {
        eprintln!("  {line}");
    }
    assert!(outcome.refused > 0 && outcome.admitted <= most, "{} of {most}", outcome.admitted);
    // Alone, a replica keeps to its half, and is asked for more than that.
    let least = if kill { least * 8 / 10 } else { least };
    assert!(outcome.admitted >= least, "{} of {least}", outcome.admitted);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_with_one_redis_admit_together_what_the_limit_allows() {
    at_the_limit(1200, Duration::from_secs(8), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_killed_half_way_lets_no_more_through_and_fails_no_request() {
    at_the_limit(1200, Duration::from_secs(8), true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "five minutes: make chaos"]
async fn chaos_a_hundred_in_a_minute_for_five_minutes() {
    at_the_limit(100, Duration::from_secs(300), false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "five minutes: make chaos"]
async fn chaos_a_hundred_in_a_minute_for_five_minutes_with_redis_killed_half_way() {
    at_the_limit(100, Duration::from_secs(300), true).await;
}

/// Without Redis at all, replicas know of each other by their heartbeats.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_without_redis_share_a_limit() {
    let limits = RateLimitConfig { key: rate(1, 10), ..RateLimitConfig::OFF };
    let change = |config: &mut control_plane::config::Config| {
        config.rate_limits = limits;
        config.redis.url = None;
    };
    let Some(mut app) = TestApp::start_with(Engine::Postgres, change).await else { return };
    let other = app.replica().await;
    // The second knows at once that it is one of two; the first hears of it at its next heartbeat.
    let (key, _) = key_of(&app).await;
    let ask = async |base: &str| Answer::of(app.http.get(format!("{base}/api/v1/tenant")).bearer_auth(&key)).await;
    let first = ask(&other).await;
    assert_eq!(first.header("ratelimit-limit"), Some("5"), "{first:?}");
    let base = app.base_url();
    until("the first replica knows of the second", async || {
        let (_, owner) = key_of(&app).await;
        let answer = Answer::of(app.http.get(format!("{base}/api/v1/tenant")).bearer_auth(owner.access_token)).await;
        (answer.header("ratelimit-limit") == Some("5")).then_some(())
    })
    .await;
    let mut admitted = 1;
    for n in 0..20 {
        let answer = ask(if n % 2 == 0 { &base } else { &other }).await;
        admitted += u32::from(answer.status == 200);
    }
    assert_eq!(admitted, 10);
    app.stop().await;
}

/// Redis may be away for one of them only.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_redis_beside_one_with_it_breaks_no_limit_and_keeps_no_revoked_key_alive() {
    let Some(redis) = RedisServer::start().await else { return };
    let url = redis.url();
    let limits = RateLimitConfig { key: rate(1, 12), ..RateLimitConfig::OFF };
    let change = |config: &mut control_plane::config::Config| {
        config.rate_limits = limits;
        config.redis.url = Some(url.into());
    };
    let Some(mut app) = TestApp::start_with(Engine::Postgres, change).await else { return };
    let base = app.base_url();
    until("keys are remembered", async || app.app().key_cache.works().then_some(())).await;
    let apart = app.replica_with(|config| config.redis.url = None).await;
    until("the first knows of the second", async || (!app.app().key_cache.works()).then_some(())).await;

    let (key, owner) = key_of(&app).await;
    let ask =
        async |base: &str, key: &str| Answer::of(app.http.get(format!("{base}/api/v1/tenant")).bearer_auth(key)).await;
    let mut admitted = 0;
    for n in 0..40 {
        let answer = ask(if n % 2 == 0 { &base } else { &apart }, &key).await;
        assert_eq!(answer.header("ratelimit-limit"), Some("6"), "{answer:?}");
        admitted += u32::from(answer.status == 200);
    }
    assert_eq!(admitted, 12);

    let made = json!({"name": "k", "network": "sandbox", "scopes": ["sessions:read"]});
    let made = Answer::of(app.post("/api/v1/api-keys", &made).bearer_auth(&owner.access_token)).await.json();
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert_eq!(ask(&base, key).await.status, 200);
    let revoke = app.http.delete(format!("{apart}/api/v1/api-keys/{id}")).bearer_auth(&owner.access_token);
    assert_eq!(Answer::of(revoke).await.status, 204);
    assert_eq!(ask(&base, key).await.status, 401, "though nobody could tell");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_through_an_outage_of_redis_and_after_it() {
    let Some(mut redis) = RedisServer::start().await else { return };
    let url = redis.url();
    let limits = RateLimitConfig { key: rate(1, 12), ..RateLimitConfig::OFF };
    let change = |config: &mut control_plane::config::Config| {
        config.rate_limits = limits;
        config.redis.url = Some(url.into());
    };
    let Some(app) = TestApp::start_with(Engine::Postgres, change).await else { return };
    let (key, _) = key_of(&app).await;
    let ask = async || Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await;
    let remaining = |answer: &Answer| answer.header("ratelimit-remaining").unwrap().parse::<u32>().unwrap();
    for left in (8..12).rev() {
        assert_eq!(remaining(&ask().await), left);
    }
    redis.kill();
    for left in (4..8).rev() {
        let answer = ask().await;
        assert_eq!((answer.status.as_u16(), remaining(&answer)), (200, left), "goes on from what Redis knew");
    }
    let operator = crate::operators::operator(&app).await;
    let health = async || Answer::of(app.get("/health/detailed").bearer_auth(&operator)).await.json()["redis"].clone();
    assert_eq!(health().await, "down");
    redis.start_again().await;
    let asked = async || app.app().redis.as_ref().unwrap().is_up().then_some(());
    until("Redis is asked again", asked).await;
    assert_eq!(health().await, "ok");
    for left in (0..4).rev() {
        let answer = ask().await;
        assert_eq!((answer.status.as_u16(), remaining(&answer)), (200, left), "and Redis goes on from there");
    }
    ask().await.assert_problem(429, "rate-limited");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_never_saw_a_key_gives_it_no_new_burst_when_redis_goes() {
    let Some(mut redis) = RedisServer::start().await else { return };
    let url = redis.url();
    let limits = RateLimitConfig { key: rate(1, 12), ..RateLimitConfig::OFF };
    let change = |config: &mut control_plane::config::Config| {
        config.rate_limits = limits;
        config.redis.url = Some(url.into());
    };
    let Some(mut app) = TestApp::start_with(Engine::Postgres, change).await else { return };
    let other = app.replica().await;
    let (key, _) = key_of(&app).await;
    for _ in 0..12 {
        assert_eq!(Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.status, 200);
    }
    redis.kill();
    let mut admitted = 0;
    for _ in 0..8 {
        let answer = Answer::of(app.http.get(format!("{other}/api/v1/tenant")).bearer_auth(&key)).await;
        admitted += u32::from(answer.status == 200);
    }
    assert!(admitted <= 1, "{admitted}");
    app.stop().await;
}

/// A Redis that takes calls and never answers is worse than none.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_hangs_delays_a_few_requests_by_its_deadline_and_fails_none() {
    let Some(redis) = RedisServer::start().await else { return };
    let url = redis.url();
    let limits = RateLimitConfig { key: rate(60_000, 1_000), ..RateLimitConfig::OFF };
    let change = |config: &mut control_plane::config::Config| {
        config.rate_limits = limits;
        config.redis.url = Some(url.into());
        config.redis.timeout = Duration::from_millis(50);
    };
    let Some(app) = TestApp::start_with(Engine::Postgres, change).await else { return };
    let (key, _) = key_of(&app).await;
    let ask = async || Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await;
    let calls = async |outcome: &str| {
        let figures = app.figures().await.text;
        let name = format!("redis_calls_total{{call=\"rate_limit\",outcome=\"{outcome}\"}} ");
        figures.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap_or(0)
    };
    assert_eq!(ask().await.status, 200);
    let already = calls("late").await;
    redis.signal("-STOP");
    for _ in 0..30 {
        assert_eq!(ask().await.status, 200);
    }
    let (late, spared) = (calls("late").await - already, calls("spared").await);
    assert!((1..=3).contains(&late) && spared >= 20, "{late} late, {spared} spared");
    redis.signal("-CONT");
    until("Redis is asked again", async || app.app().redis.as_ref().unwrap().is_up().then_some(())).await;
    let before = calls("answered").await;
    until("it answers", async || {
        assert_eq!(ask().await.status, 200);
        (calls("answered").await > before).then_some(())
    })
    .await;
    app.stop().await;
}

/// Without anybody's being told.
async fn revoke(app: &TestApp, at: Option<i64>) {
    execute(app.app(), "UPDATE api_keys SET revoked_at = $1", [at.into()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_key_asks_no_database_and_a_revoked_one_is_refused_at_once_by_every_replica() {
    let Some(mut redis) = RedisServer::start().await else { return };
    let url = redis.url();
    let Some(mut app) = TestApp::start_with(Engine::Postgres, |config| config.redis.url = Some(url.into())).await
    else {
        return;
    };
    let bases = [app.base_url(), app.replica().await];
    let (key, owner) = key_of(&app).await;
    let ask = async |n: usize| Answer::of(app.http.get(format!("{}/api/v1/tenant", bases[n])).bearer_auth(&key)).await;
    // Behind the server's back: whoever still admits the key hasn't asked the database. Again and again, since an entry is
    // believed for seconds only.
    for n in 0..2 {
        until("the key is known without the database", async || {
            revoke(&app, None).await;
            assert_eq!(ask(n).await.status, 200);
            revoke(&app, Some(1)).await;
            (ask(n).await.status == 200).then_some(())
        })
        .await;
    }
    revoke(&app, None).await;
    for n in 0..2 {
        assert_eq!(ask(n).await.status, 200);
    }
    let listed = Answer::of(app.get("/api/v1/api-keys").bearer_auth(&owner.access_token)).await.json();
    let path = format!("/api/v1/api-keys/{}", listed["data"][0]["id"].as_str().unwrap());
    let gone = app.request(reqwest::Method::DELETE, &path).bearer_auth(&owner.access_token);
    assert_eq!(Answer::of(gone).await.status, 204);
    let told = Instant::now();
    ask(0).await.assert_problem(401, "unauthenticated");
    until("the other replica has heard", async || (ask(1).await.status == 401).then_some(())).await;
    assert!(told.elapsed() < Duration::from_secs(4), "sooner than an entry ends by itself: {:?}", told.elapsed());

    // Without Redis every replica asks the database each time.
    let key = app.api_key(&owner, "sandbox", &["sessions:read"]).await;
    redis.kill();
    until("nothing is remembered any more", async || {
        let ask = || Answer::of(app.get("/api/v1/tenant").bearer_auth(&key));
        revoke(&app, None).await;
        assert_eq!(ask().await.status, 200);
        revoke(&app, Some(1)).await;
        (ask().await.status == 401).then_some(())
    })
    .await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_one_address_asks_no_database_once_it_is_refused(#[case] engine: Engine) {
    let limits = RateLimitConfig { key: rate(1, 100), tenant: rate(1, 100), address: rate(1, 6) };
    let change = |config: &mut control_plane::config::Config| {
        config.rate_limits = limits;
        config.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    };
    let Some(app) = TestApp::start_with(engine, change).await else { return };
    let (key, owner) = key_of(&app).await;
    let from = |credential: &str| {
        Answer::of(app.get("/api/v1/tenant").bearer_auth(credential).header("x-forwarded-for", "203.0.113.9"))
    };
    let mut dead = Vec::new();
    for _ in 0..40 {
        dead.push(app.api_key(&owner, "sandbox", &["sessions:read"]).await);
    }
    // One that was good until now.
    let former = dead.pop().unwrap();
    assert_eq!(from(&former).await.status, 200);
    app.sql("UPDATE api_keys SET revoked_at = 1 WHERE id <> (SELECT MIN(id) FROM api_keys)", []).await;
    // The burst of the address, and what it may have looked up besides.
    for (n, dead) in dead[..20].iter().enumerate() {
        let status = from(dead).await.status.as_u16();
        assert_eq!(status, if n < 6 { 401 } else { 429 }, "{n}");
    }
    from(&former).await.assert_problem(429, "rate-limited");
    // A good key has its own limit. One that comes from there for the first time has to try more than once.
    until("a good key is known", async || (from(&key).await.status == 200).then_some(())).await;
    // Whoever asked the tables now would get no answer.
    execute(app.app(), "ALTER TABLE api_keys RENAME TO hidden", []).await;
    for dead in std::iter::once(&former).chain(&dead[20..]) {
        from(dead).await.assert_problem(429, "rate-limited");
    }
    assert_eq!(from(&owner.access_token).await.status, 200, "a person has a limit of their own");
    execute(app.app(), "ALTER TABLE hidden RENAME TO api_keys", []).await;
    assert_eq!(from(&key).await.status, 200, "and so has a key that was good lately");
    app.stop().await;
}
