//! What is away comes back, and nobody notices more than a delay.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::sleep;

use crate::{
    history::assert_complete,
    postgres::{Engine, Server},
    stack::Stack,
};

const TENANT: &str = "15550100021";
const CUSTOMER: &str = "15550100022";
const EACH_SECOND: usize = 20;

/// Inbound traffic, all through an outage of this many seconds. Gives the texts that were written.
async fn write_during(stack: &Stack, phase: &str, seconds: usize) -> BTreeSet<String> {
    let mut texts = BTreeSet::new();
    for second in 0..seconds {
        let text = format!("{phase}, second {second}");
        stack.network.write(CUSTOMER, TENANT, &text, EACH_SECOND, None).await.unwrap();
        texts.extend((1..=EACH_SECOND).map(|n| format!("{text} #{n}")));
        // Not a wait for something to happen: this is how long the outage lasts.
        sleep(Duration::from_secs(1)).await;
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_away_for_15_seconds_loses_nothing_and_restarts_no_process() {
    let Some(server) = Server::start() else { return };
    let mut stack = Stack::on_server(server.url()).await;
    let tenant = stack.tenant(TENANT, true).await;
    stack.network.new_phone(CUSTOMER, "Customer", None).await.unwrap();

    let mut expected = write_during(&stack, "before", 2).await;
    server.stop();
    expected.extend(write_during(&stack, "away", 15).await);
    server.start_again();
    expected.extend(write_during(&stack, "after", 3).await);

    assert_complete(&stack, &tenant, &expected).await;
    assert!(stack.worker_is_running() && !stack.control_plane_died(), "no process ended");
    println!("PostgreSQL away for 15 s: {} of {} messages in history, 0 lost", expected.len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_away_for_10_seconds_disconnects_nobody_and_loses_nothing() {
    control_plane_away(Engine::Sqlite, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make chaos"]
async fn chaos_the_control_plane_away_for_60_seconds_disconnects_nobody_and_loses_nothing() {
    control_plane_away(Engine::Sqlite, 60).await;
    control_plane_away(Engine::Postgres, 60).await;
}

async fn control_plane_away(engine: Engine, seconds: usize) {
    let Some(mut stack) = Stack::start(engine).await else { return };
    let tenant = stack.tenant(TENANT, true).await;
    stack.network.new_phone(CUSTOMER, "Customer", None).await.unwrap();

    let mut expected = write_during(&stack, "before", 1).await;
    let ended = stack.network.ended_connections().await.unwrap();
    stack.kill_control_plane();
    expected.extend(write_during(&stack, "away", seconds).await);
    assert_eq!(stack.network.ended_connections().await.unwrap(), ended, "a session was disconnected");
    stack.start_control_plane(&[]).await;

    assert_complete(&stack, &tenant, &expected).await;
    assert_eq!(stack.network.ended_connections().await.unwrap(), ended, "a session was disconnected");
    println!("control plane away for {seconds} s on {engine:?}: {} messages, 0 lost, 0 disconnects", expected.len());
}
