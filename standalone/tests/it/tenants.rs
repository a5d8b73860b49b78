//! Tenants beside each other.

use rstest::rstest;

use crate::{
    postgres::Engine,
    stack::{PATIENCE, Stack, until},
};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn the_same_chat_sender_and_id_in_two_tenants_sessions_is_in_both_histories(#[case] engine: Engine) {
    let Some(stack) = Stack::start(engine).await else { return };
    let (first, second) = (stack.tenant("15550100011", false).await, stack.tenant("15550100012", false).await);
    let sender = "15550100013";
    stack.network.new_phone(sender, "Sender", None).await.unwrap();
    for (tenant, words) in [(&first, "for the first"), (&second, "for the second")] {
        stack.network.write(sender, &tenant.phone, words, 1, Some("3EB0C0FFEE0000000001")).await.unwrap();
    }
    for (tenant, words) in [(&first, "for the first"), (&second, "for the second")] {
        until("the message is in this tenant's history", PATIENCE, async || {
            (tenant.texts("inbound").await == [words]).then_some(())
        })
        .await;
    }
}
