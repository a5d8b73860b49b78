//! The offline queue: what was not acknowledged comes again.

use simulator::{Fault, TextOrder};

use crate::client::{World, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_drained_after_reconnecting() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (device, running, jid) = world.pair(&own).await;
    world.drained(&jid).await;
    running.stop().await;
    until("the device to be offline", async || {
        (!world.network.phones().await.iter().any(|phone| phone.companions.iter().any(|companion| companion.connected)))
            .then_some(())
    })
    .await;
    let order = TextOrder { to: own.clone(), text: "while away".to_owned(), id: None, count: Some(450), by_lid: false };
    let ids = world.network.write(&other, order).await.expect("write");
    assert_eq!(world.network.unacknowledged(&jid).await, Ok(450));

    let again = device.start().await;
    until("the whole backlog", async || (again.texts().len() >= 450).then_some(())).await;
    world.drained(&jid).await;
    let got: Vec<String> = again.texts().into_iter().map(|(id, _)| id).collect();
    assert_eq!(got, ids, "all of it, once, in order");
    assert!(again.inbound().iter().all(|inbound| inbound.info.is_offline));
    again.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_device_gets_nothing_until_it_is_released() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (_device, running, jid) = world.pair(&own).await;
    world.drained(&jid).await;
    world.network.fault(&jid, Fault::Hold).await.expect("hold");
    let id = world.write(&other, &own, "wait for it").await;
    // What the device sends is taken all the same.
    running.send(&other, "MEANWHILE", "still talking").await;
    world.opened(&other, "MEANWHILE").await;
    assert_eq!(running.acked("MEANWHILE").await, None);
    assert!(running.texts().is_empty());
    assert_eq!(world.network.unacknowledged(&jid).await, Ok(1));
    world.network.fault(&jid, Fault::Release).await.expect("release");
    assert_eq!(running.text(&id).await, "wait for it");
    world.drained(&jid).await;
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crashed_client_did_not_acknowledge_is_delivered_again() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let (device, running, jid) = world.pair(&own).await;
    world.network.fault(&jid, Fault::Hold).await.expect("hold");
    let ids: Vec<String> = world
        .network
        .write(
            &other,
            TextOrder { to: own.clone(), text: "survive".to_owned(), id: None, count: Some(50), by_lid: false },
        )
        .await
        .expect("write");
    running.abort();
    world.network.fault(&jid, Fault::Eof).await.ok();
    world.network.fault(&jid, Fault::Release).await.expect("release");
    let again = device.start().await;
    until("all of it", async || (again.texts().len() >= 50).then_some(())).await;
    world.drained(&jid).await;
    let got: Vec<String> = again.texts().into_iter().map(|(id, _)| id).collect();
    assert_eq!(got, ids);
    again.stop().await;
    world.simulator.shutdown().await;
}
