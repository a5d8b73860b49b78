//! Pairing by QR and by code, and login.

use simulator::NetworkError;
use whatsapp_rust::pair_code::PairCodeOptions;

use crate::client::{World, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_pairs_by_qr_and_resumes_with_ik() {
    let world = World::new().await;
    let phone = world.phone().await;
    let (device, running, jid) = world.pair(&phone).await;
    assert_eq!(jid, format!("{phone}:1@s.whatsapp.net"));
    world.ended("restart after pairing (515)").await;
    assert_eq!(running.client.push_name(), "Phone 1", "the push name comes from app state");
    running.stop().await;

    let again = device.start().await;
    again.connected().await;
    let connections = world.network.connections().await;
    assert_eq!(connections.len(), 1);
    assert_eq!(connections[0].pattern.as_deref(), Some("IK"));
    assert_eq!(connections[0].jid.as_deref(), Some(jid.as_str()));
    again.stop().await;
    until("pairing, first login, second login", async || {
        let patterns: Vec<_> = world.network.ended(None).await.into_iter().filter_map(|ended| ended.pattern).collect();
        (patterns == ["XX", "XX", "IK"]).then_some(())
    })
    .await;
    assert!(world.network.health().await.unimplemented.is_empty());
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qr_is_good_once_and_only_as_it_was_shown() {
    let world = World::new().await;
    let phone = world.phone().await;
    let device = world.device();
    let running = device.start().await;
    let qr = running.qr().await;

    assert_eq!(world.network.scan("19998887777", &qr).await.err(), Some(NetworkError::UnknownPhone));
    assert_eq!(world.network.scan(&phone, "not a qr").await.err(), Some(NetworkError::MalformedQr));
    let mut fields: Vec<&str> = qr.split(',').collect();
    fields[0] = "2@AAAA";
    assert_eq!(world.network.scan(&phone, &fields.join(",")).await.err(), Some(NetworkError::UnknownQr));

    world.network.scan(&phone, &qr).await.expect("scan");
    assert_eq!(world.network.scan(&phone, &qr).await.err(), Some(NetworkError::UnknownQr));
    running.connected().await;
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_with_the_wrong_secret_pairs_nobody() {
    let world = World::new().await;
    let phone = world.phone().await;
    let device = world.device();
    let running = device.start().await;
    let qr = running.qr().await;
    let mut fields: Vec<String> = qr.split(',').map(str::to_owned).collect();
    // The HMAC under another ADV secret must not convince the client.
    fields[3] = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned();
    assert_eq!(world.network.scan(&phone, &fields.join(",")).await.err(), Some(NetworkError::PairingFailed));
    world.ended("pairing failed").await;
    assert!(world.network.phones().await[0].companions.is_empty());
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_qr_is_refused() {
    let config = simulator::Config {
        first_ref_ttl: std::time::Duration::ZERO,
        ref_ttl: std::time::Duration::from_secs(60),
        ..Default::default()
    };
    let simulator = simulator::Simulator::start(config).await.expect("start");
    let network = simulator.network();
    let phone = network.create_phone(simulator::NewPhone::default()).await.expect("phone").phone;
    let device = crate::client::Device::new(simulator.ws_url());
    let running = device.start().await;
    let qr = running.qr().await;

    assert_eq!(network.scan(&phone, &qr).await.err(), Some(NetworkError::ExpiredQr));
    running.stop().await;
    simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlinked_device_is_told_and_cannot_log_in_again() {
    let world = World::new().await;
    let phone = world.phone().await;
    let (device, running, _) = world.pair(&phone).await;
    world.network.unlink(&phone, 1).await.expect("unlink");
    running
        .event("LoggedOut", |event| match event {
            whatsapp_rust::wacore::types::events::Event::LoggedOut(out) => Some(out.on_connect),
            _ => None,
        })
        .await;
    world.ended("device removed (401)").await;
    running.stop().await;

    let again = device.start().await;
    world.ended("login refused").await;
    again.stop().await;
    assert!(world.network.phones().await[0].companions.is_empty());
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_by_the_client_unlinks_it() {
    let world = World::new().await;
    let phone = world.phone().await;
    let (_device, running, _) = world.pair(&phone).await;
    running.client.logout().await;
    until("the device to be gone", async || world.network.phones().await[0].companions.is_empty().then_some(())).await;
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_clients_pair_at_once_and_each_gets_its_own_text() {
    let world = World::new().await;
    let writer = world.phone().await;
    let clients = (0..50).map(async |_| {
        let phone = world.phone().await;
        let (device, running, jid) = world.pair(&phone).await;
        let id = world.write(&writer, &phone, &phone).await;
        assert_eq!(running.text(&id).await, phone);
        running.send(&writer, &format!("TO-{phone}"), &phone).await;
        world.opened(&writer, &format!("TO-{phone}")).await;
        world.drained(&jid).await;
        (device, running)
    });
    let clients = futures_util::future::join_all(clients).await;
    assert_eq!(world.network.accepted_summary().await.distinct, 50);
    assert!(world.network.connections().await.iter().filter(|connection| connection.state == "active").count() == 50);
    for (_, running) in clients {
        running.stop().await;
    }
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_pairs_by_a_code_that_is_typed_into_the_phone() {
    let world = World::new().await;
    let (phone, other) = (world.phone().await, world.phone().await);
    let device = world.device();
    let running = device.start().await;
    running.qr().await;
    assert_eq!(world.network.enter_code(&phone, "ABCD-1234").await.err(), Some(NetworkError::UnknownCode));
    let options = PairCodeOptions { phone_number: phone.clone(), ..PairCodeOptions::default() };
    let code = running.client.pair_with_code(options).await.expect("a code");

    assert_eq!(world.network.enter_code(&phone, "O0I1").await.err(), Some(NetworkError::MalformedCode));
    assert_eq!(world.network.enter_code(&other, &code).await.err(), Some(NetworkError::UnknownCode));
    let linked = world.network.enter_code(&phone, &format!("{}-{}", &code[..4], &code[4..])).await.expect("linked");
    running.connected().await;
    assert_eq!(linked.jid, format!("{phone}:1@s.whatsapp.net"));
    let id = world.write(&other, &phone, "to the one that paired by code").await;
    assert_eq!(running.text(&id).await, "to the one that paired by code");
    running.stop().await;
    world.simulator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_code_links_nobody_and_the_right_one_still_does() {
    let world = World::new().await;
    let phone = world.phone().await;
    let running = world.device().start().await;
    running.qr().await;
    let options = PairCodeOptions { phone_number: phone.clone(), ..PairCodeOptions::default() };
    let code = running.client.pair_with_code(options).await.expect("a code");
    let wrong = if code == "AAAA1111" { "BBBB2222" } else { "AAAA1111" };
    assert_eq!(world.network.enter_code(&phone, wrong).await.err(), Some(NetworkError::WrongCode));
    assert!(world.network.phones().await.iter().all(|phone| phone.companions.is_empty()));
    world.network.enter_code(&phone, &code).await.expect("linked");
    running.connected().await;
    running.stop().await;
    world.simulator.shutdown().await;
}
