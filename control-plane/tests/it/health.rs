//! Whether the installation says how it is.

use rstest::rstest;

use crate::harness::{Answer, Engine, TestApp};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test(flavor = "multi_thread")]
async fn a_working_installation_says_so_and_shows_nothing_of_tenants(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    for path in ["/health", "/livez", "/readyz"] {
        let answer = Answer::of(app.get(path)).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &"ok".into()), "{path}");
    }
    for request in [app.get("/health/detailed"), app.get("/health/detailed").bearer_auth(&owner.access_token)] {
        Answer::of(request).await.assert_problem(401, "unauthenticated");
    }
    let operator = crate::operators::operator(&app).await;
    let detailed = Answer::of(app.get("/health/detailed").bearer_auth(operator)).await;
    assert_eq!(detailed.json()["database"]["status"], "ok", "{detailed:?}");
    let redis = std::env::var("TEST_REDIS_URL").is_ok_and(|url| !url.is_empty()) && engine == Engine::Postgres;
    assert_eq!(detailed.json()["redis"], if redis { "ok".into() } else { serde_json::Value::Null }, "{detailed:?}");
    let engine = if engine == Engine::Sqlite { "sqlite" } else { "postgres" };
    assert_eq!(detailed.json()["database"]["engine"], engine);
    assert_eq!(detailed.json()["workers"]["capacity"], 0);
    assert!(!detailed.json()["queues"].as_array().unwrap().is_empty(), "{detailed:?}");
    for secret in [&owner.tenant_id, &owner.user_id, &owner.email] {
        assert!(!detailed.text.contains(secret.as_str()), "{detailed:?}");
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn figures_are_by_route_and_never_by_path(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let path = "/api/v1/api-keys/15550001234?phone=15550001234";
    let request = app.request(reqwest::Method::DELETE, path).bearer_auth(&owner.access_token);
    Answer::of(request).await.assert_problem(404, "not-found");
    Answer::of(app.get("/15550001234")).await.assert_problem(404, "not-found");
    let method = reqwest::Method::from_bytes(b"M15550001234").unwrap();
    Answer::of(app.request(method, "/livez")).await.assert_problem(405, "method-not-allowed");
    let figures = app.figures().await;
    assert!(figures.text.contains(r#"method="OTHER""#), "{}", figures.text);
    assert!(figures.header("content-type").unwrap().starts_with("text/plain"), "{figures:?}");
    assert!(figures.text.contains(r#"route="/api/v1/api-keys/{id}""#), "{}", figures.text);
    assert!(figures.text.contains("# HELP http_requests_total"), "{}", figures.text);
    assert!(figures.text.contains("http_request_duration_seconds_bucket"), "{}", figures.text);
    assert!(!figures.text.contains("15550001234"), "{}", figures.text);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn figures_are_for_those_who_run_the_installation(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let key = app.api_key(&owner, "sandbox", &["usage:read"]).await;
    for shown in ["", "x", &owner.access_token, &key, &crate::operators::operator(&app).await] {
        Answer::of(app.get("/metrics").bearer_auth(shown)).await.assert_problem(401, "unauthenticated");
    }
    Answer::of(app.get("/metrics")).await.assert_problem(401, "unauthenticated");
    assert!(app.figures().await.text.contains("http_requests_total"), "the workers' listener");
    app.stop().await;

    let token = "a token for Prometheus";
    let set = |config: &mut control_plane::config::Config| config.http.metrics_token = Some(token.to_owned().into());
    let Some(app) = TestApp::start_with(engine, set).await else { return };
    Answer::of(app.get("/metrics")).await.assert_problem(401, "unauthenticated");
    Answer::of(app.get("/metrics").bearer_auth("a token for Prometheu")).await.assert_problem(401, "unauthenticated");
    let figures = Answer::of(app.get("/metrics").bearer_auth(token)).await;
    assert!(figures.text.contains("http_requests_total"), "{figures:?}");
    app.stop().await;
}
