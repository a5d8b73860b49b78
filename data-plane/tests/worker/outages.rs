//! What goes away: the worker, the control plane, the store.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use shared::{ids::WorkerId, wire::session::Observed};
use simulator::{Fault, LoginFailures};

use crate::world::{World, item, until};

/// The real program, so that it can really be killed.
struct Program(Child);

impl Program {
    fn start(world: &World, id: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_data-plane-sandbox"))
            .env("WORKER_ID", id)
            .env("WORKER_LISTEN", "127.0.0.1:0")
            .env("WORKER_KEY_FILE", world.key_file())
            .env("WORKER_JOIN_TOKEN", "let-me-in")
            .env("CONTROL_PLANE_URL", &world.plane.url)
            .env("DATA_PLANE_DATABASE_URL", world.database())
            .env("WHATSAPP_WS_URL", world.sim.ws_url())
            .env("LOG_LEVEL", "warn,data_plane=debug")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_comes_back_without_a_code_and_nothing_is_lost() {
    let world = World::new().await;
    let id: WorkerId = "killed".parse().unwrap();
    let mut program = Program::start(&world, id.as_str());
    until("the worker joins", async || world.plane.has_joined(&id).then_some(())).await;
    let order = world.order();
    world.put(&id, &order).await;
    let phone = world.phone().await;
    let device = world.scan(&id, &order.session_id, &phone).await;
    world.connected(&order.session_id).await;

    let friend = world.phone().await;
    let mut ids = Vec::new();
    // A kill that comes after everything was done proves nothing: once more then, as this process may be held up.
    for tries in 1.. {
        let arrived = || world.messages(&order.session_id).len();
        let before = arrived();
        let writing = world.text(&friend, &phone, "before and after", 200);
        let killing = async {
            until("some messages have arrived", async || (arrived() > before + 20).then_some(())).await;
            program.kill();
        };
        let (written, ()) = tokio::join!(writing, killing);
        ids.extend(written);
        let all_done = world.sim.network().unacknowledged(&device).await.unwrap() == 0 && arrived() >= ids.len();
        world.plane.forget(&id);
        program = Program::start(&world, id.as_str());
        until("the worker joins again", async || world.plane.has_joined(&id).then_some(())).await;
        if !all_done {
            break;
        }
        assert!(tries < 5, "each kill came after everything was done");
        world.connected(&order.session_id).await;
    }
    world.has_all(&order.session_id, &ids).await;
    world.connected(&order.session_id).await;
    until("WhatsApp has been acknowledged", async || {
        (world.sim.network().unacknowledged(&device).await.unwrap() == 0).then_some(())
    })
    .await;
    program.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_away_disconnects_nobody_and_loses_nothing() {
    let world = World::new().await;
    let linked = world.linked().await;
    let friend = world.phone().await;
    world.plane.set_down(true);
    let ids = world.text(&friend, &linked.phone, "while away", 50).await;
    until("the worker has them", async || {
        (world.sim.network().unacknowledged(&linked.device).await.unwrap() == 0).then_some(())
    })
    .await;
    assert_eq!(world.messages(linked.id()).len(), 0);
    assert_eq!(world.view(linked.worker.id(), linked.id()).await.unwrap().report.observed, Observed::Connected);
    let ended =
        world.sim.network().ended(None).await.iter().filter(|end| end.jid.as_ref() == Some(&linked.device)).count();
    world.plane.set_down(false);
    world.has_all(linked.id(), &ids).await;
    assert_eq!(world.messages(linked.id()).len(), 50);
    let after =
        world.sim.network().ended(None).await.iter().filter(|end| end.jid.as_ref() == Some(&linked.device)).count();
    assert_eq!(ended, after, "no connection ended");
    linked.worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_runs_on_after_its_worker_was_shut_down_and_started_again() {
    let world = World::new().await;
    let linked = world.linked().await;
    let friend = world.phone().await;
    let before = world.text(&friend, &linked.phone, "before", 10).await;
    linked.worker.shutdown().await;
    let during = world.text(&friend, &linked.phone, "during", 10).await;
    let worker = world.worker("w1").await;
    // Not the report of the run before: the generation is a new one.
    let order = until("the session is connected again", async || {
        let report = world.plane.report(&linked.order.session_id)?;
        let again = report.generation > linked.order.generation && report.observed == Observed::Connected;
        let mut order = linked.order.clone();
        order.generation = report.generation;
        again.then_some(order)
    })
    .await;
    world.has_all(&linked.order.session_id, &before).await;
    world.has_all(&linked.order.session_id, &during).await;
    assert_eq!(world.messages(&linked.order.session_id).len(), 20);
    let outcomes = world.send(worker.id(), &order, vec![item(&friend, "back")]).await;
    assert!(matches!(outcomes[0], shared::wire::send::SendOutcome::Acked { .. }), "{outcomes:?}");
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_no_writes_for_a_while_loses_nothing() {
    let world = World::new().await;
    let mut config = world.config("w1");
    config.timing.lease_ttl = Duration::from_secs(8);
    let worker = world.worker_with(config).await;
    let order = world.order();
    world.put(worker.id(), &order).await;
    let phone = world.phone().await;
    let device = world.scan(worker.id(), &order.session_id, &phone).await;
    world.connected(&order.session_id).await;

    let blocker = sea_orm::Database::connect(shared::pool::options(&world.database())).await.unwrap();
    let lock = sea_orm::TransactionTrait::begin(&blocker).await.unwrap();
    // The first write takes SQLite's one write lock.
    sea_orm::ConnectionTrait::execute_unprepared(&lock, "UPDATE store_meta SET value = value").await.unwrap();
    let friend = world.phone().await;
    let ids = world.text(&friend, &phone, "while the store is away", 50).await;
    until("the session has noticed", async || {
        let report = world.view(worker.id(), &order.session_id).await?.report;
        (report.observed != Observed::Connected).then_some(())
    })
    .await;
    assert!(world.sim.network().unacknowledged(&device).await.unwrap() > 0, "nothing was acknowledged unstored");
    lock.rollback().await.unwrap();
    world.has_all(&order.session_id, &ids).await;
    world.connected(&order.session_id).await;
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_lease_says_that_its_sessions_are_not_connected() {
    let world = World::new().await;
    let mut config = world.config("w1");
    config.timing.lease_ttl = Duration::from_secs(6);
    let worker = world.worker_with(config).await;
    let order = world.order();
    world.put(worker.id(), &order).await;
    let phone = world.phone().await;
    world.scan(worker.id(), &order.session_id, &phone).await;
    world.connected(&order.session_id).await;

    let blocker = sea_orm::Database::connect(shared::pool::options(&world.database())).await.unwrap();
    let lock = sea_orm::TransactionTrait::begin(&blocker).await.unwrap();
    sea_orm::ConnectionTrait::execute_unprepared(&lock, "UPDATE store_meta SET value = value").await.unwrap();
    // Nobody writes to the session, so no write of it fails: only the lease ends.
    world.observed(&order.session_id, "it isn't connected", |observed| *observed == Observed::Reconnecting).await;
    lock.rollback().await.unwrap();
    world.connected(&order.session_id).await;
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_while_a_session_waits_to_dial_again_doesn_t_keep_it_from_coming_back() {
    let world = World::new().await;
    let mut config = world.config("w1");
    config.timing.lease_ttl = Duration::from_secs(6);
    let worker = world.worker_with(config).await;
    let order = world.order();
    world.put(worker.id(), &order).await;
    let phone = world.phone().await;
    world.scan(worker.id(), &order.session_id, &phone).await;
    world.connected(&order.session_id).await;

    // It waits for half a minute.
    let device = format!("{phone}:1@s.whatsapp.net");
    let throttled = LoginFailures { code: 429, times: Some(1), ban_code: None, expire_seconds: None };
    world.sim.network().refuse_logins(&device, Some(throttled)).await.unwrap();
    world.sim.network().fault(&device, Fault::Eof).await.unwrap();
    until("the login was refused", async || {
        let ended = world.sim.network().ended(None).await;
        ended.iter().any(|one| one.reason.contains("login_failure")).then_some(())
    })
    .await;

    let blocker = sea_orm::Database::connect(shared::pool::options(&world.database())).await.unwrap();
    let lock = sea_orm::TransactionTrait::begin(&blocker).await.unwrap();
    sea_orm::ConnectionTrait::execute_unprepared(&lock, "UPDATE store_meta SET value = value").await.unwrap();
    until("the lease ended", async || {
        let sql = "SELECT 1 FROM worker_lease WHERE until > CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)";
        let query = sea_orm::Statement::from_string(sea_orm::DbBackend::Sqlite, sql);
        sea_orm::ConnectionTrait::query_one_raw(&lock, query).await.unwrap().is_none().then_some(())
    })
    .await;
    lock.rollback().await.unwrap();
    world.connected(&order.session_id).await;
    worker.shutdown().await;
}
