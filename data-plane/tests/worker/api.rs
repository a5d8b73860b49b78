//! The internal API's refusals.

use reqwest::Method;
use shared::wire::session::{Network, SecretText};

use crate::world::{World, item};

fn problem(refused: (u16, serde_json::Value)) -> (u16, String) {
    (refused.0, refused.1["type"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_control_plane_is_obeyed() {
    let world = World::new().await;
    let worker = world.worker("w1").await;
    let http = reqwest::Client::new();
    let url = format!("http://{}/v1/sessions", worker.addr());
    let other = world.plane.token(&"another-worker".parse().unwrap());
    let stranger =
        shared::identity::SigningKey::generate().unwrap().token_for_worker(worker.id(), chrono::Utc::now()).unwrap();
    for request in [
        http.get(&url),
        http.get(&url).bearer_auth("nonsense"),
        http.get(&url).bearer_auth(other),
        http.get(&url).bearer_auth(stranger),
    ] {
        let reply = request.send().await.unwrap();
        assert_eq!(reply.status(), 401);
        assert_eq!(reply.json::<serde_json::Value>().await.unwrap()["type"], "/problems/unauthorized");
    }
    let good = http.get(&url).bearer_auth(world.plane.token(worker.id())).send().await.unwrap();
    assert_eq!(good.json::<serde_json::Value>().await.unwrap(), serde_json::json!({ "sessions": [] }));
    for path in ["livez", "readyz", "v1/identity"] {
        let reply = http.get(format!("http://{}/{path}", worker.addr())).send().await.unwrap();
        assert_eq!(reply.status(), 200, "{path}");
    }
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_order_is_refused_with_a_problem_and_changes_nothing() {
    let world = World::new().await;
    let worker = world.worker("w1").await;
    let mut order = world.order();
    order.network = Network::Whatsapp;
    let refused = world.try_put(worker.id(), &order).await.err().unwrap();
    assert_eq!(problem(refused), (422, "/problems/network-mismatch".into()));
    order.network = Network::Sandbox;
    order.session_key = SecretText::new("not a key".into());
    let refused = world.try_put(worker.id(), &order).await.err().unwrap();
    assert_eq!(problem(refused), (422, "/problems/malformed".into()));

    let path = format!("/v1/sessions/{}", order.session_id);
    for (method, path, body, expected) in [
        (Method::PUT, path.as_str(), serde_json::json!({}), (422, "/problems/malformed")),
        (Method::PUT, "/v1/sessions/nonsense", serde_json::json!({}), (404, "/problems/not-found")),
        (Method::GET, path.as_str(), serde_json::json!({}), (404, "/problems/not-found")),
        (Method::DELETE, path.as_str(), serde_json::json!({}), (405, "/problems/method-not-allowed")),
        (Method::GET, "/v2", serde_json::json!({}), (404, "/problems/not-found")),
        (Method::PUT, path.as_str(), serde_json::json!("x".repeat(5 << 20)), (413, "/problems/too-large")),
    ] {
        let refused = world.plane.ask::<serde_json::Value>(worker.id(), method, path, Some(body)).await.unwrap_err();
        assert_eq!(problem(refused), (expected.0, expected.1.to_owned()), "{path}");
    }
    let sessions: serde_json::Value = world.plane.ask(worker.id(), Method::GET, "/v1/sessions", None).await.unwrap();
    assert_eq!(sessions["sessions"], serde_json::json!([]));
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_another_generation_is_told_ours() {
    let world = World::new().await;
    let worker = world.worker("w1").await;
    let mut order = world.order();
    order.generation = 7;
    world.put(worker.id(), &order).await;
    let mut older = order.clone();
    older.generation = 6;
    let refused = world.try_put(worker.id(), &older).await.err().unwrap();
    assert_eq!(refused.1["generation"], 7);
    assert_eq!(problem(refused), (409, "/problems/generation-mismatch".into()));

    let batch = shared::wire::send::SendBatch { generation: 8, items: vec![item("15550001111", "x")], wait_ms: 0 };
    let path = format!("/v1/sessions/{}/send", order.session_id);
    let refused = world
        .plane
        .ask::<serde_json::Value>(worker.id(), Method::POST, &path, Some(serde_json::to_value(batch).unwrap()))
        .await
        .unwrap_err();
    assert_eq!(refused.1["generation"], 7);
    assert_eq!(problem(refused), (409, "/problems/generation-mismatch".into()));
    worker.shutdown().await;
}
