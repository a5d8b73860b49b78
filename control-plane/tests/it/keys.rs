//! API keys.

use control_plane::config::Config;
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use shared::ids::{KeyId, MessageId, SessionId};

use crate::{
    harness::{Answer, Engine, Owner, TestApp},
    parts::eventually,
};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_once_works_in_both_headers_and_ends_when_deleted(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let body = json!({"name": "shop", "network": "whatsapp", "scopes": ["messages:send", "sessions:read"]});
    let made = Answer::of(app.post("/api/v1/api-keys", &body).bearer_auth(&owner.access_token)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let (key, id) = (made.json()["key"].as_str().unwrap().to_owned(), made.json()["id"].as_str().unwrap().to_owned());
    assert!(key.starts_with("sb_live_"));
    assert_eq!(made.json()["last_four"], key[key.len() - 4..]);

    assert_eq!(Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.status, 200);
    assert_eq!(Answer::of(app.get("/api/v1/tenant").header("X-Api-Key", &key)).await.status, 200);

    let list = Answer::of(app.get("/api/v1/api-keys").bearer_auth(&owner.access_token)).await;
    assert_eq!(list.json()["data"][0]["id"], id);
    assert!(!list.text.contains(&key), "the key itself is shown once");

    let path = format!("/api/v1/api-keys/{id}");
    let gone = Answer::of(app.request(Method::DELETE, &path).bearer_auth(&owner.access_token)).await;
    assert_eq!(gone.status, 204, "{gone:?}");
    Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.assert_problem(401, "unauthenticated");
    let again = Answer::of(app.request(Method::DELETE, &path).bearer_auth(&owner.access_token)).await;
    again.assert_problem(404, "not-found");
    let list = Answer::of(app.get("/api/v1/api-keys").bearer_auth(&owner.access_token)).await;
    assert_eq!(list.json(), json!({"data": [], "next_cursor": null}));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_cannot_make_list_or_delete_keys_nor_change_people(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let all = ["sessions:read", "sessions:write", "messages:read", "messages:send", "webhooks", "usage:read"];
    let key = app.api_key(&owner, "whatsapp", &all).await;
    let body = json!({"name": "more", "network": "whatsapp", "scopes": ["messages:send"]});
    let attempts = [
        app.post("/api/v1/api-keys", &body),
        app.get("/api/v1/api-keys"),
        app.request(Method::DELETE, &format!("/api/v1/api-keys/{}", KeyId::new())),
        app.get("/api/v1/me"),
        app.request(Method::PATCH, "/api/v1/me").json(&json!({"name": "Other"})),
        app.request(Method::PATCH, "/api/v1/tenant").json(&json!({"name": "Other"})),
    ];
    for attempt in attempts {
        Answer::of(attempt.bearer_auth(&key)).await.assert_problem(403, "missing-scope");
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM api_keys").await, 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_past_its_time_mistyped_or_unknown_is_refused(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let other = TestApp::start(Engine::Sqlite).await.unwrap();
    let stranger = other.sign_up().await;
    let elsewhere = other.api_key(&stranger, "sandbox", &["sessions:read"]).await;
    let key = app.api_key(&owner, "sandbox", &["sessions:read"]).await;
    let mistyped = format!("{}{}", &key[..key.len() - 1], if key.ends_with('a') { 'b' } else { 'a' });
    for token in [&elsewhere, &mistyped, &key.replace("sb_test_", "sb_live_")] {
        Answer::of(app.get("/api/v1/tenant").bearer_auth(token)).await.assert_problem(401, "unauthenticated");
    }
    assert_eq!(Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.status, 200);
    app.sql("UPDATE api_keys SET expires_at = $1", [(shared::time::Timestamp::now().as_millis() - 1).into()]).await;
    Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.assert_problem(401, "unauthenticated");

    let past = json!({"name": "x", "network": "sandbox", "scopes": ["webhooks"], "expires_at": "2020-01-01T00:00:00Z"});
    let answer = Answer::of(app.post("/api/v1/api-keys", &past).bearer_auth(&owner.access_token)).await;
    answer.assert_problem(422, "validation");
    assert_eq!(answer.pointers(), ["/expires_at"]);
    other.stop().await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_listed_newest_first_in_pages_and_each_tenant_sees_its_own(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    app.api_key(&stranger, "sandbox", &["webhooks"]).await;
    for _ in 0..5 {
        app.api_key(&owner, "sandbox", &["webhooks"]).await;
    }
    let mut seen = Vec::new();
    let mut path = "/api/v1/api-keys?limit=2".to_owned();
    for _ in 0..4 {
        let page = Answer::of(app.get(&path).bearer_auth(&owner.access_token)).await.json();
        seen.extend(page["data"].as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/api/v1/api-keys?limit=2&cursor={cursor}");
    }
    assert_eq!(seen.len(), 5);
    assert!(seen.is_sorted_by(|a, b| a > b), "{seen:?}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn the_last_use_of_a_key_is_written_once_a_minute(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let key = app.api_key(&owner, "sandbox", &["webhooks"]).await;
    let used = async || {
        assert_eq!(Answer::of(app.get("/api/v1/tenant").bearer_auth(&key)).await.status, 200);
        app.count("SELECT COALESCE(last_used_at, 0) FROM api_keys").await
    };
    eventually("the first use is written", async || used().await > 0).await;
    let first = used().await;
    app.sql("UPDATE api_keys SET last_used_at = last_used_at - 60000", []).await;
    eventually("a use after a minute is written", async || used().await > first).await;
    let second = used().await;
    // What is used again and again within the minute is not written again: another key's use, noted later, is.
    let other = app.api_key(&owner, "sandbox", &["webhooks"]).await;
    eventually("a later use is written", async || {
        used().await;
        assert_eq!(Answer::of(app.get("/api/v1/tenant").bearer_auth(&other)).await.status, 200);
        app.count("SELECT COUNT(*) FROM api_keys WHERE last_used_at IS NOT NULL").await == 2
    })
    .await;
    let unchanged = format!("SELECT COUNT(*) FROM api_keys WHERE last_used_at = {second}");
    assert_eq!(app.count(&unchanged).await, 1);
    app.stop().await;
}

async fn make(app: &TestApp, owner: &Owner, body: Value) -> Answer {
    Answer::of(app.post("/api/v1/api-keys", &body).bearer_auth(&owner.access_token)).await
}

async fn session(app: &TestApp, owner: &Owner) -> String {
    let body = json!({"name": "s", "network": "sandbox", "start": false});
    let made = Answer::of(app.post("/api/v1/sessions", &body).bearer_auth(&owner.access_token)).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["id"].as_str().unwrap().to_owned()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_limited_to_sessions_finds_nothing_of_others(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let (mine, other, foreign) =
        (session(&app, &owner).await, session(&app, &owner).await, session(&app, &stranger).await);
    let scopes = ["sessions:read", "sessions:write", "messages:read", "messages:send"];
    let body = |ids: &[&str]| json!({"name": "k", "network": "sandbox", "scopes": scopes, "session_ids": ids});
    let made = make(&app, &owner, body(&[&mine])).await;
    assert_eq!((made.status.as_u16(), &made.json()["session_ids"]), (201, &json!([mine])), "{made:?}");
    let key = made.json()["key"].as_str().unwrap().to_owned();
    for (ids, pointer) in [
        (vec![mine.as_str(), foreign.as_str()], "/session_ids/1"),
        (vec![SessionId::new().as_str()], "/session_ids/0"),
        (vec![], "/session_ids"),
    ] {
        let refused = make(&app, &owner, body(&ids)).await;
        refused.assert_problem(422, "validation");
        assert_eq!(refused.pointers(), [pointer]);
    }
    let real = Answer::of(
        app.post("/api/v1/sessions", &json!({"name": "s", "network": "whatsapp", "start": false}))
            .bearer_auth(&owner.access_token),
    );
    let real = real.await.json()["id"].as_str().unwrap().to_owned();
    let refused = make(&app, &owner, body(&[&mine, &real])).await;
    assert_eq!(refused.pointers(), ["/session_ids/1"], "a key of the sandbox reaches no real session: {refused:?}");
    for scope in ["webhooks", "usage:read"] {
        let wide = json!({"name": "k", "network": "sandbox", "scopes": [scope], "session_ids": [mine]});
        assert_eq!(make(&app, &owner, wide).await.pointers(), ["/scopes"]);
    }

    let insert = "INSERT INTO messages (id, tenant_id, session_id, direction, wa_id, chat, sender, kind, status, \
                  created_at) VALUES ($1, $2, $3, 'inbound', $1, 'c@s.whatsapp.net', 'c@s.whatsapp.net', 'text', \
                  'delivered', 0)";
    let messages = [(MessageId::new(), &mine), (MessageId::new(), &other)];
    for (id, session) in &messages {
        app.sql(insert, [id.as_str().into(), owner.tenant_id.as_str().into(), session.as_str().into()]).await;
    }
    let get = async |path: &str| Answer::of(app.get(path).bearer_auth(&key)).await;
    let ids = |answer: &Answer| -> Vec<String> {
        let json = answer.json();
        json["data"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&get("/api/v1/sessions").await), std::slice::from_ref(&mine));
    assert_eq!(ids(&get("/api/v1/messages").await), [messages[0].0.to_string()]);
    assert_eq!(ids(&get(&format!("/api/v1/messages?session_id={other}")).await), Vec::<String>::new());
    let events = get("/api/v1/events").await.json();
    assert!(events["data"].as_array().unwrap().iter().all(|event| event["session_id"] == mine), "{events}");
    assert_eq!(get(&format!("/api/v1/sessions/{mine}")).await.status, 200);
    let unknown = get(&format!("/api/v1/sessions/{}", SessionId::new())).await;
    unknown.assert_problem(404, "not-found");
    for path in [
        format!("/api/v1/sessions/{other}"),
        format!("/api/v1/sessions/{other}/status"),
        format!("/api/v1/sessions/{other}/qr"),
        format!("/api/v1/messages/{}", messages[1].0),
    ] {
        assert_eq!(get(&path).await.without_request_id(), unknown.without_request_id(), "{path}");
    }
    let send = |to: &str| json!({"session_id": to, "to": "+15550001234", "type": "text", "text": {"body": "x"}});
    let post = async |path: &str, body: Value| Answer::of(app.post(path, &body).bearer_auth(&key)).await;
    post("/api/v1/messages/send", send(&other)).await.assert_problem(404, "not-found");
    post("/api/v1/messages/send", send(&mine)).await.assert_problem(409, "session-not-running");
    for action in ["start", "stop", "restart", "logout"] {
        post(&format!("/api/v1/sessions/{other}/{action}"), json!({})).await.assert_problem(404, "not-found");
    }
    post("/api/v1/sessions", json!({"name": "more"})).await.assert_problem(403, "missing-scope");
    assert_eq!(post(&format!("/api/v1/sessions/{mine}/stop"), json!({})).await.status, 202);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_key_works_from_the_networks_that_it_is_for(#[case] engine: Engine) {
    let behind_proxy = |config: &mut Config| config.http.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let Some(app) = TestApp::start_with(engine, behind_proxy).await else { return };
    let owner = app.sign_up().await;
    let body = |ips: Value| json!({"name": "k", "network": "sandbox", "scopes": ["webhooks"], "allowed_ips": ips});
    let made = make(&app, &owner, body(json!(["203.0.113.9/24", "2001:db8::1", "203.0.113.0/24"]))).await;
    assert_eq!(made.json()["allowed_ips"], json!(["203.0.113.0/24", "2001:db8::1/128"]), "{made:?}");
    let key = made.json()["key"].as_str().unwrap().to_owned();
    let from = async |address: &str| {
        Answer::of(app.get("/api/v1/webhooks").bearer_auth(&key).header("x-forwarded-for", address)).await
    };
    for address in ["203.0.113.1", "203.0.113.255", "8.8.8.8, 203.0.113.7", "::ffff:203.0.113.1", "2001:db8::1"] {
        assert_eq!(from(address).await.status, 200, "{address}");
    }
    let uses = "SELECT COUNT(*) FROM api_keys WHERE last_used_at IS NOT NULL";
    eventually("its use is known", async || app.count(uses).await == 1).await;
    app.sql("UPDATE api_keys SET last_used_at = NULL", []).await;
    app.app().key_cache.forget_all();
    for address in ["203.0.112.255", "203.0.114.0", "203.0.113.7, 8.8.8.8", "2001:db8::2", "nonsense"] {
        from(address).await.assert_problem(403, "address-not-allowed");
    }
    let made = make(&app, &owner, body(json!(["::ffff:198.51.100.0/120"]))).await.json();
    assert_eq!(made["allowed_ips"], json!(["198.51.100.0/24"]));
    let request = app.get("/api/v1/webhooks").bearer_auth(made["key"].as_str().unwrap());
    assert_eq!(Answer::of(request.header("x-forwarded-for", "198.51.100.9")).await.status, 200);
    // Written after those that were refused.
    eventually("the use of the other key is known", async || app.count(uses).await >= 1).await;
    assert_eq!(app.count(uses).await, 1, "who was refused hasn't used it");
    for (ips, pointer) in
        [(json!([]), "/allowed_ips"), (json!(["10.0.0.0/8", "here"]), "/allowed_ips/1"), (json!("::1"), "/allowed_ips")]
    {
        let refused = make(&app, &owner, body(ips)).await;
        refused.assert_problem(422, "validation");
        assert_eq!(refused.pointers(), [pointer]);
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[case::postgres_alone(Engine::PostgresAlone)]
#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_works_on_for_its_overlap_beside_one_like_it(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let session = session(&app, &owner).await;
    let made = make(
        &app,
        &owner,
        json!({"name": "k", "network": "sandbox", "scopes": ["sessions:read"], "session_ids": [session],
               "allowed_ips": ["127.0.0.0/8"], "expires_at": "2100-01-01T00:00:00Z"}),
    )
    .await;
    let (id, old) = (made.json()["id"].as_str().unwrap().to_owned(), made.json()["key"].as_str().unwrap().to_owned());
    let rotate = async |who: &Owner, id: &str, body: Value| {
        Answer::of(app.post(&format!("/api/v1/api-keys/{id}/rotate"), &body).bearer_auth(&who.access_token)).await
    };
    rotate(&stranger, &id, json!({})).await.assert_problem(404, "not-found");
    rotate(&owner, &id, json!({"overlap_seconds": 604_801})).await.assert_problem(422, "validation");
    let rotated = rotate(&owner, &id, json!({"overlap_seconds": 3600})).await;
    assert_eq!(rotated.status, 201, "{rotated:?}");
    let new = rotated.json();
    let (first, second) = (made.json(), new["key"].as_str().unwrap().to_owned());
    for same in ["name", "network", "scopes", "session_ids", "allowed_ips"] {
        assert_eq!(new[same], first[same], "{same}");
    }
    let works = async |key: &str| Answer::of(app.get("/api/v1/sessions").bearer_auth(key)).await.status == 200;
    assert!(works(&old).await && works(&second).await);
    let path = format!("/api/v1/api-keys/{id}");
    let seen = Answer::of(app.get(&path).bearer_auth(&owner.access_token)).await.json();
    assert_eq!(seen["replaced_by"], new["id"]);
    rotate(&owner, &id, json!({})).await.assert_problem(409, "conflict");
    app.sql("UPDATE api_keys SET expires_at = expires_at - 3600000 WHERE id = $1", [id.as_str().into()]).await;
    assert!(!works(&old).await && works(&second).await);

    let id = new["id"].as_str().unwrap();
    let tries = (0..6).map(|_| rotate(&owner, id, json!({"overlap_seconds": 0})));
    let statuses: Vec<_> = futures_util::future::join_all(tries).await.iter().map(|a| a.status.as_u16()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [201, 409].contains(status)), "{statuses:?}");
    assert!(!works(&second).await);
    app.stop().await;
}
