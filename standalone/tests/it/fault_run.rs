//! Traffic both ways while a seeded plan hurts stanzas and cuts sockets. Afterwards everything must be there, and every repeat
//! accounted for.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use rstest::rstest;
use serde_json::json;
use standalone::tour::api::text;

use crate::{
    postgres::Engine,
    stack::{Stack, Tenant, until},
};

/// How long what was hurt may take to heal once the plan has ended.
const HEALING: Duration = Duration::from_secs(180);

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn hurt_stanzas_and_cut_sockets_lose_nothing(#[values(1, 2, 3)] seed: u64) {
    run(Engine::Sqlite, seed, 12, 8).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make chaos"]
async fn chaos_a_minute_of_hurt_stanzas_and_cut_sockets_with_50_sessions_loses_nothing(#[case] engine: Engine) {
    run(engine, 60, 50, 60).await;
}

async fn run(engine: Engine, seed: u64, sessions: usize, seconds: usize) {
    let Some(stack) = Stack::start(engine).await else { return };
    let api = stack.owner("fault-run", None).await;
    let tenants = join_all((0..sessions).map(|n| stack.session(&api, format!("1555020{n:04}")))).await;
    let friends: Vec<String> = (0..sessions).map(|n| format!("1555021{n:04}")).collect();
    for friend in &friends {
        stack.network.new_phone(friend, "Friend", None).await.unwrap();
    }

    // 3 % of what is no query.
    let plan = json!({ "seed": seed, "drop": 10, "delay": 5, "duplicate": 5, "cut": 10, "longest_delay_ms": 300 });
    stack.network.plan_faults(&plan).await.unwrap();
    let traffic = tenants.iter().zip(&friends).map(|(tenant, friend)| both_ways(&stack, tenant, friend, seconds));
    let traffic = join_all(traffic).await;
    let counts = stack.network.end_fault_plan().await.unwrap();
    // What was dropped on its way down comes with the next connection.
    for tenant in &tenants {
        let device = format!("{}:1@s.whatsapp.net", tenant.phone);
        // One that is between two connections has a next one anyway.
        drop(stack.network.hurt(&device, "fault", &json!({ "kind": "eof" })).await);
    }

    let mut repeats = 0;
    let mut extra_tries = 0;
    for ((tenant, friend), (sent, written)) in tenants.iter().zip(&friends).zip(&traffic) {
        let (repeated, tried) = check(&stack, tenant, friend, sent, written).await;
        repeats += repeated;
        extra_tries += tried;
    }
    assert!(repeats <= extra_tries, "{repeats} repeats, and only {extra_tries} tries whose outcome wasn't known");
    let (out, inbound) = traffic.iter().fold((0, 0), |(out, inbound), (a, b)| (out + a.len(), inbound + b.len()));
    println!(
        "{engine:?}, seed {seed}, {sessions} sessions, {seconds} s: {out} sent and {inbound} received, 0 missing, 0 twice in \
         history; hurt: {counts}; repeats at WhatsApp {repeats}, tries whose outcome wasn't known {extra_tries}"
    );
    let hurt = |what: &str| counts[what].as_u64().unwrap();
    let dropped = hurt("dropped_up") + hurt("dropped_down") + hurt("dropped_acks");
    let slowed = hurt("delayed") + hurt("duplicated");
    assert!(hurt("cuts") > 0 && dropped > 0 && slowed > 0, "nothing was hurt: {counts}");
}

/// One text a second out, two in. Gives the ids with texts that were sent, and the texts that were written.
async fn both_ways(
    stack: &Stack,
    tenant: &Tenant,
    friend: &str,
    seconds: usize,
) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let (mut sent, mut written) = (BTreeMap::new(), BTreeSet::new());
    let mut every = tokio::time::interval(Duration::from_secs(1));
    for second in 0..seconds {
        // Not a wait for something to happen: this is the rate.
        every.tick().await;
        let words = format!("in {second}");
        stack.network.write(friend, &tenant.phone, &words, 2, None).await.unwrap();
        written.extend((1..=2).map(|n| format!("{words} #{n}")));
        let words = format!("out {second}");
        let body = json!({
            "session_id": tenant.session, "to": format!("+{friend}"), "type": "text", "text": { "body": words },
        });
        let answer = tenant.api.post("messages/send", body).await.unwrap();
        sent.insert(text(&answer, "/id").unwrap(), words);
    }
    (sent, written)
}

