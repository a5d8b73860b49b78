//! The simulator as a process.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

use crate::client::Device;

#[tokio::test(flavor = "multi_thread")]
async fn the_process_says_where_it_listens_keeps_names_out_of_its_log_and_stops_on_sigterm() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_simulator"))
        .args(["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--log", "trace"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("start");
    let mut lines = BufReader::new(process.stdout.take().expect("stdout")).lines();
    let mut log = process.stderr.take().expect("stderr");
    let log = tokio::spawn(async move {
        let mut text = String::new();
        log.read_to_string(&mut text).await.expect("log");
        text
    });
    let ready: Value = serde_json::from_str(&lines.next_line().await.expect("read").expect("a line")).expect("json");
    let control = format!("{}/control/v1", ready["control_url"].as_str().expect("control_url"));
    let http = reqwest::Client::new();
    let post = async |path: &str, body: Value| {
        let request = http.post(format!("{control}/{path}")).header("content-type", "application/json");
        let response = request.body(body.to_string()).send().await.expect("request");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.text().await.expect("body")
    };
    for phone in ["15550009876", "15550005432"] {
        post("phones", serde_json::json!({ "phone": phone, "push_name": "Sentinel Name" })).await;
    }
    let device = Device::new(ready["ws_url"].as_str().expect("ws_url").to_owned());
    let running = device.start().await;
    post("phones/15550009876/scan", serde_json::json!({ "qr": running.qr().await })).await;
    running.connected().await;
    let order = serde_json::json!({ "to": "15550009876", "text": "sentinel text", "id": "SENTINELID" });
    post("phones/15550005432/messages", order).await;
    assert_eq!(running.text("SENTINELID").await, "sentinel text");
    let chat = whatsapp_rust::Jid::pn("15550005432");
    running.client.mark_as_read(&chat, None, &["SENTINELID"]).await.expect("read");
    running.send("15550005432", "BACK", "sentinel text").await;
    running.acked("BACK").await;
    running.stop().await;

    let id = process.id().expect("running").to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.expect("kill").success());
    let status = tokio::time::timeout(Duration::from_secs(20), process.wait()).await.expect("it stops").expect("wait");
    assert!(status.success());
    let log = log.await.expect("log");
    assert!(log.contains("connection ended"), "the log is not empty at this level");
    for sentinel in
        ["15550009876", "15550005432", "Sentinel Name", "sentinel text", "SENTINELID", "@s.whatsapp.net", "@lid"]
    {
        assert!(!log.contains(sentinel), "the log shows {sentinel}");
    }
}
