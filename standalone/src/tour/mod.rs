//! The guided tour: what a new tenant does in their first ten minutes, on the real protocol against the simulator.
//!
//! `make demo` performs it and stays up; `make smoke` performs it and exits with a table of steps and times. It goes
//! through the public API only, so that each step is also an example of what to call.

pub mod api;
pub mod network;
pub mod receiver;
mod report;

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use self::{
    api::{Api, text},
    network::Network,
    receiver::Receiver,
    report::Report,
};
use crate::embedded::{Embedded, Settings};

/// The phone that the tenant links.
const TENANT_PHONE: &str = "15550100001";
/// The phone of somebody who writes to the tenant.
const CUSTOMER_PHONE: &str = "15550100002";
const PASSWORD: &str = "correct horse battery staple";
const HELLO: &str = "Hello from Switchboard";
const REPLY: &str = "Hello back";
/// How long a step may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the tour leaves behind, for a reader who goes on by hand.
struct Place {
    network: Network,
    embedded: Embedded,
    /// Keeps answering the webhooks of the demo.
    _receiver: Receiver,
    email: String,
    key: String,
    session: String,
}

/// Performs the tour and ends everything.
pub async fn smoke() -> Result<()> {
    let mut report = Report::new();
    let outcome = perform(&mut report, Settings::temporary()?).await;
    report.print();
    let place = outcome?;
    place.embedded.shutdown().await;
    place.network.stop().await
}

/// Performs the tour and stays up until interrupted.
pub async fn demo() -> Result<()> {
    let mut report = Report::new();
    let settings = Settings::temporary()?.listening_on_the_usual_port();
    let place = perform(&mut report, settings).await?;
    let base = place.embedded.public_url();
    println!(
        "\nSwitchboard is up, with a simulated WhatsApp beside it. Everything is gone when you press Ctrl-C.

  Swagger UI     {base}/docs
  API            {base}/api/v1
  simulator      {}/control/v1

  log in as      {}   password: {PASSWORD}
  API key        {}
  session        {}

Send another message; +{CUSTOMER_PHONE} answers each with \"{REPLY}\":

  curl -sS {base}/api/v1/messages/send -H 'Authorization: Bearer {}' \\
    -H 'Content-Type: application/json' \\
    -d '{{\"session_id\":\"{}\",\"to\":\"+{CUSTOMER_PHONE}\",\"type\":\"text\",\"text\":{{\"body\":\"Hi\"}}}}'
",
        place.network.control_url(),
        place.email,
        place.key,
        place.session,
        place.key,
        place.session,
    );
    shared::signals::asked_to_stop()?.await;
    println!("stopping");
    place.embedded.shutdown().await;
    place.network.stop().await
}

