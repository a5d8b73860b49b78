//! Traffic both ways while a seeded plan hurts stanzas and cuts sockets. Afterwards everything must be there, in order, and every
//! repeat accounted for.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use rstest::rstest;
use serde_json::json;

use crate::{
    postgres::Engine,
    sent::{accepted, assert_none_after, first_of_each, journal},
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
    // Every other session writes to somebody who is away: there no receipt makes up for an ack that is lost.
    let away: Vec<String> = (0..sessions).map(|n| format!("1555022{n:04}")).collect();
    let recipients: Vec<&String> = (0..sessions).map(|n| if n % 2 == 0 { &friends[n] } else { &away[n] }).collect();
    for phone in &away {
        stack.network.new_phone(phone, "Away", None).await.unwrap();
        stack.network.switch_off(phone, true).await.unwrap();
    }

    // 3 % of what is no query, and 5 % of the acks come after the receipts.
    let plan = json!({
        "seed": seed, "drop": 10, "delay": 5, "duplicate": 5, "cut": 10, "longest_delay_ms": 300,
        "late_acks": 50, "ack_lateness_ms": 300,
    });
    stack.network.plan_faults(&plan).await.unwrap();
    let traffic = join_all(
        tenants
            .iter()
            .zip(&friends)
            .zip(&recipients)
            .map(|((tenant, friend), to)| both_ways(&stack, tenant, friend, to, seconds)),
    )
    .await;
    let counts = stack.network.end_fault_plan().await.unwrap();
    // What was dropped on its way down comes with the next connection.
    for tenant in &tenants {
        let device = format!("{}:1@s.whatsapp.net", tenant.phone);
        // One that is between two connections has a next one anyway.
        drop(stack.network.hurt(&device, "fault", &json!({ "kind": "eof" })).await);
    }

    let mut told = Told::default();
    for ((tenant, to), (sent, written)) in tenants.iter().zip(&recipients).zip(&traffic) {
        let one = check(&stack, tenant, to, sent, written).await;
        told = Told {
            repeats: told.repeats + one.repeats,
            unknown: told.unknown + one.unknown,
            handed_over: told.handed_over + one.handed_over,
        };
    }
    let (out, inbound) = traffic.iter().fold((0, 0), |(out, inbound), (a, b)| (out + a.len(), inbound + b.len()));
    // What the simulator counted itself, of all devices: no id that nobody knows, and no repeat that wasn't looked at.
    let accepted = stack.network.accepted().await.unwrap();
    assert_eq!((accepted.distinct, accepted.total - accepted.distinct), (out, told.repeats));
    let resent = stack.worker_figure("data_plane_messages_resent_total").await;
    let Told { repeats, unknown, handed_over } = told;
    // More than were repeated: of some, WhatsApp never saw the first.
    assert!(unknown <= resent, "the journal opened {unknown} tries again, and the worker has counted {resent}");
    println!(
        "{engine:?}, seed {seed}, {sessions} sessions, {seconds} s: {out} sent and {inbound} received, 0 missing, 0 twice in \
         history; hurt: {counts}; repeats at WhatsApp {repeats}, tries whose outcome wasn't known {unknown} (the worker counted \
         {resent}), hand-overs {handed_over}"
    );
    let hurt = |what: &str| counts[what].as_u64().unwrap();
    let dropped = hurt("dropped_up") + hurt("dropped_down") + hurt("dropped_acks");
    let slowed = hurt("delayed") + hurt("duplicated");
    // One in twenty-five or so of some hundred: of which sort they are is the seed's to say.
    assert!(hurt("cuts") + dropped + slowed + hurt("late_acks") >= 5, "next to nothing was hurt: {counts}");
}

/// One text a second out, two in. Gives the texts that were sent, in their order, and those that were written.
async fn both_ways(
    stack: &Stack,
    tenant: &Tenant,
    friend: &str,
    to: &str,
    seconds: usize,
) -> (Vec<String>, BTreeSet<String>) {
    let (mut sent, mut written) = (Vec::new(), BTreeSet::new());
    let mut every = tokio::time::interval(Duration::from_secs(1));
    for second in 0..seconds {
        // Not a wait for something to happen: this is the rate.
        every.tick().await;
        let words = format!("in {second}");
        stack.network.write(friend, &tenant.phone, &words, 2, None).await.unwrap();
        written.extend((1..=2).map(|n| format!("{words} #{n}")));
        let words = format!("out {second}");
        let body = json!({
            "session_id": tenant.session, "to": format!("+{to}"), "type": "text", "text": { "body": words },
        });
        tenant.api.post("messages/send", body).await.unwrap();
        sent.push(words);
    }
    (sent, written)
}

/// What came of the messages that were sent.
#[derive(Default)]
struct Told {
    /// How often WhatsApp accepted an id again.
    repeats: usize,
    /// Tries that the journal opened while an earlier one's outcome wasn't known.
    unknown: usize,
    /// How often messages were given to the worker, also when it sent nothing.
    handed_over: usize,
}

/// Checks one session.
async fn check(stack: &Stack, tenant: &Tenant, to: &str, sent: &[String], written: &BTreeSet<String>) -> Told {
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
    stack.network.switch_off(to, false).await.unwrap();
    // A message goes out when the one before it was taken, and one whose outcome isn't known holds its chat until it is: so
    // whatever is repeated, the first of each come in order.
    let at_phone = until("the phone has them all", HEALING, async || {
        let texts = stack.network.messages(to).await.unwrap().into_iter().map(|message| message.text);
        let firsts = first_of_each(texts);
        (firsts.len() >= sent.len()).then_some(firsts)
    })
    .await;
    assert_eq!(at_phone, sent, "at the phone, repeats aside");

    let known = stack
        .query(&format!(
            "SELECT wa_id || ' ' || CAST(tries AS TEXT) FROM messages WHERE session_id = '{}' AND direction = 'outbound' \
             ORDER BY id",
            tenant.session
        ))
        .await;
    let journal = journal(stack, &tenant.session).await;
    let (order, times) = accepted(stack, tenant).await;
    let known: Vec<(&str, &str)> = known.iter().map(|row| row.split_once(' ').unwrap()).collect();
    let ids: Vec<&str> = known.iter().map(|(wa_id, _)| *wa_id).collect();
    assert_eq!(order, ids, "at WhatsApp, repeats aside");
    let mut told = Told::default();
    for (wa_id, handed_over) in known {
        let (tries, acknowledged) = journal[wa_id];
        let times = &times[wa_id];
        assert!(times.len() <= tries, "WhatsApp accepted an id {} times, and the journal opened {tries}", times.len());
        assert_none_after(times, acknowledged);
        told.repeats += times.len() - 1;
        told.unknown += tries - 1;
        told.handed_over += handed_over.parse::<usize>().unwrap();
    }
    told
}
