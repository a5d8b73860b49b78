//! What the logs hold, at trace level for every target, after a run with planted sentinels.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use standalone::tour::api::text;
use tempfile::TempDir;

use crate::{
    postgres::fresh_database,
    stack::{PATIENCE, Stack, until},
};

const TENANT: &str = "15550147001";
const CUSTOMER: &str = "15550147002";
const OUT: &str = "sentinel-out-7Q4F";
const IN: &str = "sentinel-in-9K2M";
const PASSWORD: &str = "a long enough password";

/// The first sentinel that stands in the logs, if any.
fn leak<'a>(logs: &str, sentinels: &'a [String]) -> Option<&'a str> {
    sentinels.iter().map(String::as_str).find(|sentinel| logs.contains(sentinel))
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_at_trace_level_hold_no_secret_phone_number_jid_or_message_text() {
    let dir = TempDir::with_prefix("switchboard-").unwrap();
    let file = |name: &str| format!("sqlite://{}?mode=rwc", dir.path().join(name).display());
    let (control_plane_db, worker_db) = match fresh_database().await {
        Some(url) => (url, fresh_database().await.unwrap()),
        None => (file("control-plane.db"), file("store.db")),
    };
    let mut stack = Stack::on(dir, control_plane_db, worker_db, "trace").await;
    let tenant = stack.tenant(TENANT, true).await;
    stack.network.new_phone(CUSTOMER, "Sentinel Pushname", None).await.unwrap();
    let body = json!({
        "session_id": tenant.session, "to": format!("+{CUSTOMER}"), "type": "text", "text": { "body": OUT },
    });
    let answer = tenant.api.post("messages/send", body).await.unwrap();
    let message = text(&answer, "/id").unwrap();
    tenant
        .api
        .until(&format!("messages/{message}"), PATIENCE, |answer| {
            matches!(answer["status"].as_str()?, "delivered" | "read").then_some(())
        })
        .await
        .unwrap();
    stack.network.write(CUSTOMER, &tenant.phone, IN, 1, None).await.unwrap();
    until("the message is in history", PATIENCE, async || (tenant.texts("inbound").await == [IN]).then_some(())).await;
    // A bad request and a wrong password, since errors are where values slip out.
    drop(tenant.api.post("messages/send", json!({ "session_id": tenant.session, "to": "12345678901234567", "type": "text", "text": { "body": OUT } })).await);
    drop(stack.api().post("auth/login", json!({ "email": "nobody@example.com", "password": PASSWORD })).await);
    // And a restart, so that state is loaded, not only made.
    stack.kill_control_plane();
    stack.start_control_plane(&[]).await;
    tenant.connected(PATIENCE).await;

    let logs = stack.logs();
    let traced = logs.lines().filter(|line| line.contains("TRACE")).count();
    assert!(traced > 20, "trace level was not on: {traced} lines");
    assert!(logs.contains("whatsapp_rust") || logs.contains("wacore"), "the library's target is not in the logs");
    let mut sentinels: Vec<String> =
        [TENANT, CUSTOMER, OUT, IN, PASSWORD, "Sentinel Pushname", "@s.whatsapp.net", "@lid", "sb_test_", "whsec_"]
            .map(str::to_owned)
            .to_vec();
    sentinels.extend([STANDARD.encode(OUT), STANDARD.encode(IN), hex(OUT), hex(IN), bytes(OUT), bytes(IN)]);
    sentinels.extend(stack.secrets());
    assert_eq!(leak(&logs, &sentinels), None, "logs are in {}", stack.dir.path().display());

    // The check can fail: one planted line is found.
    for sentinel in &sentinels {
        let spoiled = format!("{logs}\n2026-01-01T00:00:00Z INFO data_plane: took {sentinel}\n");
        assert_eq!(leak(&spoiled, &sentinels), Some(sentinel.as_str()));
    }
}

/// As `{:02x}` prints.
fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// As `{:?}` prints a slice of bytes.
fn bytes(text: &str) -> String {
    text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ")
}
