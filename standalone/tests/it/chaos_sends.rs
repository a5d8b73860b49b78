//! `kill -9` of a worker at seeded points while it sends, to phones that are away and by acks that are late: so at each kill
//! WhatsApp has taken messages of which the worker hasn't heard, and no receipt tells of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rstest::rstest;
use serde_json::json;

use crate::{
    postgres::Engine,
    sent::{accepted, assert_none_after, first_of_each, journal},
    stack::{PATIENCE, Stack, Tenant, until},
};

const TENANT: &str = "15550100041";
/// More than are sent at once.
const CHATS: usize = 20;
/// Of each chat, before each kill.
const TEXTS: usize = 6;
/// A killed worker's lease runs out within 20 s; then it joins again and claims, and what is asked for again waits up to a minute.
const RECOVERY: Duration = Duration::from_secs(150);

#[rstest]
#[case::sqlite(Engine::Sqlite, 1)]
#[case::postgres(Engine::Postgres, 2)]
#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_while_it_sends_repeats_only_what_it_was_not_told_of(#[case] engine: Engine, #[case] seed: u64) {
    kill_senders(engine, "resend", 2, seed).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite, 3)]
#[case::postgres(Engine::Postgres, 4)]
#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_while_it_sends_repeats_nothing_if_told_to_hold(#[case] engine: Engine, #[case] seed: u64) {
    kill_senders(engine, "hold", 2, seed).await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make chaos"]
async fn worker_killed_at_10_points_while_it_sends(
    #[values(Engine::Sqlite, Engine::Postgres)] engine: Engine,
    #[values("resend", "hold")] on_unknown: &str,
) {
    kill_senders(engine, on_unknown, 10, 20).await;
}

async fn kill_senders(engine: Engine, on_unknown: &str, points: usize, seed: u64) {
    let Some(mut stack) = Stack::start(engine).await else { return };
    let api = stack.owner("sender", None).await;
    let tenant = stack.session_with(&api, TENANT.to_owned(), json!({ "on_unknown": on_unknown })).await;
    let chats: Vec<String> = (0..CHATS).map(|n| format!("1555010{:04}", 200 + n)).collect();
    for chat in &chats {
        stack.network.new_phone(chat, "Away", None).await.unwrap();
        stack.network.switch_off(chat, true).await.unwrap();
    }
    let plan = json!({ "seed": seed, "late_acks": 1_000, "ack_lateness_ms": 2_000 });
    stack.network.plan_faults(&plan).await.unwrap();

    let mut random = StdRng::seed_from_u64(seed);
    let mut sent = BTreeMap::<&str, Vec<String>>::new();
    let mut unheard = Vec::new();
    for point in 0..points {
        // Those that were held stay open, and not all of them were taken.
        let open_before = open_tries(&stack).await;
        let taken_before = stack.network.accepted().await.unwrap().distinct;
        for n in 0..TEXTS {
            for chat in &chats {
                let words = format!("point {point} #{n}");
                let body = json!({
                    "session_id": tenant.session, "to": format!("+{chat}"), "type": "text", "text": { "body": words },
                });
                api.post("messages/send", body).await.unwrap();
                sent.entry(chat).or_default().push(words);
            }
        }
        // While others are still to come.
        let kill_at = taken_before + random.random_range(CHATS..CHATS * (TEXTS - 1));
        until("WhatsApp has taken enough of them", PATIENCE, async || {
            (stack.network.accepted().await.unwrap().distinct >= kill_at).then_some(())
        })
        .await;
        stack.kill_worker();
        unheard.push(open_tries(&stack).await - open_before);
        stack.start_worker();
        until("each has come to its end", RECOVERY, async || {
            stack.query("SELECT id FROM messages WHERE status = 'queued'").await.is_empty().then_some(())
        })
        .await;
    }
    stack.network.end_fault_plan().await.unwrap();
    for chat in &chats {
        stack.network.switch_off(chat, false).await.unwrap();
    }
    let (repeats, held) = check(&stack, &tenant, on_unknown, &sent).await;
    println!(
        "worker killed at {points} points while it sends on {engine:?}, {on_unknown}, seed {seed}: {} sent, tries open at \
         the kills {unheard:?}, repeats {repeats}, held {held}",
        points * CHATS * TEXTS
    );
    assert!(unheard.iter().all(|open| *open > 0), "at each kill the outcome of some must not be known: {unheard:?}");
}

/// Tries of which the worker's journal knows no outcome.
async fn open_tries(stack: &Stack) -> usize {
    stack.query_store("SELECT wa_id FROM journal WHERE acked_at IS NULL").await.len()
}

/// Gives how often WhatsApp accepted a message again, and how many were held.
async fn check(stack: &Stack, tenant: &Tenant, on_unknown: &str, sent: &BTreeMap<&str, Vec<String>>) -> (usize, usize) {
    let rows =
        stack.query("SELECT wa_id || ' ' || status || ' ' || COALESCE(reason, '') FROM messages ORDER BY id").await;
    let journal = journal(stack, &tenant.session).await;
    let (_, times) = accepted(stack, tenant).await;
    assert_eq!(rows.len(), sent.values().map(Vec::len).sum::<usize>());
    let (mut repeats, mut held) = (0, 0);
    for row in &rows {
        let fields: Vec<&str> = row.split(' ').collect();
        let (wa_id, status, reason) = (fields[0], fields[1], fields[2]);
        let copies = times.get(wa_id).map_or(0, Vec::len);
        let (tries, acknowledged) = journal.get(wa_id).copied().unwrap_or_default();
        assert_none_after(times.get(wa_id).map_or(&[], Vec::as_slice), acknowledged);
        assert!(copies <= tries, "WhatsApp accepted a message {copies} times, and the journal opened {tries} tries");
        match status {
            "sent" | "delivered" | "read" => assert!(copies >= 1, "told as {status}, and never taken"),
            "failed" if on_unknown == "hold" => {
                assert_eq!(reason, "outcome_unknown");
                held += 1;
            }
            _ => panic!("a message ended as {status} {reason}"),
        }
        repeats += copies.saturating_sub(1);
    }
    if on_unknown == "hold" {
        assert_eq!(repeats, 0, "held, and yet sent twice");
        assert!(held > 0, "nothing was held");
    }

    let taken: usize = times.values().map(Vec::len).sum();
    let at_phones = until("the phones have opened what WhatsApp took", PATIENCE, async || {
        let all = join_all(sent.keys().map(|chat| stack.network.messages(chat))).await;
        let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
        (all.iter().map(Vec::len).sum::<usize>() == taken).then_some(all)
    })
    .await;
    for (sent, at_phone) in sent.values().zip(at_phones) {
        let firsts = first_of_each(at_phone.into_iter().map(|message| message.text));
        let there: BTreeSet<&String> = firsts.iter().collect();
        let expected: Vec<&String> = sent.iter().filter(|words| there.contains(words)).collect();
        assert_eq!(firsts.iter().collect::<Vec<_>>(), expected, "in order, repeats aside");
        if on_unknown == "resend" {
            assert_eq!(firsts.len(), sent.len(), "all of them");
        }
    }
    (repeats, held)
}
