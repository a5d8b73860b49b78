//! The OpenAPI document says what the server does, and the checked-in copies are current.

use std::path::Path;

use control_plane::{app, auth::permissions, cli, error::Kind};
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};

use crate::harness::{Answer, Engine, TestApp};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

fn document() -> Value {
    serde_json::to_value(app::document()).unwrap()
}

/// Method, path and description of each operation.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in METHODS {
            if let Some(operation) = item.get(method) {
                found.push((method.to_uppercase(), path.clone(), operation.clone()));
            }
        }
    }
    assert!(found.len() >= 10, "{}", found.len());
    found
}

/// A path with something in place of its parameters.
fn filled(path: &str) -> String {
    path.split('/')
        .map(|part| if part.starts_with('{') { "ses_01h455vb4pex5vsknk084sn02q" } else { part })
        .collect::<Vec<_>>()
        .join("/")
}

fn checked_in(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(root.join(path)).unwrap_or_default()
}

#[test]
fn openapi_document_is_current() {
    assert!(
        checked_in("openapi/control-plane.json") == cli::openapi_document().unwrap(),
        "openapi/control-plane.json has drifted from the routes: run `make openapi`"
    );
}

#[test]
fn errors_document_is_current() {
    assert!(
        checked_in("docs/errors.md") == cli::errors_document(),
        "docs/errors.md has drifted from the registry of problems: run `make openapi`"
    );
}

#[test]
fn roles_document_is_current() {
    assert!(
        checked_in("docs/roles.md") == permissions::document(),
        "docs/roles.md has drifted from the table of permissions: run `make openapi`"
    );
}

#[test]
fn every_operation_is_documented_whole() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let what = format!("{method} {path}");
        for word in ["operationId", "summary"] {
            assert!(operation[word].as_str().is_some_and(|text| !text.is_empty()), "{what}: {word}");
        }
        assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{what}: one tag");
        let security = operation["security"].as_array().unwrap_or_else(|| panic!("{what}: security"));
        assert!(!security.is_empty(), "{what}: security");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('2')), "{what}: a success");
        let mut needed = vec!["400", "500", "503"];
        if security.iter().any(|scheme| scheme.get("person").is_some() || scheme.get("api_key").is_some()) {
            needed.extend(["401", "403"]);
        }
        if security.iter().any(|scheme| scheme.get("operator").is_some()) {
            assert!(path.starts_with("/api/v1/admin/") || path == "/health/detailed", "{what}");
            needed.push("401");
        }
        if security.iter().any(|scheme| scheme.get("metrics_token").is_some()) {
            needed.push("401");
        }
        if path.contains('{') {
            needed.push("404");
        }
        if let Some(body) = operation.get("requestBody") {
            let content = &body["content"]["application/json"];
            assert!(content.get("example").or(content.get("examples")).is_some(), "{what}: an example");
            needed.extend(["413", "415", "422"]);
        }
        for status in needed {
            let content = &responses.get(status).unwrap_or_else(|| panic!("{what}: {status}"))["content"];
            assert!(content.get("application/problem+json").is_some(), "{what}: {status} is a problem document");
        }
        for (status, response) in responses {
            assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{what}: {status}");
        }
    }
}

