//! What is on its way when a session stops, and how sessions come up.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sea_orm::ConnectionTrait;
use shared::wire::{
    send::SendOutcome,
    session::{Desired, Observed, OnUnknown},
};
use simulator::{Fault, FaultPlan};
use tokio::{io::AsyncReadExt, net::TcpListener};

use crate::world::{World, item, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_when_a_session_is_stopped_gets_its_word_first() {
    let world = World::new().await;
    let linked = world.linked().await;
    let mut items = Vec::new();
    for n in 0..3 {
        items.push(item(&world.phone().await, &format!("{n}")));
    }
    let network = world.sim.network();
    let late = FaultPlan { seed: 5, delay: 1_000, longest_delay_ms: 300, ..FaultPlan::default() };
    network.plan_faults(Some(late)).await.unwrap();

    let mut order = linked.order.clone();
    let stopping = async {
        until("WhatsApp has one", async || (network.accepted_summary().await.total > 0).then_some(())).await;
        order.desired = Desired::Stopped;
        world.put(linked.worker.id(), &order).await;
    };
    let (outcomes, ()) = tokio::join!(world.send(linked.worker.id(), &linked.order, items.clone()), stopping);
    let settled = |outcome: &SendOutcome| matches!(outcome, SendOutcome::Acked { .. } | SendOutcome::NotConnected);
    assert!(outcomes.iter().all(settled), "{outcomes:?}");
    assert!(outcomes.iter().any(|outcome| matches!(outcome, SendOutcome::Acked { .. })), "{outcomes:?}");
    world.observed(linked.id(), "it has stopped", |observed| matches!(observed, Observed::Stopped { .. })).await;
    network.plan_faults(None).await.unwrap();

    until("the worker has let go", async || world.view(linked.worker.id(), linked.id()).await.is_none().then_some(()))
        .await;
    order.desired = Desired::Running;
    order.generation = world.plane.next_generation();
    world.put(linked.worker.id(), &order).await;
    world.connected(linked.id()).await;
    let again = world.send(linked.worker.id(), &order, items).await;
    assert!(again.iter().all(|outcome| matches!(outcome, SendOutcome::Acked { .. })), "{again:?}");
    let accepted = network.accepted_summary().await;
    assert_eq!((accepted.total, accepted.repeats), (3, 0));
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_when_a_session_is_logged_out_gets_its_word_first() {
    let world = World::new().await;
    let linked = world.linked().await;
    let mut items = Vec::new();
    for n in 0..3 {
        items.push(item(&world.phone().await, &format!("{n}")));
    }
    let network = world.sim.network();
    let late = FaultPlan { seed: 5, late_acks: 1_000, ack_lateness_ms: 300, ..FaultPlan::default() };
    network.plan_faults(Some(late)).await.unwrap();

    let mut order = linked.order.clone();
    let leaving = async {
        until("WhatsApp has one", async || (network.accepted_summary().await.total > 0).then_some(())).await;
        order.desired = Desired::LoggedOut;
        world.put(linked.worker.id(), &order).await;
    };
    let (outcomes, ()) = tokio::join!(world.send(linked.worker.id(), &linked.order, items), leaving);
    let erased = |observed: &Observed| *observed == Observed::Erased { unlink_confirmed: true };
    world.observed(linked.id(), "it is logged out", erased).await;
    let acked = outcomes.iter().filter(|outcome| matches!(outcome, SendOutcome::Acked { .. })).count();
    assert_eq!(acked as u64, network.accepted_summary().await.total, "{outcomes:?}");
    assert!(!outcomes.contains(&SendOutcome::Pending), "{outcomes:?}");
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_answered_in_time_though_whatsapp_looks_nobody_up() {
    let world = World::new().await;
    let linked = world.linked().await;
    let network = world.sim.network();
    network.fault(&linked.device, Fault::Mute).await.unwrap();
    let items = vec![item("15550109999", "to a stranger")];
    let outcomes = world.send_within(linked.worker.id(), &linked.order, items.clone(), 300).await;
    assert_eq!(outcomes, [SendOutcome::ChatBlocked], "nothing was written");
    network.fault(&linked.device, Fault::Eof).await.unwrap();
    network.fault(&linked.device, Fault::Release).await.unwrap();
    let outcome = until("it is asked again", async || {
        let outcome = world.send(linked.worker.id(), &linked.order, items.clone()).await.remove(0);
        (outcome != SendOutcome::NotConnected).then_some(outcome)
    })
    .await;
    assert_eq!(outcome, SendOutcome::Invalid { reason: "not_on_whatsapp".into() });
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_not_released_is_freed_when_another_worker_wants_it() {
    let world = World::new().await;
    let linked = world.linked().await;
    let mut order = linked.order.clone();
    order.desired = Desired::Stopped;
    world.put(linked.worker.id(), &order).await;
    until("the worker has let go", async || world.view(linked.worker.id(), linked.id()).await.is_none().then_some(()))
        .await;
    // As if the store hadn't taken that.
    let store = sea_orm::Database::connect(world.database()).await.unwrap();
    store.execute_unprepared("UPDATE fence SET released = FALSE").await.unwrap();

    let other = world.worker("w2").await;
    order.desired = Desired::Running;
    order.generation = world.plane.next_generation();
    world.put(other.id(), &order).await;
    world.connected(linked.id()).await;
    for worker in [other, linked.worker] {
        worker.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_client_cannot_be_built_holds_up_no_other() {
    let world = World::new().await;
    let mut config = world.config("w1");
    config.timing.starts = 1;
    let linked = world.linked_at(config).await;
    // What is stored of it can't be opened any more.
    let store = sea_orm::Database::connect(world.database()).await.unwrap();
    store.execute_unprepared("UPDATE wa_state SET sealed = X'00'").await.unwrap();
    let mut order = linked.order.clone();
    order.restart_seq += 1;
    world.put(linked.worker.id(), &order).await;
    let broken = |observed: &Observed| matches!(observed, Observed::Reconnecting | Observed::Starting);
    world.observed(linked.id(), "it can't be built", broken).await;
    // Its pauses double; of this one nobody has to wait for the end.
    for _ in 0..3 {
        let other = world.order();
        world.put(linked.worker.id(), &other).await;
        world.scan(linked.worker.id(), &other.session_id, &world.phone().await).await;
        world.connected(&other.session_id).await;
    }
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_session_hears_that_unknown_sends_are_to_be_held() {
    let world = World::new().await;
    let linked = world.linked().await;
    let network = world.sim.network();
    let friend = world.phone().await;
    // Nothing has to be asked of WhatsApp for the next ones.
    world.send(linked.worker.id(), &linked.order, vec![item(&friend, "before")]).await;
    let late = FaultPlan { seed: 5, delay: 1_000, longest_delay_ms: 1_000, ..FaultPlan::default() };
    network.plan_faults(Some(late)).await.unwrap();
    let items = until("a connection was lost before the word came", async || {
        let items = vec![item(&friend, "once")];
        let known = network.accepted_summary().await.total;
        let has_it = until("WhatsApp has it", async || (network.accepted_summary().await.total > known).then_some(()));
        let sending = world.send(linked.worker.id(), &linked.order, items.clone());
        tokio::pin!(sending);
        let outcomes = tokio::select! {
            outcomes = &mut sending => outcomes,
            () = has_it => {
                // It may be between two connections.
                let _ = network.fault(&linked.device, Fault::Eof).await;
                sending.await
            }
        };
        (outcomes == [SendOutcome::Pending]).then_some(items)
    })
    .await;
    network.plan_faults(None).await.unwrap();
    let accepted = network.accepted_summary().await.total;

    let mut order = linked.order.clone();
    order.settings.on_unknown = OnUnknown::Hold;
    world.put(linked.worker.id(), &order).await;
    let held = until("it is connected again", async || {
        let outcome = world.send(linked.worker.id(), &order, items.clone()).await.remove(0);
        (outcome != SendOutcome::NotConnected).then_some(outcome)
    })
    .await;
    assert_eq!(held, SendOutcome::UnknownHeld);
    assert_eq!(network.accepted_summary().await.total, accepted);
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_come_up_a_few_at_a_time() {
    let world = World::new().await;
    // It takes connections and never says a word, so each dial ends by its deadline.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = world.config("w1");
    config.ws_url = Some(format!("ws://{}", silent.local_addr().unwrap()).parse().unwrap());
    config.timing.starts = 2;
    config.timing.start = Duration::from_secs(13);
    let dialled = Arc::<AtomicUsize>::default();
    let before_the_first_gave_up = Arc::<OnceLock<usize>>::default();
    let (dials, noted) = (Arc::clone(&dialled), Arc::clone(&before_the_first_gave_up));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = silent.accept().await {
            dials.fetch_add(1, Ordering::AcqRel);
            let (dials, noted) = (Arc::clone(&dials), Arc::clone(&noted));
            tokio::spawn(async move {
                let mut heard = [0; 1_024];
                while matches!(socket.read(&mut heard).await, Ok(1..)) {}
                noted.get_or_init(|| dials.load(Ordering::Acquire));
            });
        }
    });

    let worker = world.worker_with(config).await;
    for _ in 0..4 {
        world.put(worker.id(), &world.order()).await;
    }
    let first = until("a dial has come to its deadline", async || before_the_first_gave_up.get().copied()).await;
    assert_eq!(first, 2, "four would have dialled within these ten seconds");
    until("the others have their turn", async || (dialled.load(Ordering::Acquire) >= 4).then_some(())).await;
    worker.shutdown().await;
}
