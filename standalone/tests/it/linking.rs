//! From the API to the phone: a session that is linked by a code, or past a passkey.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::join;
use rstest::rstest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use standalone::tour::api::text;

use crate::{
    postgres::Engine,
    stack::{PATIENCE, Stack, Tenant},
};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_just_made_is_linked_by_a_code_typed_into_the_phone(#[case] engine: Engine) {
    let Some(stack) = Stack::start(engine).await else { return };
    let phone = "15550100051";
    stack.network.new_phone(phone, "Typist", None).await.unwrap();
    let api = stack.owner(phone, None).await;
    let session = text(&api.post("sessions", json!({ "name": phone })).await.unwrap(), "/id").unwrap();
    api.until(&format!("sessions/{session}/status"), PATIENCE, |answer| (answer["status"] == "pairing").then_some(()))
        .await
        .unwrap();
    let answer = api.post(&format!("sessions/{session}/pairing-code"), json!({ "phone": format!("+{phone}") })).await;
    let code = text(&answer.unwrap(), "/code").unwrap();
    assert_eq!(code.len(), 9, "as the phone shows it: four, a dash, four");
    stack.network.enter_code(phone, &code).await.unwrap();
    let tenant = Tenant { api, session, phone: phone.to_owned() };
    tenant.connected(PATIENCE).await;

    stack.network.new_phone("15550100052", "Friend", None).await.unwrap();
    stack.network.write("15550100052", phone, "well typed", 1, None).await.unwrap();
    crate::stack::until("the message is in history", PATIENCE, async || {
        (tenant.texts("inbound").await == ["well typed"]).then_some(())
    })
    .await;
    let told = stack.logs();
    assert!(!told.contains(&code) && !told.contains(&code.replace('-', "")), "the code is in a log");
}

/// What an authenticator with this credential answers to a challenge of WhatsApp's.
fn credential(id: &str, challenge: &str) -> Value {
    let encoded = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let client_data = json!({ "type": "webauthn.get", "challenge": challenge, "origin": "https://web.whatsapp.com" });
    let user_present = [1, 0, 0, 0, 1];
    let data = [Sha256::digest("whatsapp.com").as_slice(), &user_present].concat();
    json!({ "id": id, "rawId": id, "type": "public-key", "clientExtensionResults": {}, "response": {
        "clientDataJSON": encoded(client_data.to_string().as_bytes()), "authenticatorData": encoded(&data),
        "signature": encoded(b"a signature"), "userHandle": null,
    }})
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_account_with_a_passkey_is_linked_by_its_owner_s_answers_through_the_api(#[case] engine: Engine) {
    let Some(stack) = Stack::start(engine).await else { return };
    let phone = "15550100053";
    stack.network.new_phone(phone, "Owner of a passkey", None).await.unwrap();
    let api = stack.owner(phone, None).await;
    let session = text(&api.post("sessions", json!({ "name": phone })).await.unwrap(), "/id").unwrap();
    let qr = api.until(&format!("sessions/{session}/qr"), PATIENCE, |answer| text(answer, "/qr").ok()).await.unwrap();
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
    let (known, unknown) = (BASE64_URL_SAFE_NO_PAD.encode(b"known"), BASE64_URL_SAFE_NO_PAD.encode(b"unknown"));
    let options = json!({
        "challenge": challenge, "rpId": "whatsapp.com", "timeout": 60_000, "userVerification": "required",
        "allowCredentials": [{ "type": "public-key", "id": known }],
    });
    let right = credential(&known, &challenge);

    let path = format!("sessions/{session}/passkey");
    let owner = async {
        let status = format!("sessions/{session}/status");
        api.until(&status, PATIENCE, |answer| (answer["status"] == "passkey_required").then_some(())).await.unwrap();
        let asked = api.get(&path).await.unwrap();
        assert_eq!(asked, json!({ "stage": "assertion", "request_options": options }));
        // WhatsApp, not we, finds fault with these, and the owner may try again.
        for wrong in [credential(&known, "YW5vdGhlcg"), credential(&unknown, &challenge)] {
            let refused = api.post(&path, json!({ "stage": "assertion", "credential": wrong })).await.unwrap_err();
            assert!(format!("{refused:#}").contains("link-refused"), "{refused:#}");
        }
        api.post(&path, json!({ "stage": "assertion", "credential": right })).await.unwrap();
        let code = api.until(&path, PATIENCE, |asked| text(asked, "/code").ok()).await.unwrap();
        api.post(&path, json!({ "stage": "confirmation" })).await.unwrap();
        code
    };
    let (linked, code) = join!(stack.network.scan_with_passkey(phone, &qr, &options), owner);
    let linked = linked.unwrap();
    assert_eq!(linked["code"], code.replace('-', "").as_str(), "the owner compared them");
    let relayed: Value = serde_json::from_str(linked["assertion"].as_str().unwrap()).unwrap();
    assert_eq!((&relayed["rawId"], &relayed["response"]), (&right["rawId"], &right["response"]));

    let tenant = Tenant { api, session, phone: phone.to_owned() };
    tenant.connected(PATIENCE).await;
    assert!(format!("{:#}", tenant.api.get(&path).await.unwrap_err()).contains("no-passkey-request"));
    stack.network.new_phone("15550100054", "Friend", None).await.unwrap();
    stack.network.write("15550100054", phone, "well proven", 1, None).await.unwrap();
    crate::stack::until("the message is in history", PATIENCE, async || {
        (tenant.texts("inbound").await == ["well proven"]).then_some(())
    })
    .await;
    let told = stack.logs();
    for secret in [&code, &code.replace('-', ""), &challenge, &known] {
        assert!(!told.contains(secret.as_str()), "what links a device is in a log");
    }
}
