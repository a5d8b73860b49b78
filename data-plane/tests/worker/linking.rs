//! Linking by a code that is typed into the phone, and past a passkey.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use shared::wire::{
    linking::{PairingCode, Passkey},
    session::{Observed, PutSession},
};
use simulator::{NetworkError, PasskeyScan};

use crate::world::{World, until};

impl World {
    async fn ask_code(&self, order: &PutSession, generation: i64, phone: &str) -> Result<PairingCode, (u16, Value)> {
        let worker = "w1".parse().unwrap();
        let path = format!("/v1/sessions/{}/pairing-code", order.session_id);
        self.plane.ask(&worker, Method::POST, &path, Some(json!({"generation": generation, "phone": phone}))).await
    }
}

fn slug<T>(answer: Result<T, (u16, Value)>) -> (u16, String) {
    let (status, body) = answer.err().unwrap();
    (status, body["type"].as_str().unwrap().rsplit('/').next().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_linked_by_a_code_and_a_newer_code_replaces_it() {
    let world = World::new().await;
    let worker = world.worker("w1").await;
    let (order, phone) = (world.order(), world.phone().await);
    world.put(worker.id(), &order).await;
    // At once: it waits until the session can be linked.
    let first = world.ask_code(&order, order.generation, &phone).await.unwrap();
    assert_eq!(first.code.expose().len(), 8);
    let second = world.ask_code(&order, order.generation, &phone).await.unwrap();
    assert_ne!(first.code.expose(), second.code.expose());
    assert!(second.expires_at > chrono::Utc::now());
    assert_eq!(slug(world.ask_code(&order, order.generation + 1, &phone).await), (409, "generation-mismatch".into()));

    let network = world.sim.network();
    assert_eq!(network.enter_code(&phone, first.code.expose()).await.err(), Some(NetworkError::WrongCode));
    let linked = network.enter_code(&phone, second.code.expose()).await.unwrap();
    world.connected(&order.session_id).await;
    assert_eq!(world.plane.report(&order.session_id).unwrap().account.unwrap().jid, linked.jid);
    assert_eq!(slug(world.ask_code(&order, order.generation, &phone).await), (409, "not-pairing".into()));
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_without_an_account_is_refused() {
    let world = World::new().await;
    let worker = world.worker("w1").await;
    let order = world.order();
    world.put(worker.id(), &order).await;
    let answer = world.ask_code(&order, order.generation, "15559999999").await;
    assert_eq!(slug(answer), (409, "link-refused".into()));
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_with_a_passkey_is_linked_with_its_owner_s_answers() {
    let world = World::new().await;
    let worker = world.worker("w1").await;
    let (order, phone) = (world.order(), world.phone().await);
    let id = &order.session_id;
    world.put(worker.id(), &order).await;
    let qr = until("a code is shown", async || world.view(worker.id(), id).await?.qr).await;
    let options = r#"{"challenge":"Y2hhbGxlbmdl","rpId":"web.whatsapp.com"}"#;
    let scan = PasskeyScan { qr: qr.text, request_options: options.into() };
    let network = world.sim.network();
    let scanned = tokio::spawn(async move { network.scan_with_passkey(&phone, &scan).await });

    let answer = async |answer: Value| {
        let path = format!("/v1/sessions/{id}/passkey");
        let body = json!({"generation": order.generation, "answer": answer});
        world.plane.ask::<Value>(worker.id(), Method::POST, &path, Some(body)).await
    };
    let confirmed = json!({"stage": "confirmation"});
    world.observed(id, "a passkey is asked for", |observed| *observed == Observed::PasskeyRequired).await;
    let asked = until("it is shown", async || world.view(worker.id(), id).await?.passkey).await;
    assert!(asked == Passkey::Assertion { request_options: options.into() });
    assert_eq!(slug(answer(confirmed.clone()).await), (409, "not-asked".into()));

    let assertion = |challenge: &str| {
        let client_data = json!({"type": "webauthn.get", "challenge": challenge}).to_string();
        let data = [Sha256::digest("web.whatsapp.com").as_slice(), &[1, 0, 0, 0, 1]].concat();
        let response = json!({
            "clientDataJSON": URL_SAFE_NO_PAD.encode(client_data), "authenticatorData": URL_SAFE_NO_PAD.encode(data),
            "signature": "c2ln",
        });
        json!({"id": "aWQ", "rawId": "aWQ", "type": "public-key", "response": response}).to_string()
    };
    let credential = |assertion: &str| json!({"stage": "assertion", "assertion": assertion, "credential_id": "aWQ"});
    let refused = answer(credential(&assertion("YW5vdGhlcg"))).await;
    assert_eq!(slug(refused), (409, "link-refused".into()), "an answer to another challenge");
    let assertion = assertion("Y2hhbGxlbmdl");
    answer(credential(&assertion)).await.unwrap();
    let code = until("a code is to be compared", async || {
        assert!(!scanned.is_finished(), "the phone gave up");
        match world.view(worker.id(), id).await?.passkey? {
            Passkey::Confirmation { code } => Some(code),
            Passkey::Assertion { .. } => None,
        }
    })
    .await;
    answer(confirmed).await.ok();
    let proven = scanned.await.unwrap().unwrap();
    assert_eq!((proven.assertion, proven.code), (assertion, code.replace('-', "")));
    world.connected(id).await;
    assert!(world.view(worker.id(), id).await.unwrap().passkey.is_none());
    worker.shutdown().await;
}