async fn perform(report: &mut Report, settings: Settings) -> Result<Place> {
    println!("\nThe road from sign-up to a message on the wire\n");
    let network = report
        .step("start a simulated WhatsApp", async {
            let network = Network::start().await?;
            network.new_phone(TENANT_PHONE, "Tenant", None).await?;
            network.new_phone(CUSTOMER_PHONE, "Customer", Some(REPLY)).await?;
            Ok((network, "two phones, a process of its own".into()))
        })
        .await?;
    let receiver = report
        .step("start a webhook receiver", async {
            let receiver = Receiver::start().await?;
            let url = receiver.url();
            Ok((receiver, url))
        })
        .await?;
    let embedded = report
        .step("start Switchboard", async {
            let settings = settings.with_simulator(network.ws_url(), receiver.address());
            let embedded = Embedded::start(settings).await?;
            let told = format!("{}, two workers on one store", embedded.public_url());
            Ok((embedded, told))
        })
        .await?;
    let nobody = Api::new(&embedded.public_url())?;

    let email = "owner@example.com".to_owned();
    let owner = report
        .step("sign up a tenant", async {
            let answer = nobody
                .post(
                    "auth/signup",
                    json!({ "email": email, "password": PASSWORD, "name": "Olga Owner", "tenant_name": "Example Ltd" }),
                )
                .await?;
            Ok((nobody.with(text(&answer, "/access_token")?), email.clone()))
        })
        .await?;
    let key = report
        .step("make an API key", async {
            let scopes =
                ["sessions:read", "sessions:write", "messages:read", "messages:send", "webhooks", "usage:read"];
            let answer =
                owner.post("api-keys", json!({ "name": "tour", "network": "sandbox", "scopes": scopes })).await?;
            let key = text(&answer, "/key")?;
            let told = format!("{}…", &key[..12]);
            Ok((key, told))
        })
        .await?;
    let program = nobody.with(key.clone());
    report
        .step("register the webhook endpoint", async {
            let answer = program.post("webhooks", json!({ "url": receiver.url(), "event_types": ["*"] })).await?;
            receiver.expect_secret(text(&answer, "/secret")?);
            Ok(((), "signed after Standard Webhooks".into()))
        })
        .await?;
    let session = report
        .step("make and start a session", async {
            let answer = program.post("sessions", json!({ "name": "Reception" })).await?;
            let session = text(&answer, "/id")?;
            program.post(&format!("sessions/{session}/start"), json!({})).await?;
            Ok((session.clone(), session))
        })
        .await?;
    let qr = report
        .step("get its QR code", async {
            let qr =
                program.until(&format!("sessions/{session}/qr"), PATIENCE, |answer| text(answer, "/qr").ok()).await?;
            Ok((qr, "as PNG, SVG or JSON".into()))
        })
        .await?;
    print_qr(&qr)?;
    report
        .step("scan it with the phone", async {
            network.scan(TENANT_PHONE, &qr).await?;
            program
                .until(&format!("sessions/{session}/status"), PATIENCE, |answer| {
                    (answer.pointer("/status")? == "connected").then_some(())
                })
                .await?;
            Ok(((), "linked, logged in, connected".into()))
        })
        .await?;
    let message = report
        .step("send an end-to-end encrypted message", async {
            let answer = program
                .post(
                    "messages/send",
                    json!({
                        "session_id": session,
                        "to": format!("+{CUSTOMER_PHONE}"),
                        "type": "text",
                        "text": { "body": HELLO },
                    }),
                )
                .await?;
            let message = text(&answer, "/id")?;
            program
                .until(&format!("messages/{message}"), PATIENCE, |answer| {
                    matches!(answer.pointer("/status")?.as_str()?, "delivered" | "read").then_some(())
                })
                .await?;
            Ok((message.clone(), message))
        })
        .await?;
    report
        .step("see it decrypted on the other phone", async {
            let received = network.messages(CUSTOMER_PHONE).await?;
            received.iter().find(|received| received.text == HELLO).context("the phone did not get the text")?;
            Ok(((), format!("\"{HELLO}\"")))
        })
        .await?;
    report
        .step("get the reply by a signed webhook", async {
            let event = receiver
                .event(PATIENCE, |event| event["type"] == "message.received" && contains_text(event, REPLY))
                .await?;
            Ok(((), format!("{}, signature verified", text(&event, "/id")?)))
        })
        .await?;
    report
        .step("see both in history, the sent one read", async {
            program
                .until(&format!("messages/{message}"), PATIENCE, |answer| {
                    (answer.pointer("/status")? == "read").then_some(())
                })
                .await?;
            let history = program.get(&format!("messages?session_id={session}")).await?;
            let count = history["data"].as_array().map_or(0, Vec::len);
            anyhow::ensure!(count == 2, "history holds {count} messages, not 2");
            Ok(((), "queued → sent → delivered → read".into()))
        })
        .await?;
    report
        .step("see both metered", async {
            let usage = program
                .until("usage?granularity=day", PATIENCE, |answer| {
                    let total = |meter: &str| -> Option<i64> {
                        let rows = answer["data"].as_array()?;
                        rows.iter().filter(|row| row["meter"] == meter).map(|row| row["quantity"].as_i64()).sum()
                    };
                    let (sent, received) = (total("messages_sent")?, total("messages_received")?);
                    (sent == 1 && received == 1).then_some((sent, received))
                })
                .await?;
            Ok(((), format!("messages_sent {}, messages_received {}", usage.0, usage.1)))
        })
        .await?;
    Ok(Place { network, embedded, _receiver: receiver, email, key, session })
}

fn contains_text(event: &Value, body: &str) -> bool {
    event.pointer("/data/text/body").is_some_and(|text| text == body)
}

fn print_qr(qr: &str) -> Result<()> {
    let code = qrcode::QrCode::new(qr)?;
    let picture = code.render::<qrcode::render::unicode::Dense1x2>().quiet_zone(true).build();
    for line in picture.lines() {
        println!("        {line}");
    }
    Ok(())
}
