//! The tenant's own account.

use reqwest::Method;
use rstest::rstest;
use serde_json::json;

use crate::harness::{Answer, Engine, TestApp};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn owners_rename_themselves_and_their_tenant_and_nobody_else_s(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    for (path, name) in [("/api/v1/tenant", "Umbrella"), ("/api/v1/me", "Ada King")] {
        let change = app.request(Method::PATCH, path).json(&json!({"name": name}));
        let answer = Answer::of(change.bearer_auth(&owner.access_token)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["name"], name);
        let seen = Answer::of(app.get(path).bearer_auth(&owner.access_token)).await;
        assert_eq!(seen.json(), answer.json());
        let other = Answer::of(app.get(path).bearer_auth(&stranger.access_token)).await;
        assert_ne!(other.json()["name"], name);
    }
    app.stop().await;
}
