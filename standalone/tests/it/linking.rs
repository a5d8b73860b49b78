//! From the API to the phone: a session that is linked by a code.

use rstest::rstest;
use serde_json::json;
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
