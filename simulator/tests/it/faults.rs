//! Connections broken on command, and logins that collide.

use simulator::{
    AcceptedQuery, Fault, FaultPlan, Garble, LoginFailures, Nacks, NewPhone, PhoneSettings, PlanCounts, TextOrder,
};
use whatsapp_rust::wacore::types::events::Event;
use whatsapp_rust::wacore::types::presence::ReceiptType;

use crate::client::{World, until};

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_has_the_documented_effect_on_the_client() {
    let reconnects = [
        (Fault::StreamError515, "fault: stream_error_515"),
        (Fault::StreamError503, "fault: stream_error_503"),
        (Fault::Close, "fault: close"),
        (Fault::Eof, "fault: eof"),
    ];
    let world = World::new().await;
    let phone = world.phone().await;
    let (_device, running, jid) = world.pair(&phone).await;
    for (fault, reason) in reconnects {
        let before = world.network.connections().await[0].since;
        world.network.fault(&jid, fault).await.expect("fault");
        world.ended(reason).await;
        until("the client to be back", async || {
            world
                .network
                .connections()
                .await
                .into_iter()
                .find(|connection| connection.state == "active" && connection.since >= before)
                .map(|_| ())
        })
        .await;
    }
    assert!(!running.has(|event| matches!(event, Event::LoggedOut(_) | Event::StreamReplaced(_))));
    world.network.fault(&jid, Fault::Conflict).await.expect("conflict");
    running.event("StreamReplaced", |event| matches!(event, Event::StreamReplaced(_)).then_some(())).await;
    world.ended("fault: conflict").await;
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_401_logs_the_client_out() {
    let world = World::new().await;
    let phone = world.phone().await;
    let (_device, running, jid) = world.pair(&phone).await;
    world.network.fault(&jid, Fault::StreamError401).await.expect("fault");
    let on_connect = running
        .event("LoggedOut", |event| match event {
            Event::LoggedOut(out) => Some(out.on_connect),
            _ => None,
        })
        .await;
    assert!(!on_connect);
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_login_of_the_same_device_replaces_the_first() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (device, first, jid) = world.pair(&own).await;
    let second = device.start().await;
    first.event("StreamReplaced", |event| matches!(event, Event::StreamReplaced(_)).then_some(())).await;
    second.connected().await;
    world.ended("replaced by a newer login").await;
    let id = world.write(&other, &own, "to the newer one").await;
    assert_eq!(second.text(&id).await, "to the newer one");
    world.drained(&jid).await;
    first.stop().await;
    second.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_ends_or_repeats_as_the_library_documents() {
    let world = World::new().await;
    for code in LoginFailures::CODES {
        let phone = world.phone().await;
        let (_device, running, jid) = world.pair(&phone).await;
        let order = LoginFailures { code, times: Some(1), ban_code: Some(101), expire_seconds: Some(3_600) };
        world.network.refuse_logins(&jid, Some(order)).await.expect("order");
        world.network.fault(&jid, Fault::Eof).await.expect("fault");
        let refused = running
            .event("a refusal", |event| match event {
                Event::LoggedOut(out) if out.on_connect => Some("logged out"),
                Event::TemporaryBan(ban) if ban.expire.num_seconds() == 3_600 => Some("banned"),
                Event::ClientOutdated(_) => Some("outdated"),
                Event::ConnectFailure(failure) if failure.reason.should_reconnect() => Some("reconnects"),
                Event::ConnectFailure(_) => Some("stops"),
                _ => None,
            })
            .await;
        let expected = match code {
            401 | 403 => "logged out",
            402 => "banned",
            405 => "outdated",
            500 | 503 => "reconnects",
            _ => "stops",
        };
        assert_eq!(refused, expected, "{code}");
        if refused == "reconnects" {
            until("the client to be back", async || {
                (running.count(|event| matches!(event, Event::Connected(_))) >= 2).then_some(())
            })
            .await;
        }
        running.stop().await;
    }
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_message_reaches_nobody_and_the_next_one_does() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, jid) = world.pair(&own).await;
    world.network.refuse_messages(&jid, Some(Nacks { error: 463, times: Some(1) })).await.expect("order");
    running.send(&other, "3EB0000000000000000001", "refused").await;
    assert_eq!(running.acked("3EB0000000000000000001").await.as_deref(), Some("463"));
    running.send(&other, "3EB0000000000000000002", "taken").await;
    assert_eq!(running.acked("3EB0000000000000000002").await, None);
    assert_eq!(world.opened(&other, "3EB0000000000000000002").await.text, "taken");
    assert_eq!(world.network.messages(&other, None, None).await.expect("messages").len(), 1);
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbled_message_is_asked_for_again() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, jid) = world.pair(&own).await;
    world.network.garble(&jid, Garble { times: 1 }).await.expect("order");
    let id = world.write(&other, &own, "the second time").await;
    assert_eq!(running.text(&id).await, "the second time");
    let receipts = world.network.receipts(&other, Some(&id), None).await.expect("receipts");
    assert!(receipts.iter().any(|receipt| receipt.kind == "retry"), "{receipts:?}");
    world.drained(&jid).await;
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_its_author_doesn_t_encrypt_anew_comes_from_the_own_phone() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, jid) = world.pair(&own).await;
    let settings = PhoneSettings { ignore_retries: Some(true), ..PhoneSettings::default() };
    world.network.configure(&other, settings).await.expect("settings");
    world.network.garble(&jid, Garble { times: 1 }).await.expect("order");
    let id = world.write(&other, &own, "from the own phone").await;
    assert_eq!(running.text(&id).await, "from the own phone");
    world.drained(&jid).await;
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knows_a_former_static_key_is_led_to_the_new_one() {
    let world = World::new().await;
    let phone = world.phone().await;
    let (_device, running, jid) = world.pair(&phone).await;
    // The first login is XX, which leaves the chain in the client's store.
    for (rotate, pattern) in [(false, "IK"), (true, "XXfallback"), (false, "IK")] {
        if rotate {
            world.network.rotate_static_key().await.expect("rotate");
        }
        let before = world.network.connections().await[0].since;
        world.network.fault(&jid, Fault::StreamError515).await.expect("fault");
        until(pattern, async || {
            let connections = world.network.connections().await;
            let back = connections.iter().find(|one| one.state == "active" && one.since > before)?;
            assert_eq!(back.pattern.as_deref(), Some(pattern));
            Some(())
        })
        .await;
    }
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_fault_plan_every_message_arrives_and_what_was_hurt_is_counted() {
    let world = World::new().await;
    // The plan throws by the number, so each run is the same.
    let phone = async |number: &str| {
        let order = NewPhone { phone: Some(number.to_owned()), ..NewPhone::default() };
        world.network.create_phone(order).await.expect("create a phone").phone
    };
    let (own, other) = (phone("15550177001").await, phone("15550177002").await);
    let (_device, running, jid) = world.pair(&own).await;
    let plan = FaultPlan {
        seed: 42,
        drop: 50,
        delay: 50,
        duplicate: 50,
        cut: 10,
        longest_delay_ms: 20,
        ..FaultPlan::default()
    };
    world.network.plan_faults(Some(plan)).await.expect("plan");
    let order = TextOrder { to: own.clone(), text: "hurt".into(), id: None, count: Some(200), by_lid: false };
    let ids = world.network.write(&other, order).await.expect("write");
    until("the plan to have struck", async || {
        let (_, counts) = world.network.planned_faults().await?;
        (counts.stanzas >= 200 && counts.dropped_down > 0 && counts.cuts > 0).then_some(())
    })
    .await;
    let counts = world.network.plan_faults(None).await.expect("end");
    world.network.fault(&jid, Fault::Eof).await.ok();
    until("every message", async || {
        let seen: std::collections::HashSet<_> = running.texts().into_iter().map(|(id, _)| id).collect();
        ids.iter().all(|id| seen.contains(id)).then_some(())
    })
    .await;
    assert!(counts.duplicated > 0, "{counts:?}");
    assert!(world.network.planned_faults().await.is_none());
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_ack_is_overtaken_by_the_receipt_and_holds_up_nothing_else() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, _) = world.pair(&own).await;
    let late = |ms| FaultPlan { late_acks: 1_000, ack_lateness_ms: ms, ..FaultPlan::default() };
    world.network.plan_faults(Some(late(60_000))).await.expect("plan");
    running.send(&other, "LATE", "taken, and not yet said").await;
    running.receipt("LATE", &ReceiptType::Delivered).await;
    let id = world.write(&other, &own, "meanwhile").await;
    assert_eq!(running.text(&id).await, "meanwhile");
    // An ack that is less late comes first.
    let counts = world.network.plan_faults(Some(late(1))).await.expect("plan");
    assert_eq!(counts, PlanCounts { stanzas: counts.stanzas, late_acks: 1, ..PlanCounts::default() });
    running.send(&other, "SOON", "said sooner").await;
    assert_eq!(running.acked("SOON").await, None);
    let entry = async |id: &str| {
        world.network.accepted(&AcceptedQuery { id: Some(id.to_owned()), ..Default::default() }).await.remove(0)
    };
    until("the ack to be on record", async || entry("SOON").await.ack_written.then_some(())).await;
    assert!(!entry("LATE").await.ack_written);
    assert!(!running.has(|event| matches!(event, Event::ServerAck(ack) if ack.id == "LATE")));
    running.stop().await;
    world.simulator.shutdown().await;
}
