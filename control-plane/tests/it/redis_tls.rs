//! Redis over TLS: whom it is spoken with, and who isn't trusted.

use std::{fs, time::Duration};

use control_plane::{
    config::{Config, RateLimit, RateLimitConfig, RedisConfig},
    limits::policy::Rate,
};
use rcgen::ExtendedKeyUsagePurpose;
use rstest::rstest;

use crate::{
    certificates::Authority,
    fleet::until,
    harness::{Answer, Engine, TestApp},
    redis_server::RedisServer,
};

fn authority() -> Authority {
    let authority = Authority::new();
    authority.sign("server", 1, ExtendedKeyUsagePurpose::ServerAuth);
    authority.sign("client", 2, ExtendedKeyUsagePurpose::ClientAuth);
    authority
}

fn as_client(redis: &RedisServer, authority: &Authority) -> RedisConfig {
    RedisConfig {
        url: Some(redis.url().into()),
        tls_ca: Some(authority.file("ca.pem")),
        tls_cert: Some(authority.file("client.crt")),
        tls_key: Some(authority.file("client.key")),
        timeout: Duration::from_secs(5),
    }
}

async fn redis_is(app: &TestApp) -> String {
    let operator = crate::operators::operator(app).await;
    let health = Answer::of(app.get("/health/detailed").bearer_auth(operator)).await;
    health.json()["redis"].as_str().unwrap().to_owned()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn redis_is_spoken_with_over_tls_and_shown_a_certificate(#[case] engine: Engine) {
    let authority = authority();
    let Some(mut redis) = RedisServer::start_with_tls(&authority).await else { return };
    let set = as_client(&redis, &authority);
    let change = |config: &mut Config| {
        config.redis = set;
        config.rate_limits =
            RateLimitConfig { key: RateLimit(Some(Rate { per_minute: 60_000, burst: 1_000 })), ..RateLimitConfig::OFF };
    };
    let Some(app) = TestApp::start_with(engine, change).await else { return };
    until("Redis is spoken with", async || (redis_is(&app).await == "ok").then_some(())).await;
    until("other replicas are heard", async || app.app().key_cache.works().then_some(())).await;
    let counted = async || {
        let figures = app.figures().await.text;
        let name = "redis_calls_total{call=\"rate_limit\",outcome=\"answered\"} ";
        figures.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok()).unwrap_or(0)
    };
    let owner = app.sign_up().await;
    let key = app.api_key(&owner, "sandbox", &["sessions:read"]).await;
    let before = counted().await;
    assert_eq!(Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.status, 200);
    assert!(counted().await > before);

    redis.kill();
    assert_eq!(Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.status, 200);
    redis.start_again().await;
    until("Redis is asked again", async || app.app().redis.as_ref().unwrap().is_up().then_some(())).await;
    until("other replicas are heard again", async || app.app().key_cache.works().then_some(())).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_nobody_vouches_for_is_not_trusted_and_one_that_wants_a_certificate_not_reached_without() {
    let authority = authority();
    let stranger = self::authority();
    let Some(redis) = RedisServer::start_with_tls(&authority).await else { return };
    let known = as_client(&redis, &authority);
    let plain = redis.url().replace("rediss://", "redis://");
    for (what, set) in [
        ("signed by nobody whom we know", RedisConfig { tls_ca: Some(stranger.file("ca.pem")), ..known.clone() }),
        ("signed by nobody whom the system knows", RedisConfig { tls_ca: None, ..known.clone() }),
        ("wants a certificate", RedisConfig { tls_cert: None, tls_key: None, ..known.clone() }),
        (
            "doesn't speak without TLS",
            RedisConfig { url: Some(plain.into()), tls_ca: None, tls_cert: None, tls_key: None, ..known.clone() },
        ),
        ("is somebody else", {
            let url = redis.url().replace("127.0.0.1", "127.0.0.2");
            RedisConfig { url: Some(url.into()), ..known.clone() }
        }),
    ] {
        let app = TestApp::start_with(Engine::Sqlite, |config| config.redis = set).await.unwrap();
        assert_eq!(redis_is(&app).await, "down", "{what}");
        assert!(!app.app().key_cache.works(), "{what}");
        app.stop().await;
    }
}

#[tokio::test]
async fn files_that_can_t_be_used_stop_the_start_with_their_setting_s_name() {
    let authority = authority();
    let nothing = authority.file("nothing.pem");
    fs::write(&nothing, "sentinel").unwrap();
    let right = RedisConfig {
        url: Some("rediss://user:sentinel@127.0.0.1:1/0".to_owned().into()),
        tls_ca: Some(authority.file("ca.pem")),
        tls_cert: Some(authority.file("client.crt")),
        tls_key: Some(authority.file("client.key")),
        timeout: Duration::from_secs(5),
    };
    for wrong in [nothing, authority.file("missing.pem"), authority.file("client.crt")] {
        for (named, set) in [
            ("REDIS_TLS_CA", RedisConfig { tls_ca: Some(wrong.clone()), ..right.clone() }),
            ("REDIS_TLS_CERT", RedisConfig { tls_cert: Some(wrong.clone()), ..right.clone() }),
            ("REDIS_TLS_KEY", RedisConfig { tls_key: Some(wrong.clone()), ..right.clone() }),
        ] {
            if wrong.ends_with("client.crt") && named != "REDIS_TLS_KEY" {
                continue;
            }
            let told = TestApp::fails_to_start(|config| config.redis = set).await;
            assert!(told.contains(named) && !told.contains("sentinel"), "{told}");
        }
    }
}
