//! The wire is real: what was recorded can't be used again, and one altered bit is noticed.

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use simulator::{Config, PhoneSettings, Simulator};
use whatsapp_rust::NodeBuilder;
use whatsapp_rust::wacore::libsignal::protocol::KeyPair;
use whatsapp_rust::wacore_binary::Node;

use crate::client::{World, until};
use crate::raw::{Raw, bytes};

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

    for (n, recorded) in (1..).zip([&first_login, &second_login]) {
        let answers = replay(&world.simulator.ws_url(), recorded).await;
        assert!(answers.iter().all(Message::is_close), "the server answered a replay");
        until("the replay to have ended", async || {
            let ended = world.network.ended(None).await;
            (ended.iter().filter(|one| one.reason == "replayed handshake").count() >= n).then_some(())
        })
        .await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_login_with_another_noise_key_than_the_paired_one_is_refused() {
    let world = World::new().await;
    let phone = world.phone().await;
    let (_device, running, _) = world.pair(&phone).await;
    let stranger = KeyPair::generate(&mut rand::rng());
    let mut raw = Raw::log_in(&world.simulator.ws_url(), stranger, &phone, 1).await;
    let failure = raw.hear().await;
    assert_eq!(failure.tag, "failure");
    assert_eq!(failure.attrs.get("reason").map(ToString::to_string).as_deref(), Some("401"));
    drop(raw);
    world.ended("login refused").await;
    assert_eq!(world.network.connections().await.len(), 1, "the real device stays logged in");
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_client_is_cut_off() {
    let config = Config { idle_timeout: std::time::Duration::from_millis(300), ..Config::default() };
    let simulator = Simulator::start(config).await.expect("start");
    let network = simulator.network();
    let (_socket, _) = tokio_tungstenite::connect_async(simulator.ws_url()).await.expect("connect");
    let device = crate::client::Device::new(simulator.ws_url());
    let running = device.start().await;
    running.qr().await;
    until("the idle client to be cut off", async || {
        network.ended(None).await.iter().any(|ended| ended.reason == "idle").then_some(())
    })
    .await;
    running.stop().await;
    simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pre_keys_are_counted_handed_out_once_and_digested() {
    let world = World::new().await;
    let phone = world.phone().await;
    let (device, running, jid) = world.pair(&phone).await;
    running.stop().await;
    let mut raw = Raw::log_in(&world.simulator.ws_url(), device.noise_keys().await, &phone, 1).await;
    assert_eq!(raw.hear().await.tag, "success");

    let uploaded = raw.count().await;
    assert!(uploaded > 0, "the client has uploaded its keys");
    let mut seen = std::collections::HashSet::new();
    for _ in 0..3 {
        let bundle = raw.bundle(&jid).await;
        let key = bundle.get_optional_child("key").expect("a one-time key");
        assert!(seen.insert(bytes(key.get_optional_child("value").expect("value"))), "a key went out twice");
        assert!(bundle.get_optional_child("device-identity").is_some());
    }
    assert_eq!(raw.count().await, uploaded - 3);
    let gone = raw.bundle(&format!("{phone}:9@s.whatsapp.net")).await;
    let code = gone.get_optional_child("error").and_then(|error| error.attrs.get("code")).map(ToString::to_string);
    assert_eq!(code.as_deref(), Some("406"));

    let answer = raw.ask("encrypt", "get", [NodeBuilder::new("digest").build()]).await;
    let digest = answer.get_optional_child("digest").expect("digest");
    let listed = digest.get_optional_child("list").and_then(|list| list.children().map(<[Node]>::len));
    assert_eq!(listed, Some(uploaded - 3));
    assert_eq!(bytes(digest.get_optional_child("hash").expect("hash")).len(), 20);
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keep_alive_is_answered_and_the_unknown_refused_and_counted() {
    let world = World::new().await;
    let phone = world.phone().await;
    let (device, running, _) = world.pair(&phone).await;
    running.stop().await;
    let mut raw = Raw::log_in(&world.simulator.ws_url(), device.noise_keys().await, &phone, 1).await;
    assert_eq!(raw.hear().await.tag, "success");
    let pong = raw.ask("w:p", "get", []).await;
    assert_eq!(pong.attrs.get("type").map(ToString::to_string).as_deref(), Some("result"));
    let refusal = raw.ask("w:g2", "get", []).await;
    let code = refusal.get_optional_child("error").and_then(|error| error.attrs.get("code")).map(ToString::to_string);
    assert_eq!(code.as_deref(), Some("501"));
    assert_eq!(world.network.health().await.unimplemented.get("w:g2"), Some(&1));
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_receipt_alone_releases_nothing_and_a_bare_ack_no_copy_of_what_the_account_wrote() {
    let world = World::new().await;
    let (own, other) = (world.phone().await, world.phone().await);
    let settings = PhoneSettings { ignore_retries: Some(true), ..PhoneSettings::default() };
    world.network.configure(&other, settings).await.expect("configure");
    let (device, running, jid) = world.pair(&own).await;
    world.drained(&jid).await;
    running.stop().await;
    let mut raw = Raw::log_in(&world.simulator.ws_url(), device.noise_keys().await, &own, 1).await;
    assert_eq!(raw.hear().await.tag, "success");
    raw.ask("passive", "set", [NodeBuilder::new("active").build()]).await;
    let left = async || world.network.unacknowledged(&jid).await.expect("count");
    let receipt = |id: &str, to: &str, kind: &str| {
        NodeBuilder::new("receipt").attr("id", id).attr("to", format!("{to}@s.whatsapp.net")).attr("type", kind).build()
    };
    let ack = |id: &str, to: &str| {
        let ack = NodeBuilder::new("ack").attr("class", "message").attr("id", id);
        ack.attr("to", format!("{to}@s.whatsapp.net")).build()
    };

    let id = world.write(&other, &own, "unreadable").await;
    assert_eq!(raw.hear_a("message").await.attrs.get("id").map(ToString::to_string), Some(id.clone()));
    raw.say_stanza(&receipt(&id, &other, "retry")).await;
    raw.hear_a("ack").await;
    assert_eq!(left().await, 1, "asked for again, and still in the queue");
    raw.say_stanza(&ack(&id, &other)).await;
    until("the ack to release it", async || (left().await == 0).then_some(())).await;

    let id = world.write(&own, &other, "from my phone").await;
    assert_eq!(raw.hear_a("message").await.attrs.get("id").map(ToString::to_string), Some(id.clone()));
    raw.say_stanza(&ack(&id, &own)).await;
    // What is asked after it is answered after it.
    raw.say_stanza(&receipt("NONE", &other, "read")).await;
    raw.hear_a("ack").await;
    assert_eq!(left().await, 1, "the own copy waits for a receipt");
    raw.say_stanza(&receipt(&id, &own, "sender")).await;
    until("the receipt to release it", async || (left().await == 0).then_some(())).await;
    world.simulator.shutdown().await;
}