#[test]
fn operation_ids_and_problem_types_are_unique() {
    let document = document();
    let mut ids: Vec<_> =
        operations(&document).iter().map(|(_, _, operation)| operation["operationId"].to_string()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
    let mut slugs: Vec<_> = Kind::ALL.iter().map(|kind| kind.slug()).collect();
    slugs.sort_unstable();
    slugs.dedup();
    assert_eq!(slugs.len(), Kind::ALL.len());
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_scopes_are_the_ones_that_are_asked_for(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let all = ["sessions:read", "sessions:write", "messages:read", "messages:send", "webhooks", "usage:read"];
    for (method, path, operation) in operations(&document()) {
        let method: Method = method.parse().unwrap();
        let what = format!("{method} {path}");
        let security = operation["security"].as_array().unwrap();
        let of = |scheme: &str| security.iter().find_map(|entry| entry.get(scheme)).cloned();
        let nobody = Answer::of(app.request(method.clone(), &filled(&path))).await;
        if security.iter().any(|entry| entry.as_object().is_some_and(serde_json::Map::is_empty)) {
            assert_ne!(nobody.status, 401, "{what} is open to all in the document");
            continue;
        }
        nobody.assert_problem(401, "unauthenticated");
        let garbage = app.request(method.clone(), &filled(&path)).bearer_auth("garbage");
        Answer::of(garbage).await.assert_problem(401, "unauthenticated");
        if of("operator").is_some() || of("metrics_token").is_some() {
            let key = app.api_key(&owner, "sandbox", &all).await;
            for stranger in [&owner.access_token, &key] {
                let answer = Answer::of(app.request(method.clone(), &filled(&path)).bearer_auth(stranger)).await;
                answer.assert_problem(401, "unauthenticated");
            }
            continue;
        }
        assert!(of("person").is_some(), "{what}: people can do what keys can");
        let Some(scopes) = of("api_key") else {
            let key = app.api_key(&owner, "sandbox", &all).await;
            let answer = Answer::of(app.request(method, &filled(&path)).bearer_auth(&key)).await;
            answer.assert_problem(403, "missing-scope");
            continue;
        };
        assert_eq!(of("api_key_header"), Some(scopes.clone()), "{what}: a key works in both headers");
        for scope in scopes.as_array().unwrap() {
            let others: Vec<_> = all.into_iter().filter(|other| scope != other).collect();
            let key = app.api_key(&owner, "sandbox", &others).await;
            let answer = Answer::of(app.request(method.clone(), &filled(&path)).bearer_auth(&key)).await;
            answer.assert_problem(403, "missing-scope");
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(scope.as_str().unwrap()), "{what}: {detail}");
        }
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn no_operation_answers_rubbish_with_a_5xx_or_something_undocumented(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let bodies = [
        None,
        Some("{".to_owned()),
        Some("[]".to_owned()),
        Some("{}".to_owned()),
        Some(json!({"name": "\u{0}"}).to_string()),
        Some("\"\\ud800\"".to_owned()),
        Some(json!({"name": 1e308, "url": [], "to": {}, "session_id": -1, "email": true}).to_string()),
    ];
    for (method, path, operation) in operations(&document()) {
        for query in ["", "?limit=x&cursor=%00&status=%ff&session_id=nope&from=never&meter=love&granularity=blink"] {
            for (index, body) in bodies.iter().enumerate() {
                let path = format!("{}{query}", filled(&path));
                let mut request = app.request(method.parse().unwrap(), &path).bearer_auth(&owner.access_token);
                if let Some(body) = body {
                    request = request.header("content-type", "application/json").body(body.clone());
                }
                let answer = Answer::of(request).await;
                let what = format!("{method} {path} with body {index}: {answer:?}");
                assert!(!answer.status.is_server_error(), "{what}");
                assert!(operation["responses"].get(answer.status.as_str()).is_some(), "undocumented: {what}");
                if answer.status.is_client_error() {
                    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{what}");
                    let known = Kind::ALL.iter().any(|kind| answer.json()["type"] == kind.uri());
                    assert!(known, "{what}");
                }
            }
        }
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn swagger_and_the_document_are_served(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let served = Answer::of(app.get("/openapi.json")).await;
    assert_eq!(served.json(), document());
    let page = Answer::of(app.get("/docs/")).await;
    assert_eq!(page.status, 200);
    assert!(page.text.contains("swagger-ui"), "{}", page.text);
    assert_eq!(Answer::of(app.get("/docs/swagger-ui-bundle.js")).await.status, 200);
    app.stop().await;
}
