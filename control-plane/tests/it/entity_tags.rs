//! Entity tags: what is as it was isn't sent again, and nobody overwrites what they haven't seen.

use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};

use crate::harness::{Answer, Engine, Owner, TestApp};

async fn call(app: &TestApp, owner: &Owner, method: Method, path: &str, header: (&str, &str), body: &Value) -> Answer {
    let request = app.request(method, &format!("/api/v1/{path}")).bearer_auth(&owner.access_token);
    let request = if header.0.is_empty() { request } else { request.header(header.0, header.1) };
    Answer::of(if body.is_null() { request } else { request.json(body) }).await
}

async fn get(app: &TestApp, owner: &Owner, path: &str, known: &str) -> Answer {
    let header = if known.is_empty() { ("", "") } else { ("if-none-match", known) };
    call(app, owner, Method::GET, path, header, &Value::Null).await
}

async fn patch(app: &TestApp, owner: &Owner, path: &str, seen: &str, body: &Value) -> Answer {
    let header = if seen.is_empty() { ("", "") } else { ("if-match", seen) };
    call(app, owner, Method::PATCH, path, header, body).await
}

fn tag(answer: &Answer) -> String {
    answer.header("etag").unwrap_or_else(|| panic!("no tag: {answer:?}")).to_owned()
}

/// A session that doesn't run, and a webhook: their paths.
async fn things(app: &TestApp, owner: &Owner) -> [String; 2] {
    let session = json!({"name": "Reception", "network": "sandbox", "start": false});
    let session = call(app, owner, Method::POST, "sessions", ("", ""), &session).await.json();
    let webhook = json!({"url": "https://93.184.216.34/hook", "event_types": ["*"]});
    let webhook = call(app, owner, Method::POST, "webhooks", ("", ""), &webhook).await.json();
    [("sessions", session), ("webhooks", webhook)].map(|(of, made)| format!("{of}/{}", made["id"].as_str().unwrap()))
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_as_it_was_is_not_sent_again(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let [session, webhook] = things(&app, &owner).await;
    for path in [session.as_str(), webhook.as_str(), "tenant", "plan", "plans"] {
        let first = get(&app, &owner, path, "").await;
        assert_eq!((first.status.as_u16(), first.header("content-type")), (200, Some("application/json")), "{path}");
        assert_eq!(first.header("cache-control"), Some("private, no-cache"), "{path}");
        let tag = tag(&first);
        assert!(tag.starts_with('"') && !tag.contains(' '), "strong: {tag}");
        for known in [tag.clone(), format!("\"other\", W/{tag}"), "*".into()] {
            let again = get(&app, &owner, path, &known).await;
            assert_eq!((again.status.as_u16(), again.text.as_str()), (304, ""), "{path}: {again:?}");
            assert_eq!(again.header("etag"), Some(tag.as_str()), "{path}");
            assert!(again.header("x-request-id").is_some(), "{path}");
        }
        assert_eq!(get(&app, &owner, path, "\"other\"").await.json(), first.json(), "{path}");
        // Whose it is comes first.
        if path.contains('/') {
            get(&app, &stranger, path, &tag).await.assert_problem(404, "not-found");
        }
    }
    for (path, change) in [
        (session.as_str(), json!({"name": "Front desk"})),
        (webhook.as_str(), json!({"event_types": ["message.received"]})),
        ("tenant", json!({"name": "Other"})),
    ] {
        let before = tag(&get(&app, &owner, path, "").await);
        assert_eq!(patch(&app, &owner, path, "", &change).await.status, 200, "{path}");
        let after = get(&app, &owner, path, &before).await;
        assert_eq!(after.status, 200, "{path}: {after:?}");
        assert_ne!(tag(&after), before, "{path}");
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_change_what_they_have_seen_the_second_is_told_to_look_again(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let [session, webhook] = things(&app, &owner).await;
    for (path, changes) in [
        (session.as_str(), [json!({"name": "One"}), json!({"settings": {"on_unknown": "hold"}})]),
        (webhook.as_str(), [json!({"event_types": ["message.sent"]}), json!({"status": "disabled"})]),
        ("tenant", [json!({"name": "One"}), json!({"retention_days": 30})]),
    ] {
        let seen = get(&app, &owner, path, "").await;
        let tag_seen = tag(&seen);
        patch(&app, &owner, path, "\"other\"", &changes[0]).await.assert_problem(412, "precondition-failed");
        patch(&app, &owner, path, &format!("W/{tag_seen}"), &changes[0])
            .await
            .assert_problem(412, "precondition-failed");
        assert_eq!(get(&app, &owner, path, "").await.json(), seen.json(), "{path}: nothing was changed");
        // At once: one of them has seen what the other has changed by then.
        let (one, two) = tokio::join!(
            patch(&app, &owner, path, &tag_seen, &changes[0]),
            patch(&app, &owner, path, &tag_seen, &changes[1])
        );
        let mut statuses = [one.status.as_u16(), two.status.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412], "{path}: {one:?} {two:?}");
        let now = tag(&get(&app, &owner, path, "").await);
        assert_eq!(patch(&app, &owner, path, &now, &changes[1]).await.status, 200, "{path}");
        assert_eq!(patch(&app, &owner, path, "*", &changes[0]).await.status, 200, "{path}");
        if path.contains('/') {
            patch(&app, &stranger, path, "*", &changes[0]).await.assert_problem(404, "not-found");
        }
    }
    app.stop().await;
}
