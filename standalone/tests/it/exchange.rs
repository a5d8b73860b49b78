//! Two tenants talk with each other, each over a worker of its own.

use std::collections::BTreeMap;

use rstest::rstest;
use serde_json::{Value, json};
use standalone::tour::{api::text, receiver::Receiver};

use crate::{
    postgres::Engine,
    stack::{PATIENCE, Stack, Tenant, until},
};

const MESSAGES: usize = 1_000;

#[rstest]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_on_two_workers_exchange_1000_messages_each_way(#[case] engine: Engine) {
    let Some(mut stack) = Stack::start(engine).await else { return };
    stack.start_other_worker();
    until("both workers have joined", PATIENCE, async || {
        (stack.query("SELECT id FROM workers WHERE good_beats >= 2").await.len() == 2).then_some(())
    })
    .await;
    let ann = stack.tenant_at("15550100041", Some(&stack.receiver)).await;
    let bob = stack.tenant_at("15550100042", Some(&stack.other_receiver)).await;
    let mut holders = stack.query("SELECT DISTINCT worker_id FROM sessions").await;
    holders.sort();
    assert_eq!(holders, ["worker-1", "worker-2"], "each session has a worker of its own");

    let (to_bob, to_ann) = tokio::join!(send_all(&ann, &bob), send_all(&bob, &ann));

    assert_arrived(&to_bob, &bob, &stack.other_receiver).await;
    assert_arrived(&to_ann, &ann, &stack.receiver).await;
    assert_told(&to_bob, &ann, &stack.receiver).await;
    assert_told(&to_ann, &bob, &stack.other_receiver).await;
    let accepted = stack.network.accepted().await.unwrap();
    assert_eq!(accepted.total, accepted.distinct, "WhatsApp saw each id once");
}

/// Sends one message after the other; gives their ids and texts in order.
async fn send_all(from: &Tenant, to: &Tenant) -> Vec<(String, String)> {
    let mut sent = Vec::with_capacity(MESSAGES);
    for n in 1..=MESSAGES {
        let words = format!("{n} of {MESSAGES} from {}", from.phone);
        let body = json!({
            "session_id": from.session,
            "to": format!("+{}", to.phone),
            "type": "text",
            "text": { "body": words },
        });
        let answer = from.api.post("messages/send", body).await.unwrap();
        sent.push((text(&answer, "/id").unwrap(), words));
    }
    sent
}

/// Every message is in the recipient's history once, in order, and at its endpoint.
async fn assert_arrived(sent: &[(String, String)], at: &Tenant, receiver: &Receiver) {
    let words: Vec<&str> = sent.iter().map(|(_, words)| words.as_str()).collect();
    until("every message is in history", PATIENCE * 2, async || {
        (at.texts("inbound").await.len() >= sent.len()).then_some(())
    })
    .await;
    let mut history = at.texts("inbound").await;
    // History shows the newest first.
    history.reverse();
    assert_eq!(history, words, "all once, in order");

    let received = until("every message is at the endpoint", PATIENCE * 2, async || {
        let received = by_position(receiver, "message.received");
        (received.len() >= sent.len()).then_some(received)
    })
    .await;
    let told: Vec<&str> = received.values().map(|event| event["data"]["text"]["body"].as_str().unwrap()).collect();
    assert_eq!(told, words, "one event each, in order");
}

/// The sender is told `sent`, `delivered`, `read` of each message, in this order.
async fn assert_told(sent: &[(String, String)], by: &Tenant, receiver: &Receiver) {
    // Deliveries are not ordered: the last `read` can be here before a `delivered`.
    until("all three are told of every message", PATIENCE * 2, async || {
        (by_position(receiver, "message.status").len() >= 3 * sent.len()).then_some(())
    })
    .await;
    let mut said = BTreeMap::<String, Vec<String>>::new();
    for event in by_position(receiver, "message.status").values() {
        said.entry(text(event, "/data/message_id").unwrap()).or_default().push(text(event, "/data/status").unwrap());
    }
    for (id, words) in sent {
        assert_eq!(said[id], ["sent", "delivered", "read"], "{words}");
    }
    let mut outbound = by.texts("outbound").await;
    outbound.reverse();
    assert!(outbound.iter().eq(sent.iter().map(|(_, words)| words)), "the sender's history: all once, in order");
}

/// Events of a type that the receiver verified, in commit order; a delivery that came twice counts once.
fn by_position(receiver: &Receiver, kind: &str) -> BTreeMap<i64, Value> {
    receiver
        .events()
        .into_iter()
        .filter(|event| event["type"] == kind)
        .map(|event| (event["position"].as_i64().unwrap(), event))
        .collect()
}
