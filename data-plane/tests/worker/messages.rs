//! Messages in and out.

use std::collections::HashSet;

use sea_orm::{ConnectOptions, ConnectionTrait, Statement};
use shared::wire::{
    outbox::{InboundBody, OutboxEvent, ReceiptKind},
    send::SendOutcome,
};
use simulator::{AcceptedQuery, FaultPlan, Garble, PhoneSettings, TextOrder};

use crate::world::{World, item, text_of, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_pairs_by_qr_and_a_hundred_messages_arrive_once_each() {
    let world = World::new().await;
    let linked = world.linked().await;
    let report = world.plane.report(linked.id()).unwrap();
    let account = report.account.unwrap();
    assert_eq!(account.jid, linked.device);
    assert!(account.lid.is_some());
    assert_eq!(report.qr_seq, None);

    let friend = world.phone().await;
    let ids = world.text(&friend, &linked.phone, "hello", 100).await;
    world.has_all(linked.id(), &ids).await;
    let messages = world.messages(linked.id());
    assert_eq!(messages.len(), 100);
    let texts: HashSet<_> = messages.iter().filter_map(text_of).map(str::to_owned).collect();
    assert_eq!(texts.len(), 100);
    let senders: HashSet<_> = messages.iter().map(|message| message.sender.id.clone()).collect();
    assert_eq!(senders.len(), 1, "one sender has one identity");
    for message in &messages {
        assert_eq!(message.sender.pn.as_deref(), Some(format!("{friend}@s.whatsapp.net").as_str()));
        assert_eq!(message.chat.id, message.sender.id);
        assert!(!message.from_me);
    }
    until("WhatsApp has been acknowledged", async || {
        (world.sim.network().unacknowledged(&linked.device).await.unwrap() == 0).then_some(())
    })
    .await;
    assert_eq!(world.plane.shipped_twice(), 0);
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_under_either_name_of_its_sender_has_one_identity() {
    let world = World::new().await;
    let linked = world.linked().await;
    let friend = world.phone().await;
    let mut ids = world.text(&friend, &linked.phone, "by number", 1).await;
    let order = TextOrder { to: linked.phone.clone(), text: "by lid".into(), id: None, count: None, by_lid: true };
    ids.extend(world.sim.network().write(&friend, order).await.unwrap());
    world.has_all(linked.id(), &ids).await;
    let identities: HashSet<_> =
        world.messages(linked.id()).into_iter().map(|message| (message.chat.id, message.sender.id)).collect();
    assert_eq!(identities.len(), 1);
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_t_be_decrypted_and_isn_t_encrypted_anew_comes_from_the_own_phone() {
    let world = World::new().await;
    let linked = world.linked().await;
    let friend = world.phone().await;
    let network = world.sim.network();
    let settings = PhoneSettings { ignore_retries: Some(true), ..PhoneSettings::default() };
    network.configure(&friend, settings).await.unwrap();
    for by_lid in [false, true] {
        network.garble(&linked.device, Garble { times: 1 }).await.unwrap();
        let order = TextOrder { to: linked.phone.clone(), text: "from my phone".into(), id: None, count: None, by_lid };
        let ids = network.write(&friend, order).await.unwrap();
        let [first, then] = until("the message and what stood for it", async || {
            let rows: Vec<_> =
                world.messages(linked.id()).into_iter().filter(|message| message.wa_id == ids[0]).collect();
            rows.try_into().ok()
        })
        .await;
        assert!(first.body == InboundBody::Undecryptable, "by lid: {by_lid}");
        assert_eq!(text_of(&then), Some("from my phone"));
        assert_eq!((first.chat.id, first.sender.id), (then.chat.id, then.sender.id), "it is the same message");
    }
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_acknowledged_and_opened_by_its_addressee_only_once() {
    let world = World::new().await;
    let linked = world.linked().await;
    let friend = world.phone().await;
    let items: Vec<_> = (0..5).map(|n| item(&friend, &format!("order {n}"))).collect();
    let outcomes = world.send(linked.worker.id(), &linked.order, items.clone()).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, SendOutcome::Acked { .. })), "{outcomes:?}");
    let texts = until("the phone has all", async || {
        let got = world.sim.network().messages(&friend, None, None).await.unwrap();
        (got.len() == 5).then(|| got.into_iter().map(|message| message.text).collect::<Vec<_>>())
    })
    .await;
    assert_eq!(texts, (0..5).map(|n| format!("order {n}")).collect::<Vec<_>>(), "in the order of the batch");

    let again = world.send(linked.worker.id(), &linked.order, items.clone()).await;
    assert_eq!(again, outcomes, "the recorded outcome is answered");
    let acks = until("the acknowledgements are shipped", async || {
        let acks: Vec<_> = world
            .plane
            .events(linked.id())
            .into_iter()
            .filter_map(|event| match event {
                OutboxEvent::ServerAck { message_id, error: None, tries: 1, .. } => Some(message_id),
                _ => None,
            })
            .collect();
        (acks.len() >= 5).then_some(acks)
    })
    .await;
    assert_eq!(acks.len(), 5);
    assert_eq!(acks.iter().collect::<HashSet<_>>(), items.iter().map(|item| &item.message_id).collect());
    assert_eq!(world.sim.network().accepted_summary().await.repeats, 0);
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_batch_handed_in_at_once_is_sent_once() {
    let world = World::new().await;
    let linked = world.linked().await;
    let friend = world.phone().await;
    let items: Vec<_> = (0..4).map(|n| item(&friend, &format!("{n}"))).collect();
    let one = world.send(linked.worker.id(), &linked.order, items.clone());
    let other = world.send(linked.worker.id(), &linked.order, items.clone());
    let (one, other) = tokio::join!(one, other);
    assert!(one.iter().all(|outcome| matches!(outcome, SendOutcome::Acked { .. })), "{one:?}");
    assert_eq!(one, other);
    for item in items {
        let query = AcceptedQuery { sender: None, id: Some(item.wa_id), limit: None };
        assert_eq!(world.sim.network().accepted(&query).await.len(), 1);
    }
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_t_be_sent_says_why_and_leaves_nothing_behind() {
    let world = World::new().await;
    let linked = world.linked().await;
    let friend = world.phone().await;
    let mut expired = item(&friend, "too late");
    expired.expires_at = chrono::Utc::now() - chrono::TimeDelta::seconds(1);
    let mut nowhere = item(&friend, "to nowhere");
    nowhere.to = "somewhere".into();
    let nobody = item("15550009999", "to nobody");
    let outcomes = world.send(linked.worker.id(), &linked.order, vec![expired, nowhere, nobody]).await;
    let invalid = |reason: &str| SendOutcome::Invalid { reason: reason.into() };
    assert_eq!(outcomes, [SendOutcome::Expired, invalid("recipient"), invalid("not_on_whatsapp")]);
    assert_eq!(world.sim.network().accepted_summary().await.total, 0);
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_tell_what_became_of_a_message() {
    let world = World::new().await;
    let linked = world.linked().await;
    let friend = world.phone().await;
    let sent = item(&friend, "read me");
    let wa_id = sent.wa_id.clone();
    world.send(linked.worker.id(), &linked.order, vec![sent]).await;
    let own = format!("{}@s.whatsapp.net", linked.phone);
    until("the phone has it", async || {
        let got = world.sim.network().messages(&friend, None, None).await.unwrap();
        (!got.is_empty()).then_some(())
    })
    .await;
    world.sim.network().read(&friend, &linked.phone, std::slice::from_ref(&wa_id)).await.unwrap();
    let kinds = |wanted: ReceiptKind| {
        world.plane.events(linked.id()).into_iter().any(|event| match event {
            OutboxEvent::Receipt { chat, wa_ids, receipt, .. } => {
                assert_ne!(chat.pn.as_deref(), Some(own.as_str()), "a receipt of our own account is none");
                receipt == wanted && wa_ids.contains(&wa_id)
            }
            _ => false,
        })
    };
    until("it is delivered and read", async || {
        (kinds(ReceiptKind::Delivered) && kinds(ReceiptKind::Read)).then_some(())
    })
    .await;
    linked.worker.shutdown().await;
}

/// Whoever waits for a message hears WhatsApp's word at once, also while the store can't record it.
#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_is_told_before_it_is_recorded_and_recorded_all_the_same() {
    let world = World::new().await;
    let linked = world.linked().await;
    let network = world.sim.network();
    let late = FaultPlan { seed: 5, late_acks: 1_000, ack_lateness_ms: 1_500, ..FaultPlan::default() };
    network.plan_faults(Some(late)).await.unwrap();
    let items = vec![item(&world.phone().await, "once")];
    let mut one_connection = ConnectOptions::new(world.database());
    one_connection.max_connections(1);
    let store = sea_orm::Database::connect(one_connection).await.unwrap();
    let locked = async {
        until("WhatsApp has it", async || (network.accepted_summary().await.total > 0).then_some(())).await;
        store.execute_unprepared("BEGIN IMMEDIATE").await.unwrap();
    };
    let (outcomes, ()) = tokio::join!(world.send(linked.worker.id(), &linked.order, items.clone()), locked);
    assert!(matches!(outcomes[..], [SendOutcome::Acked { .. }]), "{outcomes:?}");
    let open = "SELECT COUNT(*) FROM journal WHERE state = 0";
    let open = Statement::from_string(store.get_database_backend(), open);
    let row = store.query_one_raw(open).await.unwrap().unwrap();
    assert_eq!(row.try_get_by_index::<i64>(0).unwrap(), 1, "it isn't recorded yet");
    store.execute_unprepared("ROLLBACK").await.unwrap();

    until("the acknowledgement is in the outbox", async || {
        let told = |event: &OutboxEvent| matches!(event, OutboxEvent::ServerAck { error: None, tries: 1, .. });
        world.plane.events(linked.id()).iter().any(told).then_some(())
    })
    .await;
    let again = world.send(linked.worker.id(), &linked.order, items).await;
    assert_eq!(again, outcomes);
    assert_eq!(network.accepted_summary().await.repeats, 0);
    linked.worker.shutdown().await;
}
