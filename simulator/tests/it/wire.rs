//! The wire is real: what was recorded can't be used again, and one altered bit is noticed.

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use crate::client::World;

/// Sends recorded WebSocket messages from a new connection and waits for the server to end it. Returns what came back.
async fn replay(url: &str, recorded: &[Bytes]) -> Vec<Message> {
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("connect");
    for message in recorded {
        // The server may end the connection before it has everything.
        if socket.send(Message::Binary(message.clone())).await.is_err() {
            break;
        }
    }
    let mut answers = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        answers.push(message);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_login_replayed_byte_for_byte_is_refused() {
    let world = World::new().await;
    let phone = world.phone().await;
    let (device, running, jid) = world.pair(&phone).await;
    let first_login = device.tap.sent();
    running.stop().await;
    let again = device.start().await;
    again.connected().await;
    let second_login = device.tap.sent();
    let connected = world.network.connections().await[0].since;

    for recorded in [&first_login, &second_login] {
        let answers = replay(&world.simulator.ws_url(), recorded).await;
        assert!(answers.iter().all(Message::is_close), "the server answered a replay");
        world.ended("replayed handshake").await;
    }
    let connections = world.network.connections().await;
    assert_eq!(connections.len(), 1, "the real login must not be replaced");
    assert_eq!((connections[0].since, connections[0].jid.as_deref()), (connected, Some(jid.as_str())));
    again.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_login_is_refused_by_a_server_that_has_never_seen_it() {
    let (world, stranger) = (World::new().await, World::new().await);
    let phone = world.phone().await;
    let (device, running, _) = world.pair(&phone).await;
    let recorded = device.tap.sent();
    let answers = replay(&stranger.simulator.ws_url(), &recorded).await;
    assert!(answers.iter().filter(|message| message.is_binary()).count() <= 1, "at most the server's hello");
    stranger.ended("handshake message does not decrypt").await;
    running.stop().await;
    world.simulator.shutdown().await;
    stranger.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flipped_bit_in_any_message_ends_the_connection_with_a_reason() {
    // Messages of a login with XX: hello, finish, then frames; with IK: hello, then frames.
    let world = World::new().await;
    let phone = world.phone().await;
    let (device, running, _) = world.pair(&phone).await;
    running.stop().await;
    for (number, reason) in
        [(0, "handshake message does not decrypt"), (1, "frame does not decrypt"), (3, "frame does not decrypt")]
    {
        let before = world.network.ended(None).await.len();
        device.tap.flip_message(number);
        let altered = device.start().await;
        crate::client::until("the altered connection to end", async || {
            let ended = world.network.ended(None).await;
            ended[before..].iter().any(|ended| ended.reason == reason).then_some(())
        })
        .await;
        altered.stop().await;
    }
    device.tap.flip_message(usize::MAX);
    let intact = device.start().await;
    intact.connected().await;
    intact.stop().await;

    let unpaired = world.device();
    unpaired.tap.flip_message(1);
    let altered = unpaired.start().await;
    world.ended("handshake message does not decrypt").await;
    altered.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_never_gets_past_the_prologue() {
    let world = World::new().await;
    replay(&world.simulator.ws_url(), &[Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n")]).await;
    world.ended("prologue is not WA 6 3").await;
    replay(&world.simulator.ws_url(), &[Bytes::from_static(b"WA\x06\x03\x00\x00\x04abcd")]).await;
    world.ended("malformed handshake message").await;
    let elsewhere = world.simulator.ws_url().replace("/ws/chat", "/elsewhere");
    assert!(tokio_tungstenite::connect_async(elsewhere).await.is_err());
    world.ended("not a chat websocket").await;
    world.simulator.shutdown().await;
}
