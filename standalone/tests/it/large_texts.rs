//! Texts of the greatest length, many at once.

use serde_json::json;
use standalone::tour::api::text;

use crate::{
    postgres::Engine,
    stack::{PATIENCE, Stack},
};

/// In JSON each of these is two bytes, so that no worker would take all of them in one request.
#[tokio::test(flavor = "multi_thread")]
async fn many_long_texts_that_waited_for_a_session_are_sent_in_several_batches() {
    const TEXTS: usize = 40;
    let Some(mut stack) = Stack::start(Engine::Sqlite).await else { return };
    let tenant = stack.tenant("15550100065", false).await;
    stack.network.new_phone("15550100066", "Customer", None).await.unwrap();
    stack.kill_worker();
    let body = "\"".repeat(65_536);
    let mut last = String::new();
    for _ in 0..TEXTS {
        let message = json!({
            "session_id": tenant.session, "to": "+15550100066", "type": "text", "text": { "body": body },
        });
        last = text(&tenant.api.post("messages/send", message).await.unwrap(), "/id").unwrap();
    }
    stack.start_worker();
    tenant
        .api
        .until(&format!("messages/{last}"), 2 * PATIENCE, |answer| {
            matches!(answer["status"].as_str()?, "sent" | "delivered" | "read").then_some(())
        })
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", stack.logs()));
    assert_eq!(
        stack.query("SELECT CAST(COUNT(*) AS TEXT) FROM messages WHERE status IN ('sent', 'delivered', 'read')").await,
        ["40"]
    );
}
