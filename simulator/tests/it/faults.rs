//! Connections broken on command, and logins that collide.

use simulator::Fault;
use whatsapp_rust::wacore::types::events::Event;

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
