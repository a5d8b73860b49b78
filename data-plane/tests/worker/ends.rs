//! Stops, logouts, conflicts, moves.

use std::time::Duration;

use shared::wire::session::{Desired, Observed};
use simulator::Fault;

use crate::world::{World, item, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_session_lets_go_and_comes_back_without_a_code() {
    let world = World::new().await;
    let linked = world.linked().await;
    let mut order = linked.order.clone();
    order.desired = Desired::Stopped;
    world.put(linked.worker.id(), &order).await;
    let stopped =
        world.observed(linked.id(), "it has stopped", |observed| matches!(observed, Observed::Stopped { .. })).await;
    assert_eq!(stopped, Observed::Stopped { reason: None });
    until("the worker has let go", async || world.view(linked.worker.id(), linked.id()).await.is_none().then_some(()))
        .await;

    let friend = world.phone().await;
    let ids = world.text(&friend, &linked.phone, "while stopped", 20).await;
    order.desired = Desired::Running;
    order.generation = world.plane.next_generation();
    let other = world.worker("w2").await;
    world.put(other.id(), &order).await;
    world.connected(linked.id()).await;
    world.has_all(linked.id(), &ids).await;
    assert_eq!(world.messages(linked.id()).len(), 20);
    linked.worker.shutdown().await;
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_removes_the_device_and_erases_the_state() {
    let world = World::new().await;
    let linked = world.linked().await;
    let mut order = linked.order.clone();
    order.desired = Desired::LoggedOut;
    world.put(linked.worker.id(), &order).await;
    let erased =
        world.observed(linked.id(), "it is erased", |observed| matches!(observed, Observed::Erased { .. })).await;
    assert_eq!(erased, Observed::Erased { unlink_confirmed: true });
    let phones = world.sim.network().phones().await;
    assert!(phones.iter().all(|phone| phone.companions.is_empty()), "the phone has no linked device any more");

    order.desired = Desired::Running;
    order.generation = world.plane.next_generation();
    until("the worker has let go", async || world.view(linked.worker.id(), linked.id()).await.is_none().then_some(()))
        .await;
    world.put(linked.worker.id(), &order).await;
    world.scan(linked.worker.id(), linked.id(), &linked.phone).await;
    world.connected(linked.id()).await;
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_never_linked_is_deleted_without_asking_whatsapp() {
    let world = World::new().await;
    let worker = world.worker("w1").await;
    let mut order = world.order();
    order.desired = Desired::Deleted;
    world.put(worker.id(), &order).await;
    let erased =
        world.observed(&order.session_id, "it is erased", |observed| matches!(observed, Observed::Erased { .. })).await;
    assert_eq!(erased, Observed::Erased { unlink_confirmed: true });
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlinked_session_says_so_and_links_anew_when_it_is_restarted() {
    let world = World::new().await;
    let linked = world.linked().await;
    let device = linked.device.split_once(':').unwrap().1.split_once('@').unwrap().0.parse().unwrap();
    world.sim.network().unlink(&linked.phone, device).await.unwrap();
    let out = world
        .observed(linked.id(), "it is logged out", |observed| matches!(observed, Observed::LoggedOut { .. }))
        .await;
    assert_eq!(out, Observed::LoggedOut { reason: "unlinked".into() });
    let sends = world.send(linked.worker.id(), &linked.order, vec![item("15550000000", "too late")]).await;
    assert_eq!(sends, [shared::wire::send::SendOutcome::NotConnected]);

    let mut order = linked.order.clone();
    order.restart_seq += 1;
    world.put(linked.worker.id(), &order).await;
    world.scan(linked.worker.id(), linked.id(), &linked.phone).await;
    world.connected(linked.id()).await;
    assert_eq!(world.plane.report(linked.id()).unwrap().restart_seq, order.restart_seq);
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_session_asks_first_and_comes_back_only_if_it_is_ours() {
    let world = World::new().await;
    let linked = world.linked().await;
    let before = world.plane.reports(linked.id()).len();
    world.sim.network().fault(&linked.device, Fault::Conflict).await.unwrap();
    until("it was said not to be connected", async || {
        let since = world.plane.reports(linked.id()).split_off(before);
        since.iter().any(|report| report.observed == Observed::Reconnecting).then_some(())
    })
    .await;
    world.connected(linked.id()).await;
    assert_eq!(world.plane.validations(), 1);

    // Placed elsewhere meanwhile, and this worker wasn't told.
    let mut moved = linked.order.clone();
    moved.generation = world.plane.next_generation();
    world.plane.place(&"w2".parse().unwrap(), &moved);
    world.sim.network().fault(&linked.device, Fault::Conflict).await.unwrap();
    until("the worker has let go", async || world.view(linked.worker.id(), linked.id()).await.is_none().then_some(()))
        .await;
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_sockets_are_the_library_s_to_dial_again() {
    let world = World::new().await;
    let mut config = world.config("w1");
    // A client that is built anew comes much later than anything is waited for.
    config.timing.rebuild = Duration::from_secs(3_600);
    let linked = world.linked_at(config).await;
    let friend = world.phone().await;
    for fault in [Fault::Eof, Fault::StreamError503, Fault::Close] {
        world.sim.network().fault(&linked.device, fault).await.unwrap();
        let ids = world.text(&friend, &linked.phone, "still there?", 5).await;
        world.has_all(linked.id(), &ids).await;
    }
    world.connected(linked.id()).await;
    assert_eq!(world.plane.validations(), 0);
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_another_waits_for_lets_go() {
    let world = World::new().await;
    let linked = world.linked().await;
    let other = world.worker("w2").await;
    let mut moved = linked.order.clone();
    moved.generation = world.plane.next_generation();
    world.put(other.id(), &moved).await;
    until("the session runs on the other worker", async || {
        let report = world.plane.report(linked.id())?;
        (report.generation == moved.generation && report.observed == Observed::Connected).then_some(())
    })
    .await;
    until("the worker has let go", async || world.view(linked.worker.id(), linked.id()).await.is_none().then_some(()))
        .await;
    let friend = world.phone().await;
    let ids = world.text(&friend, &linked.phone, "after the move", 5).await;
    world.has_all(linked.id(), &ids).await;
    linked.worker.shutdown().await;
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_while_it_removes_a_device_leaves_that_to_the_next() {
    let world = World::new().await;
    let linked = world.linked().await;
    linked.worker.shutdown().await;
    // Nobody listens there, so the device can't be removed.
    let mut config = world.config("w2");
    config.ws_url = Some("ws://127.0.0.1:9".parse().unwrap());
    let cut_off = world.worker_with(config).await;
    let mut order = linked.order.clone();
    order.desired = Desired::LoggedOut;
    order.generation = world.plane.next_generation();
    world.put(cut_off.id(), &order).await;
    until("it has begun", async || {
        world.plane.report(&order.session_id).filter(|report| report.generation == order.generation).map(drop)
    })
    .await;
    cut_off.shutdown().await;
    assert_ne!(
        world.plane.report(&order.session_id).map(|report| report.observed),
        Some(Observed::Erased { unlink_confirmed: false })
    );

    let worker = world.worker("w3").await;
    order.generation = world.plane.next_generation();
    world.put(worker.id(), &order).await;
    world
        .observed(&order.session_id, "it is erased", |observed| {
            *observed == Observed::Erased { unlink_confirmed: true }
        })
        .await;
    let phones = world.sim.network().phones().await;
    assert!(phones.iter().all(|phone| phone.companions.is_empty()), "the phone has no linked device any more");
    worker.shutdown().await;
}
