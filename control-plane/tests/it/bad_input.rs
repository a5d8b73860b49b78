//! What callers get wrong: a problem document of a stable type each, never a 500, and nothing changed.

use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use shared::ids::{KeyId, SessionId};

use crate::harness::{Answer, Engine, TestApp};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_cannot_be_right_is_told_what_is_wrong_with_it(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let send = async |content_type: &str, body: Vec<u8>| {
        let request = app.request(Method::POST, "/api/v1/api-keys").bearer_auth(&owner.access_token);
        Answer::of(request.header("content-type", content_type).body(body)).await
    };
    let json_type = "application/json";
    for broken in ["", "{", "{\"name\":}", "nope", "{\"name\": \"a\"} trailing", "\u{feff}{}"] {
        send(json_type, broken.into()).await.assert_problem(400, "malformed-json");
    }
    for twice in [
        r#"{"name": "a", "network": "sandbox", "scopes": ["webhooks"], "name": "b"}"#,
        r#"{"name": "a", "network": "sandbox", "scopes": ["webhooks"], "n\u0061me": "b"}"#,
    ] {
        let answer = send(json_type, twice.into()).await;
        answer.assert_problem(400, "malformed-json");
        assert!(answer.json()["detail"].as_str().unwrap().contains("a name that the object has already"), "{answer:?}");
    }
    send(json_type, vec![b'"', 0xff, b'"']).await.assert_problem(400, "malformed-json");
    send(json_type, "[".repeat(100_000).into()).await.assert_problem(400, "malformed-json");
    for other in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/xml"] {
        send(other, b"{}".to_vec()).await.assert_problem(415, "unsupported-media-type");
    }
    let compressed = app.request(Method::POST, "/api/v1/api-keys").header("content-encoding", "gzip");
    let compressed = compressed.bearer_auth(&owner.access_token).header("content-type", json_type).body("{}");
    let answer = Answer::of(compressed).await;
    answer.assert_problem(415, "unsupported-media-type");
    assert_eq!(answer.header("accept-encoding"), Some("identity"));
    let typed =
        |name: Value, network: Value, scopes: Value| json!({"name": name, "network": network, "scopes": scopes});
    let good = json!(["webhooks"]);
    for (body, pointers) in [
        (json!([]), vec![""]),
        (json!("text"), vec![""]),
        (json!(null), vec![""]),
        (json!({}), vec!["/name"]),
        (typed(json!(1), json!("sandbox"), good.clone()), vec!["/name"]),
        (typed(json!("n"), json!("telegram"), good.clone()), vec!["/network"]),
        (typed(json!("n"), json!("sandbox"), json!(["webhooks", "root"])), vec!["/scopes/1"]),
        (typed(json!("n"), json!("sandbox"), json!("webhooks")), vec!["/scopes"]),
        (typed(json!(""), json!("sandbox"), json!([])), vec!["/name", "/scopes"]),
        (typed(json!("n".repeat(101)), json!("sandbox"), good.clone()), vec!["/name"]),
        (typed(json!("nul \u{0}"), json!("sandbox"), good.clone()), vec!["/name"]),
        (json!({"name": "n", "network": "sandbox", "scopes": ["webhooks"], "more": 1}), vec!["/more"]),
        (json!({"name": "n", "network": "sandbox", "scopes": ["webhooks"], "expires_at": "soon"}), vec!["/expires_at"]),
        (json!({"name": "n", "network": "sandbox", "scopes": ["webhooks"], "expires_at": 5}), vec!["/expires_at"]),
    ] {
        let answer = send(json_type, body.to_string().into_bytes()).await;
        answer.assert_problem(422, "validation");
        assert_eq!(answer.pointers(), pointers, "{body} {answer:?}");
    }
    // Fields in a row are no object, though the derived reader would take them for one.
    let in_a_row = json!(["n", "sandbox", ["webhooks"], null, null, null]);
    let answer = send(json_type, in_a_row.to_string().into_bytes()).await;
    answer.assert_problem(422, "validation");
    assert_eq!(answer.json()["errors"], json!([{"pointer": "", "code": "type", "detail": "must be an object"}]));
    assert_eq!(app.count("SELECT COUNT(*) FROM api_keys").await, 0, "nothing was made");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_are_refused_with_their_limit(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let body = format!("{{\"name\": \"{}\"}}", "n".repeat(10 << 20));
    let announced =
        app.request(Method::PATCH, "/api/v1/tenant").header("content-type", "application/json").body(body.clone());
    let answer = Answer::of(announced.bearer_auth(&owner.access_token)).await;
    answer.assert_problem(413, "body-too-large");
    assert!(answer.json()["detail"].as_str().unwrap().contains("1048576"), "{answer:?}");
    // Without a length: the limit counts what comes.
    let chunks: Vec<Result<_, std::io::Error>> =
        body.as_bytes().chunks(64 << 10).map(|part| Ok(part.to_vec())).collect();
    let chunked = app
        .request(Method::POST, "/api/v1/auth/login")
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(futures_util::stream::iter(chunks)));
    Answer::of(chunked).await.assert_problem(413, "body-too-large");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn sign_up_tells_every_field_and_repeats_no_password(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let body = json!({"email": "not an address", "password": "short", "name": "", "tenant_name": "t".repeat(101)});
    let answer = Answer::of(app.post("/api/v1/auth/signup", &body)).await;
    answer.assert_problem(422, "validation");
    assert_eq!(answer.pointers(), ["/email", "/name", "/password", "/tenant_name"]);
    assert!(!answer.text.contains("short"), "{answer:?}");
    let typed = json!({"email": "a@example.com", "password": 424_242_424_242_u64, "name": "n", "tenant_name": "t"});
    let answer = Answer::of(app.post("/api/v1/auth/signup", &typed)).await;
    answer.assert_problem(422, "validation");
    assert_eq!(answer.pointers(), ["/password"]);
    assert!(!answer.text.contains("424242"), "{answer:?}");
    assert_eq!(app.count("SELECT COUNT(*) FROM users").await, 0);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_cannot_be_read_names_the_parameter(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    for (query, parameter) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=many", "limit"),
        ("limit=99999999999999999999999", "limit"),
        ("cursor=%00", "cursor"),
        ("cursor=nonsense", "cursor"),
        ("cursor=c2VzXzAxaDQ1NXZiNHBleDV2c2tuazA4NHNuMDJx", "cursor"),
    ] {
        let answer = Answer::of(app.get(&format!("/api/v1/api-keys?{query}")).bearer_auth(&owner.access_token)).await;
        answer.assert_problem(400, "bad-request");
        assert_eq!(answer.pointers(), [parameter], "{query}");
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn another_tenant_s_id_is_answered_byte_for_byte_as_an_unknown_one(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    app.api_key(&stranger, "sandbox", &["webhooks"]).await;
    let theirs = Answer::of(app.get("/api/v1/api-keys").bearer_auth(&stranger.access_token)).await.json();
    let theirs = theirs["data"][0]["id"].as_str().unwrap().to_owned();
    let unknown = KeyId::new().to_string();
    let other_kind = SessionId::new().to_string();
    let delete = async |id: &str| {
        let request = app.request(Method::DELETE, &format!("/api/v1/api-keys/{id}"));
        Answer::of(request.bearer_auth(&owner.access_token)).await
    };
    let expected = delete(&unknown).await;
    expected.assert_problem(404, "not-found");
    for id in [&theirs, &other_kind, "nonsense", "%00", "%ff", "key_", "..%2f"] {
        let answer = delete(id).await;
        assert_eq!(answer.without_request_id(), expected.without_request_id(), "{id}");
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM api_keys WHERE revoked_at IS NULL").await, 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_problems_too(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    for path in ["/", "/api/v1/nothing", "/api/v2/tenant", "/api/v1/tenant/"] {
        Answer::of(app.get(path)).await.assert_problem(404, "not-found");
    }
    for (method, path) in
        [(Method::PUT, "/api/v1/tenant"), (Method::GET, "/api/v1/auth/login"), (Method::DELETE, "/livez")]
    {
        let answer = Answer::of(app.request(method, path)).await;
        answer.assert_problem(405, "method-not-allowed");
        assert!(answer.header("allow").is_some(), "{answer:?}");
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_is_taken_over_if_it_can_be_and_made_if_not(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let given = Answer::of(app.get("/api/v1/tenant").header("x-request-id", "order-4711")).await;
    given.assert_problem(401, "unauthenticated");
    assert_eq!(given.header("x-request-id"), Some("order-4711"));
    for bad in ["", "with space", "ünicode", &"x".repeat(129)] {
        let answer = Answer::of(app.get("/livez").header("x-request-id", bad.as_bytes())).await;
        assert_eq!(answer.status, 200);
        let made = answer.header("x-request-id").unwrap();
        assert!(made.parse::<uuid::Uuid>().is_ok(), "{made}");
    }
    assert!(Answer::of(app.get("/livez")).await.header("x-request-id").is_some());
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn the_two_listeners_serve_their_own_callers_only(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let internal = app.internal_url();
    let api = app.http.get(format!("{internal}/api/v1/tenant")).bearer_auth(&owner.access_token);
    Answer::of(api).await.assert_problem(404, "not-found");
    let worker_call = app.post("/internal/v1/events", &json!({}));
    Answer::of(worker_call.bearer_auth(&owner.access_token)).await.assert_problem(404, "not-found");
    // A person's token names no worker as its issuer.
    let events = app.http.post(format!("{internal}/internal/v1/events")).json(&json!({}));
    Answer::of(events.bearer_auth(&owner.access_token)).await.assert_problem(410, "worker-unknown");
    let nobody = app.http.post(format!("{internal}/internal/v1/events")).json(&json!({}));
    Answer::of(nobody).await.assert_problem(401, "unauthenticated");
    let wrong_method = app.http.delete(format!("{internal}/internal/v1/jwks"));
    Answer::of(wrong_method).await.assert_problem(405, "method-not-allowed");
    app.stop().await;
}
