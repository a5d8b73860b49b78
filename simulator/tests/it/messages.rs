//! Texts and receipts, end to end encrypted, between phones and clients.

use simulator::{AcceptedQuery, NewPhone, PhoneSettings, ReactionOrder, TextOrder};
use whatsapp_rust::wacore::types::events::Event;
use whatsapp_rust::wacore::types::presence::ReceiptType;
use whatsapp_rust::{Jid, SendOptions};

use crate::client::{World, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_writes_to_a_client_and_learns_of_delivery_and_reading() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, jid) = world.pair(&own).await;
    let id = world.write(&other, &own, "hello, client").await;
    assert_eq!(running.text(&id).await, "hello, client");
    assert_eq!(world.opened(&own, &id).await.text, "hello, client", "the phone of the account reads along");
    world.drained(&jid).await;

    let sender = Jid::pn(other.as_str());
    running.client.mark_as_read(&sender, None, &[id.as_str()]).await.expect("mark as read");
    until("the client's receipts on the phone", async || {
        let receipts = world.network.receipts(&other, Some(&id), None).await.expect("receipts");
        let got = |device, kinds: &[&str]| {
            receipts.iter().any(|receipt| {
                receipt.from == own && receipt.from_device == device && kinds.contains(&receipt.kind.as_str())
            })
        };
        (got(0, &["delivered"]) && got(1, &["delivered", "inactive"]) && got(1, &["read"])).then_some(())
    })
    .await;
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_writes_to_a_phone_and_learns_of_ack_delivery_and_reading() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, jid) = world.pair(&own).await;
    running.send(&other, "ID-1", "hello, phone").await;
    assert_eq!(running.acked("ID-1").await, None);
    let message = world.opened(&other, "ID-1").await;
    assert_eq!((message.text.as_str(), message.from.as_str(), message.from_device), ("hello, phone", own.as_str(), 1));
    let copy = world.opened(&own, "ID-1").await;
    assert_eq!((copy.text.as_str(), copy.chat.as_str()), ("hello, phone", other.as_str()), "the own phone gets a copy");
    running.receipt("ID-1", &ReceiptType::Delivered).await;

    world.network.read(&other, &own, &["ID-1".to_owned()]).await.expect("read");
    running.receipt("ID-1", &ReceiptType::Read).await;
    assert!(world.opened(&other, "ID-1").await.read);

    let accepted = until("the log entry", async || {
        let entries =
            world.network.accepted(&AcceptedQuery { id: Some("ID-1".to_owned()), ..Default::default() }).await;
        entries.into_iter().find(|entry| entry.ack_written && entry.decrypted_by.len() == 2)
    })
    .await;
    assert_eq!(accepted.device, jid);
    assert!(accepted.failed_at.is_empty());
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_accepted_ciphertext_opens_only_at_its_addressee() {
    let world = World::new().await;
    let phones = [world.phone().await, world.phone().await, world.phone().await];
    let (_device, running, jid) = world.pair(&phones[0]).await;
    // The first message starts sessions (pkmsg); after the reply's round trip the second one uses them (msg).
    running.send(&phones[1], "FIRST", "one").await;
    world.opened(&phones[1], "FIRST").await;
    let reply = world.write(&phones[1], &phones[0], "two").await;
    running.text(&reply).await;
    running.send(&phones[1], "SECOND", "three").await;
    world.opened(&phones[1], "SECOND").await;

    for (id, kind) in [("FIRST", "pkmsg"), ("SECOND", "msg")] {
        let entry =
            world.network.accepted(&AcceptedQuery { id: Some(id.to_owned()), ..Default::default() }).await.remove(0);
        let expected: Vec<String> =
            [&phones[0], &phones[1]].iter().map(|phone| format!("{phone}@s.whatsapp.net")).collect();
        let mut opened = until("both phones", async || {
            let entry = world
                .network
                .accepted(&AcceptedQuery { id: Some(id.to_owned()), ..Default::default() })
                .await
                .remove(0);
            (entry.decrypted_by.len() == 2).then_some(entry.decrypted_by)
        })
        .await;
        opened.sort();
        let mut sorted = expected.clone();
        sorted.sort();
        assert_eq!(opened, sorted);
        assert_eq!(entry.parts.len(), 2);
        assert!(entry.parts.iter().any(|part| part.kind == kind));
        for part in &entry.parts {
            for phone in &phones {
                if part.device != format!("{phone}@s.whatsapp.net") {
                    let opens = world.network.could_open(phone, &jid, &part.kind, &part.ciphertext).await.expect("try");
                    assert!(!opens, "a part of {id} opens where it was not sent");
                }
            }
        }
    }
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clients_of_two_accounts_exchange_texts_in_order() {
    let world = World::new().await;
    let (one, two) = (world.phone().await, world.phone().await);
    let (_d1, first, _) = world.pair(&one).await;
    let (_d2, second, _) = world.pair(&two).await;
    for number in 0..20 {
        first.send(&two, &format!("A{number}"), &format!("from one {number}")).await;
        second.send(&one, &format!("B{number}"), &format!("from two {number}")).await;
    }
    for number in 0..20 {
        assert_eq!(second.text(&format!("A{number}")).await, format!("from one {number}"));
        assert_eq!(first.text(&format!("B{number}")).await, format!("from two {number}"));
    }
    let order: Vec<String> = second.texts().into_iter().map(|(id, _)| id).filter(|id| id.starts_with('A')).collect();
    assert_eq!(order, (0..20).map(|number| format!("A{number}")).collect::<Vec<_>>());
    let summary = world.network.accepted_summary().await;
    assert_eq!((summary.total, summary.distinct, summary.repeats), (40, 40, 0));
    first.receipt("A19", &ReceiptType::Delivered).await;
    first.stop().await;
    second.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_id_is_delivered_and_counted_again() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, jid) = world.pair(&own).await;
    running.send(&other, "SAME", "again").await;
    running.send(&other, "SAME", "again").await;
    until("both copies on the phone", async || {
        let messages = world.network.messages(&other, Some(&own), None).await.expect("messages");
        (messages.iter().filter(|message| message.id == "SAME").count() == 2).then_some(())
    })
    .await;
    let summary = world.network.accepted_summary().await;
    assert_eq!((summary.total, summary.distinct, summary.repeats), (2, 1, 1));
    assert_eq!(summary.by_device.get(&jid), Some(&2));
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_reads_and_answers_when_told_to() {
    let world = World::new().await;
    let own = world.phone().await;
    let new = NewPhone {
        push_name: Some("Echo".to_owned()),
        auto_read: true,
        auto_reply: Some("got it".to_owned()),
        ..Default::default()
    };
    let other = world.network.create_phone(new).await.expect("phone").phone;
    let (_device, running, _) = world.pair(&own).await;
    running.send(&other, "ASK", "anyone there?").await;
    running.receipt("ASK", &ReceiptType::Read).await;
    let reply = until("the reply", async || {
        running.inbound().into_iter().find(|inbound| inbound.message.conversation.as_deref() == Some("got it"))
    })
    .await;
    assert_eq!(reply.info.push_name, "Echo");

    world
        .network
        .configure(
            &other,
            PhoneSettings { auto_reply: Some(String::new()), auto_read: Some(false), ..PhoneSettings::default() },
        )
        .await
        .expect("configure");
    running.send(&other, "ASK-2", "and now?").await;
    running.receipt("ASK-2", &ReceiptType::Delivered).await;
    assert_eq!(running.texts().iter().filter(|(_, text)| text == "got it").count(), 1);
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_that_is_switched_off_opens_what_came_in_order_once_it_is_back() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, _) = world.pair(&own).await;
    let offline = |offline| PhoneSettings { offline: Some(offline), ..PhoneSettings::default() };
    world.network.configure(&other, offline(true)).await.expect("configure");
    for id in ["OFF-1", "OFF-2"] {
        running.send(&other, id, "are you there?").await;
        assert_eq!(running.acked(id).await, None, "WhatsApp takes it all the same");
        // By now one that is on has opened it.
        world.opened(&own, id).await;
    }
    assert!(world.network.messages(&other, None, None).await.expect("messages").is_empty());
    assert!(!running.has(|event| matches!(event, Event::Receipt(receipt) if receipt.r#type == ReceiptType::Delivered)));
    world.network.configure(&other, offline(false)).await.expect("configure");
    running.receipt("OFF-2", &ReceiptType::Delivered).await;
    let opened = world.network.messages(&other, None, None).await.expect("messages");
    assert_eq!(opened.iter().map(|message| message.id.as_str()).collect::<Vec<_>>(), ["OFF-1", "OFF-2"]);
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_addressed_by_lid_answers_by_lid() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, _) = world.pair(&own).await;
    let order = TextOrder {
        to: own.clone(),
        text: "by lid".to_owned(),
        id: Some("LID-1".to_owned()),
        count: None,
        by_lid: true,
    };
    world.network.write(&other, order).await.expect("write");
    assert_eq!(running.text("LID-1").await, "by lid");
    let inbound = running.inbound().into_iter().find(|inbound| inbound.info.id == "LID-1").expect("inbound");
    assert!(inbound.info.source.sender.is_lid());
    assert_eq!(inbound.info.source.sender_alt.as_ref().map(|alt| alt.user.to_string()), Some(other));
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_nobody_is_refused_with_404() {
    let world = World::new().await;
    let own = world.phone().await;
    let (_device, running, _) = world.pair(&own).await;
    let message =
        whatsapp_rust::waproto::whatsapp::Message { conversation: Some("hello?".to_owned()), ..Default::default() };
    let options = whatsapp_rust::SendOptions::default().with_message_id("NOBODY");
    running.client.send_message_with_options(Jid::pn("19990001111"), message, options).await.expect("written");
    assert_eq!(running.acked("NOBODY").await.as_deref(), Some("404"));
    assert_eq!(world.network.accepted_summary().await.total, 0);
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_companion_gets_copies_of_what_its_phone_writes() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, jid) = world.pair(&own).await;
    let id = world.write(&own, &other, "from my phone").await;
    assert_eq!(running.text(&id).await, "from my phone");
    let inbound = running.inbound().into_iter().find(|inbound| inbound.info.id == id).expect("inbound");
    assert!(inbound.info.source.is_from_me);
    assert_eq!(inbound.info.source.chat.user, other);
    world.drained(&jid).await;
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_texts_are_written_at_once_and_all_arrive() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, jid) = world.pair(&own).await;
    let order = TextOrder { to: own.clone(), text: "burst".to_owned(), id: None, count: Some(300), by_lid: false };
    let ids = world.network.write(&other, order).await.expect("write");
    assert_eq!(ids.len(), 300);
    world.drained(&jid).await;
    let texts = running.texts();
    assert_eq!(texts.iter().map(|(id, _)| id).filter(|id| ids.contains(id)).count(), 300);
    assert_eq!(running.text(&ids[299]).await, "burst #300");
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_companion_of_both_accounts_gets_a_message_once() {
    let world = World::new().await;
    let (one, two) = (world.phone().await, world.phone().await);
    let (_a, sender, _) = world.pair(&one).await;
    let (_b, sibling, sibling_jid) = world.pair(&one).await;
    let (_c, first, first_jid) = world.pair(&two).await;
    let (_d, second, second_jid) = world.pair(&two).await;
    // The sender learnt its own devices before the sibling was linked; a notification, and the ack's phash, tell it.
    sender.send(&two, "STALE", "for those I know").await;
    assert_eq!(first.text("STALE").await, "for those I know");
    assert_eq!(second.text("STALE").await, "for those I know");
    until("the sender to have heard of its sibling", async || {
        let id = format!("FRESH-{}", rand::random::<u32>());
        sender.send(&two, &id, "for all").await;
        assert_eq!(first.text(&id).await, "for all");
        assert_eq!(second.text(&id).await, "for all");
        let query = AcceptedQuery { id: Some(id.clone()), ..Default::default() };
        let parts = world.network.accepted(&query).await.remove(0).parts;
        parts.iter().any(|part| part.device == sibling_jid).then_some(id)
    })
    .await;
    let id = "LAST";
    sender.send(&two, id, "the last").await;
    assert_eq!(sibling.text(id).await, "the last");
    let inbound = sibling.inbound();
    let copy = inbound.iter().find(|inbound| inbound.info.id == id).expect("copy");
    assert!(copy.info.source.is_from_me);
    for jid in [&sibling_jid, &first_jid, &second_jid] {
        world.drained(jid).await;
    }
    for client in [sender, sibling, first, second] {
        client.stop().await;
    }
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_lost_its_session_gets_the_message_encrypted_anew() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (device, running, jid) = world.pair(&own).await;
    let first = world.write(&other, &own, "before").await;
    running.text(&first).await;
    // An answer, so that the phone no longer repeats the pre-key part that would heal the session by itself.
    running.send(&other, "ANSWER", "seen").await;
    world.opened(&other, "ANSWER").await;
    running.stop().await;
    device.forget_sessions_with(&[&other, &lid_of(&world, &other).await]).await;

    let again = device.start().await;
    again.connected().await;
    let second = world.write(&other, &own, "after").await;
    assert_eq!(again.text(&second).await, "after");
    let receipts = world.network.receipts(&other, Some(&second), None).await.expect("receipts");
    assert!(receipts.iter().any(|receipt| receipt.kind == "retry"));
    world.drained(&jid).await;
    again.stop().await;
    world.simulator.shutdown().await;
}

async fn lid_of(world: &World, phone: &str) -> String {
    let phones = world.network.phones().await;
    let view = phones.iter().find(|view| view.phone == phone).expect("phone");
    view.lid.split('@').next().expect("user").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_companion_linked_later_is_announced_to_those_who_write_to_its_account() {
    let world = World::new().await;
    let (one, two) = (world.phone().await, world.phone().await);
    let (_a, sender, sender_jid) = world.pair(&one).await;
    sender.send(&two, "BEFORE", "to the phone alone").await;
    world.opened(&two, "BEFORE").await;

    let (_b, late, late_jid) = world.pair(&two).await;
    sender.event("the device list update", |event| matches!(event, Event::DeviceListUpdate(_)).then_some(())).await;
    sender.send(&two, "AFTER", "to both").await;
    assert_eq!(late.text("AFTER").await, "to both");
    until("both to have acknowledged everything, notifications included", async || {
        let phones = world.network.phones().await;
        let queued = |jid: &str| {
            phones
                .iter()
                .flat_map(|phone| &phone.companions)
                .find(|device| device.jid == jid)
                .map(|device| device.queued)
        };
        (queued(&sender_jid) == Some(0) && queued(&late_jid) == Some(0)).then_some(())
    })
    .await;

    world.network.unlink(&two, 1).await.expect("unlink");
    until("the second device list update", async || {
        sender.count(|event| matches!(event, Event::DeviceListUpdate(_))).eq(&2).then_some(())
    })
    .await;
    sender.send(&two, "ALONE", "to the phone alone again").await;
    world.opened(&two, "ALONE").await;
    let query = AcceptedQuery { id: Some("ALONE".to_owned()), ..Default::default() };
    let parts = world.network.accepted(&query).await.remove(0).parts;
    assert!(parts.iter().all(|part| part.device != late_jid));
    sender.stop().await;
    late.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_reacts_to_a_message_of_a_client() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, _) = world.pair(&own).await;
    running.send(&other, "ID-1", "hello, phone").await;
    world.opened(&other, "ID-1").await;
    let order = ReactionOrder { to: own.clone(), message: "ID-1".into(), own: false, emoji: "\u{1f44d}".into() };
    let id = world.network.react(&other, order.clone()).await.expect("a reaction");
    let reaction = until("the reaction at the client", async || {
        let inbound = running.inbound().into_iter().find(|inbound| inbound.info.id == id)?;
        inbound.message.reaction_message.as_option().cloned()
    })
    .await;
    assert_eq!(reaction.text.as_deref(), Some("\u{1f44d}"));
    assert_eq!(reaction.key.as_option().and_then(|key| key.id.as_deref()), Some("ID-1"));
    let refused = world.network.react(&other, ReactionOrder { message: String::new(), ..order }).await;
    assert!(refused.is_err(), "a reaction to nothing");
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reaction_follows_the_namespace_of_its_chat() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, _) = world.pair(&own).await;
    let write = async |id: &str, by_lid| {
        let order = TextOrder { to: own.clone(), text: "hello".into(), id: Some(id.into()), count: None, by_lid };
        world.network.write(&other, order).await.expect("write");
        running.text(id).await;
    };
    write("BY-LID", true).await;
    write("BY-NUMBER", false).await;
    // Which of the two the library writes to is its own affair.
    let text = whatsapp_rust::waproto::whatsapp::Message { conversation: Some("hi".into()), ..Default::default() };
    let options = SendOptions::default().with_message_id("OURS");
    let to = Jid::lid(lid_of(&world, &other).await);
    running.client.send_message_with_options(to, text, options).await.expect("send");
    world.opened(&other, "OURS").await;

    for (message, by_the_phone, by_lid) in
        [("BY-LID", true, Some(true)), ("BY-NUMBER", true, Some(false)), ("OURS", false, None)]
    {
        let order =
            ReactionOrder { to: own.clone(), message: message.into(), own: by_the_phone, emoji: "\u{1f44d}".into() };
        let id = world.network.react(&other, order).await.expect("a reaction");
        let inbound = until("the reaction at the client", async || {
            running.inbound().into_iter().find(|inbound| inbound.info.id == id)
        })
        .await;
        let from_lid = inbound.info.source.sender.is_lid();
        assert_eq!(from_lid, by_lid.unwrap_or(from_lid), "{message}");
        let key = inbound.message.reaction_message.as_option().and_then(|reaction| reaction.key.as_option().cloned());
        let key = key.expect("a key");
        assert_eq!((key.id.as_deref(), key.from_me), (Some(message), Some(by_the_phone)));
        let chat: Jid = key.remote_jid.expect("a chat").parse().expect("a jid");
        assert_eq!(chat.is_lid(), from_lid, "{message}");
    }
    running.stop().await;
    world.simulator.shutdown().await;
}
