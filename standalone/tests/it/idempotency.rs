//! Many callers with one idempotency key, over two replicas of the control plane: one effect, and one answer for all.

use std::time::Duration;

use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    postgres::Engine,
    stack::{PATIENCE, Stack, until},
};

const CALLERS: usize = 64;

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn identical_posts_under_one_key_have_one_answer_and_one_effect(#[case] engine: Engine) {
    let Some(mut stack) = Stack::start(engine).await else { return };
    let mut replicas = vec![stack.base()];
    // A file of SQLite belongs to one process.
    if engine == Engine::Postgres {
        replicas.push(stack.start_other_control_plane().await);
    }
    let friend = "15550100062";
    stack.network.new_phone(friend, "Friend", None).await.unwrap();
    let tenant = stack.tenant("15550100061", false).await;
    let key = tenant.api.credentials().unwrap();

    let words = "once, whoever asks";
    let message = json!({
        "session_id": tenant.session,
        "to": format!("+{friend}"),
        "type": "text",
        "text": { "body": words },
    });
    all_at_once(&replicas, key, "messages/send", &message).await;
    until("the message is on the phone", PATIENCE, async || {
        let messages = stack.network.messages(friend).await.unwrap();
        messages.iter().any(|message| message.text == words).then_some(())
    })
    .await;
    // Another one goes the same way: had there been more of the first, they would have come before it.
    let last = "and no more";
    let other = json!({
        "session_id": tenant.session,
        "to": format!("+{friend}"),
        "type": "text",
        "text": { "body": last },
    });
    tenant.api.post("messages/send", other).await.unwrap();
    until("the last message is on the phone", PATIENCE, async || {
        let messages = stack.network.messages(friend).await.unwrap();
        messages.iter().any(|message| message.text == last).then_some(())
    })
    .await;
    let texts: Vec<_> = stack.network.messages(friend).await.unwrap().into_iter().map(|message| message.text).collect();
    assert_eq!(texts, [words, last], "one message at the phone");
    assert_eq!(tenant.texts("outbound").await, [last, words], "and one in history");

    all_at_once(&replicas, key, "sessions", &json!({ "name": "Only one", "start": false })).await;
    let sessions = tenant.api.get("sessions").await.unwrap();
    let made = sessions["data"].as_array().unwrap().iter().filter(|session| session["name"] == "Only one").count();
    assert_eq!(made, 1);
}

/// Every caller asks until it is answered. All answers are the same to the byte, and one of them is the first.
async fn all_at_once(replicas: &[String], key: &str, path: &str, body: &Value) {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
    let begun = Instant::now();
    let callers = (0..CALLERS).map(|caller| {
        let url = format!("{}/api/v1/{path}", replicas[caller % replicas.len()]);
        let request = http.post(url).bearer_auth(key).header("Idempotency-Key", format!("one-{path}")).json(body);
        tokio::spawn(async move {
            let mut in_flight = 0;
            loop {
                let answer = request.try_clone().unwrap().send().await.unwrap();
                let status = answer.status().as_u16();
                let replayed = answer.headers().contains_key("idempotent-replayed");
                let patience = answer.headers().contains_key("retry-after");
                let bytes = answer.bytes().await.unwrap();
                if status != 409 {
                    return (status, replayed, bytes, in_flight);
                }
                let problem: Value = serde_json::from_slice(&bytes).unwrap();
                assert_eq!(problem["type"], "/problems/idempotency-in-flight");
                assert!(patience, "it says when to ask again");
                assert!(begun.elapsed() < PATIENCE, "the first request never ends");
                in_flight += 1;
                sleep(Duration::from_millis(20)).await;
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    let mut answers = Vec::new();
    for caller in callers {
        answers.push(caller.await.unwrap());
    }
    let (status, _, bytes, _) = answers[0].clone();
    assert!((200..300).contains(&status), "{path}: {status} {bytes:?}");
    assert!(answers.iter().all(|answer| answer.0 == status && answer.2 == bytes), "{path}: {answers:?}");
    assert_eq!(answers.iter().filter(|answer| !answer.1).count(), 1, "{path}: one made it, the others were told");
    let waited: usize = answers.iter().map(|answer| answer.3).sum();
    println!("{path}: {CALLERS} equal answers of {} bytes, {waited} times 409 before", bytes.len());
}