/// Checks one session; gives how often WhatsApp accepted an id again, and how many tries there were beyond the first ones.
async fn check(
    stack: &Stack,
    tenant: &Tenant,
    friend: &str,
    sent: &BTreeMap<String, String>,
    written: &BTreeSet<String>,
) -> (usize, usize) {
    let inbound = until("every message that was written is in history", HEALING, async || {
        let texts = tenant.texts("inbound").await;
        (texts.iter().collect::<BTreeSet<_>>().len() >= written.len()).then_some(texts)
    })
    .await;
    assert_eq!(inbound.len(), written.len(), "each once");
    assert_eq!(&inbound.into_iter().collect::<BTreeSet<_>>(), written);

    until("every message that was sent is acknowledged", HEALING, async || {
        let query = format!(
            "SELECT id FROM messages WHERE session_id = '{}' AND direction = 'outbound' AND status \
             NOT IN ('sent', 'delivered', 'read', 'played')",
            tenant.session
        );
        stack.query(&query).await.is_empty().then_some(())
    })
    .await;
    let at_phone = until("the phone has them all", HEALING, async || {
        let texts: BTreeSet<_> =
            stack.network.messages(friend).await.unwrap().into_iter().map(|message| message.text).collect();
        (texts.len() >= sent.len()).then_some(texts)
    })
    .await;
    assert_eq!(at_phone, sent.values().cloned().collect());

    let known = stack
        .query(&format!(
            "SELECT wa_id || ' ' || CAST(tries AS TEXT) FROM messages WHERE session_id = '{}' AND direction = 'outbound'",
            tenant.session
        ))
        .await;
    // By the journal, not the message: a receipt that comes late may say that it was sent before a try that it didn't stop.
    let acknowledged: BTreeMap<String, i64> = stack
        .query_store(&format!(
            "SELECT wa_id || ' ' || CAST(acked_at AS TEXT) FROM journal WHERE session_id = '{}' AND acked_at IS NOT NULL",
            tenant.session
        ))
        .await
        .iter()
        .map(|row| row.split_once(' ').unwrap())
        .map(|(wa_id, at)| (wa_id.to_owned(), at.parse().unwrap()))
        .collect();
    let accepted = stack.network.accepted_of(&format!("{}:1@s.whatsapp.net", tenant.phone)).await.unwrap();
    let mut times = BTreeMap::<&str, Vec<i64>>::new();
    for entry in accepted.iter().filter(|entry| entry["category"].is_null()) {
        times.entry(entry["id"].as_str().unwrap()).or_default().push(entry["at"].as_i64().unwrap());
    }
    let (mut repeats, mut extra) = (0, 0);
    for (wa_id, tries) in known.iter().map(|row| row.split_once(' ').unwrap()) {
        let tries: usize = tries.parse().unwrap();
        let times = &times[wa_id];
        assert!(times.len() <= tries, "WhatsApp accepted an id {} times in {tries} tries", times.len());
        if let Some(acknowledged) = acknowledged.get(wa_id) {
            // WhatsApp tells the time in seconds.
            let late = times.iter().filter(|at| **at > acknowledged + 1_999).count();
            assert_eq!(late, 0, "an id was sent again after its acknowledgement had been recorded");
        }
        repeats += times.len() - 1;
        extra += tries - 1;
    }
    (repeats, extra)
}
