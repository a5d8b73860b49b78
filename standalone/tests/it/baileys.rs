//! Baileys as the independent client: what it and we believe of the protocol must be the same.
//!
//! As released it talks to us, but notices no wrong signature (`strict-signatures.cjs` says why). So everything is done twice: by
//! Baileys as it is, and by a Baileys whose checks of signatures and certificates count.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rstest::rstest;
use serde_json::{Value, json};
use standalone::tour::api::text;

use crate::{
    postgres::Engine,
    stack::{PATIENCE, Stack, until},
};

const OURS: &str = "15550100061";
const THEIRS: [&str; 2] = ["15550100062", "15550100063"];

/// What a wrong signature is to Baileys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signatures {
    /// Nothing, as it is released.
    Ignored,
    /// An error.
    Checked,
}

/// A gateway on Baileys; ends with this value.
struct Peer {
    process: Child,
    base: String,
    http: reqwest::Client,
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Peer {
    /// `None` where it isn't installed, after saying so.
    async fn start(ws_url: &str, root_key: &str, signatures: Signatures) -> Option<Self> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../bench/peers/baileys");
        if !folder.join("node_modules").is_dir() {
            assert!(std::env::var("CI_REQUIRE_BAILEYS").is_err(), "Baileys is required and not installed");
            eprintln!(
                "\n*** SKIPPED: Baileys is not installed, nothing is tested against it (`make test` installs it) ***\n"
            );
            return None;
        }
        let mut command = Command::new("node");
        if signatures == Signatures::Checked {
            command.args(["--require", "./strict-signatures.cjs"]);
        }
        let mut process = command
            .arg("server.js")
            .current_dir(folder)
            .env("WHATSAPP_WS_URL", ws_url)
            .env("WHATSAPP_ROOT_KEY", root_key)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        // What libsignal prints has to go somewhere, or the process ends.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let said: Value = serde_json::from_str(&line).unwrap();
        let base = format!("{}/api/v1", text(&said, "/url").unwrap());
        Some(Self { process, base, http: reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap() })
    }

    async fn get(&self, path: &str) -> Value {
        self.http.get(format!("{}/{path}", self.base)).send().await.unwrap().json().await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let request = self.http.post(format!("{}/{path}", self.base)).header("prefer", "wait=20").json(&body);
        request.send().await.unwrap().json().await.unwrap()
    }

    async fn session(&self) -> String {
        text(&self.post("sessions", json!({})).await, "/id").unwrap()
    }

    async fn qr(&self, session: &str) -> String {
        until("Baileys shows a code", PATIENCE, async || {
            text(&self.get(&format!("sessions/{session}/qr")).await, "/qr").ok()
        })
        .await
    }

    async fn status(&self, session: &str, wanted: &str) -> Value {
        until(&format!("Baileys is {wanted}"), PATIENCE, async || {
            let status = self.get(&format!("sessions/{session}/status")).await;
            (status["status"] == wanted).then_some(status)
        })
        .await
    }

    async fn received(&self, session: &str, count: usize) -> Vec<String> {
        until("Baileys has the messages", PATIENCE, async || {
            let messages = self.get(&format!("sessions/{session}/messages")).await;
            let bodies: Vec<_> =
                messages["data"].as_array().unwrap().iter().map(|one| text(one, "/text/body").unwrap()).collect();
            (bodies.len() >= count).then_some(bodies)
        })
        .await
    }
}

#[rstest]
#[case::as_released(Signatures::Ignored)]
#[case::that_checks_signatures(Signatures::Checked)]
#[tokio::test(flavor = "multi_thread")]
async fn baileys_pairs_by_qr_and_by_code_and_exchanges_texts_with_one_of_our_sessions(#[case] signatures: Signatures) {
    let Some(stack) = Stack::start(Engine::Sqlite).await else { return };
    let root = stack.network.root_key().await.unwrap();
    let Some(peer) = Peer::start(stack.network.ws_url(), &root, signatures).await else { return };
    let ours = stack.tenant(OURS, true).await;

    let mut sessions = Vec::new();
    for (phone, by_code) in THEIRS.into_iter().zip([false, true]) {
        stack.network.new_phone(phone, "Peer", None).await.unwrap();
        let session = peer.session().await;
        let qr = peer.qr(&session).await;
        if by_code {
            let path = format!("sessions/{session}/pairing-code");
            let code = text(&peer.post(&path, json!({ "phone": phone })).await, "/code").unwrap();
            // Baileys gives the code out before the server has answered.
            until("the code is typed", PATIENCE, async || stack.network.enter_code(phone, &code).await.ok()).await;
        } else {
            stack.network.scan(phone, &qr).await.unwrap();
        }
        peer.status(&session, "connected").await;
        sessions.push(session);
    }

    let mut expected = Vec::new();
    for (phone, session) in THEIRS.into_iter().zip(&sessions) {
        let mut written = Vec::new();
        // More than one each way: the first opens a Signal session, the others go on in it.
        for n in 1..=3 {
            let words = format!("{n} from Baileys at {phone}");
            let body =
                json!({ "session_id": session, "to": format!("+{OURS}"), "type": "text", "text": { "body": words } });
            assert_eq!(peer.post("messages/send", body).await["status"], "sent");
            expected.push(words);
            let words = format!("{n} from us to {phone}");
            let body = json!({
                "session_id": ours.session, "to": format!("+{phone}"), "type": "text", "text": { "body": words },
            });
            let sent = text(&ours.api.post("messages/send", body).await.unwrap(), "/id").unwrap();
            ours.api
                .until(&format!("messages/{sent}"), PATIENCE, |message| {
                    matches!(message["status"].as_str()?, "delivered" | "read").then_some(())
                })
                .await
                .unwrap();
            written.push(words);
        }
        assert_eq!(peer.received(session, written.len()).await, written);
    }
    until("all of theirs are in our history", PATIENCE, async || {
        let mut texts = ours.texts("inbound").await;
        texts.reverse();
        (texts == expected).then_some(())
    })
    .await;
    let ends = stack.network.end_reasons().await.unwrap();
    assert!(ends.iter().all(|reason| reason == "restart after pairing (515)"), "nothing was malformed: {ends:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn baileys_refuses_the_simulator_under_another_root() {
    let network = standalone::tour::network::Network::start().await.unwrap();
    let root = BASE64_STANDARD.encode([7; 32]);
    let Some(peer) = Peer::start(network.ws_url(), &root, Signatures::Checked).await else { return };
    let session = peer.session().await;
    let refused = peer.status(&session, "failed").await;
    let reason = refused["reason"].as_str().unwrap();
    assert!(reason.contains("certificate signature invalid"), "{reason}");
}
