//! Every fault that the simulator can make → status, events, what becomes of messages, and what the worker does next. The same
//! table, in words, is `docs/session-status.md`; this test fails where the two differ.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use simulator::{Fault, LoginFailures, Nacks};
use standalone::tour::api::{Api, text};

use crate::{
    postgres::Engine,
    stack::{PATIENCE, Stack, Tenant, until},
};

/// Silence is noticed after 50 s, and a throttled login waits 30 s.
const LONG: Duration = Duration::from_secs(150);
const FRIEND: &str = "15550300000";

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Stream(Fault),
    Login(u16),
    /// 402 without saying until when.
    LoginBanWithoutEnd,
    Nack(u16),
    Garbled,
    Unlinked,
}

/// What a session does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Nothing changes.
    Stays,
    /// It dials again by itself, and is connected.
    Returns,
    /// It holds no connection until it is started.
    Ends(&'static str, Option<&'static str>),
}

impl Cause {
    fn all() -> Vec<Self> {
        let mut all: Vec<Self> = Fault::ALL.into_iter().map(Self::Stream).collect();
        all.extend(LoginFailures::CODES.map(Self::Login));
        all.push(Self::LoginBanWithoutEnd);
        all.extend(Nacks::CODES.map(Self::Nack));
        all.extend([Self::Garbled, Self::Unlinked]);
        all
    }

    /// As the document names it.
    fn name(self) -> String {
        match self {
            Self::Stream(fault) => serde_json::to_value(fault).unwrap().as_str().unwrap().to_owned(),
            Self::Login(code) => format!("login_{code}"),
            Self::LoginBanWithoutEnd => "login_402_without_end".into(),
            Self::Nack(code) => format!("nack_{code}"),
            Self::Garbled => "garbled".into(),
            Self::Unlinked => "unlinked".into(),
        }
    }

    /// A code or fault without a line here doesn't compile, or fails.
    fn then(self) -> Then {
        match self {
            Self::Stream(fault) => match fault {
                Fault::StreamError401 | Fault::StreamError516 => Then::Ends("logged_out", Some("unlinked")),
                Fault::Conflict
                | Fault::StreamError409
                | Fault::StreamError429
                | Fault::StreamError500
                | Fault::StreamError503
                | Fault::Close
                | Fault::Eof
                | Fault::Mute => Then::Returns,
                // Asked for a new connection, it has one within a moment.
                Fault::StreamError515 | Fault::Hold | Fault::Release => Then::Stays,
            },
            Self::Login(401) | Self::Unlinked => Then::Ends("logged_out", Some("unlinked")),
            Self::Login(402 | 403) | Self::LoginBanWithoutEnd => Then::Ends("banned", None),
            Self::Login(405) => Then::Ends("failed", Some("client_outdated")),
            Self::Login(409) => Then::Ends("failed", Some("login_refused_409")),
            Self::Login(429 | 500 | 503) => Then::Returns,
            Self::Login(code) => panic!("no line for a login that is refused with {code}"),
            Self::Nack(_) | Self::Garbled => Then::Stays,
        }
    }

    /// Why a message that was refused failed.
    fn failure(self) -> Option<&'static str> {
        match self {
            Self::Nack(429) => Some("rate_limited"),
            Self::Nack(463) => Some("reach_out_time_lock"),
            Self::Nack(475) => Some("not_allowed_for_account"),
            Self::Nack(404) => Some("refused_404"),
            Self::Nack(501) => Some("refused_501"),
            Self::Nack(503) => Some("refused_503"),
            Self::Nack(code) => panic!("no line for a message that is refused with {code}"),
            _ => None,
        }
    }
}

#[test]
fn the_document_has_a_line_for_each_cause_that_says_the_same() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let document = std::fs::read_to_string(root.join("docs/session-status.md")).unwrap();
    for cause in Cause::all() {
        let start = format!("| `{}` |", cause.name());
        let line = document.lines().find(|line| line.starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("docs/session-status.md has no line for {}", cause.name()));
        let words = match cause.then() {
            Then::Stays => vec!["stays `connected`".to_owned()],
            Then::Returns => vec!["`reconnecting`".to_owned(), "`connected`".to_owned()],
            Then::Ends(status, reason) => {
                std::iter::once(status).chain(reason).map(|word| format!("`{word}`")).collect()
            }
        };
        for word in words.into_iter().chain(cause.failure().map(|reason| format!("`{reason}`"))) {
            assert!(line.contains(&word), "{}: {word} is missing in {line}", cause.name());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_has_its_documented_consequences() {
    let Some(stack) = Stack::start(Engine::Sqlite).await else { return };
    stack.network.new_phone(FRIEND, "Friend", None).await.unwrap();
    let api = stack.owner("fault-table", Some(&stack.receiver)).await;
    let causes = Cause::all();
    let sessions = join_all((1..=causes.len()).map(|n| stack.session(&api, format!("1555030{n:04}")))).await;
    let suffered = causes.iter().zip(&sessions).map(|(cause, session)| suffer(&stack, *cause, session));
    join_all(suffered).await;
}

async fn suffer(stack: &Stack, cause: Cause, session: &Tenant) {
    let device = format!("{}:1@s.whatsapp.net", session.phone);
    let hurt = async |how: &str, order: Value| stack.network.hurt(&device, how, &order).await.unwrap();
    let cut = async || hurt("fault", json!({ "kind": "eof" })).await;
    let name = cause.name();
    match cause {
        Cause::Stream(fault) => hurt("fault", json!({ "kind": fault })).await,
        Cause::Login(code) => {
            let expire = (code == 402).then_some(3_600);
            let order = json!({ "code": code, "times": 1, "ban_code": expire.map(|_| 101), "expire_seconds": expire });
            hurt("login-failures", order).await;
            cut().await;
        }
        Cause::LoginBanWithoutEnd => {
            hurt("login-failures", json!({ "code": 402, "times": 1 })).await;
            cut().await;
        }
        Cause::Nack(code) => hurt("nacks", json!({ "error": code, "times": 1 })).await,
        Cause::Garbled => hurt("garble", json!({ "times": 1 })).await,
        Cause::Unlinked => stack.network.unlink(&session.phone, 1).await.unwrap(),
    }
    match cause.then() {
        Then::Stays => {
            if cause.failure().is_some() {
                let refused = send(session, "refused").await.unwrap();
                let failed = message(session, &refused, "failed").await;
                assert_eq!(failed["reason"].as_str(), cause.failure(), "{name}");
                event(stack, session, &name, "message.status", "failed").await;
            }
            if cause == Cause::Stream(Fault::Hold) {
                stack.network.write(FRIEND, &session.phone, "held", 1, None).await.unwrap();
                let sent = send(session, "goes out all the same").await.unwrap();
                message(session, &sent, "sent").await;
                assert!(session.texts("inbound").await.is_empty(), "nothing is delivered while it is held");
                hurt("fault", json!({ "kind": "release" })).await;
            } else {
                stack.network.write(FRIEND, &session.phone, "held", 1, None).await.unwrap();
            }
            until(&format!("{name}: what was written arrives"), LONG, async || {
                (session.texts("inbound").await == ["held"]).then_some(())
            })
            .await;
            let status = session.api.get(&format!("sessions/{}/status", session.session)).await.unwrap();
            assert_eq!(status["status"], "connected", "{name}");
            works(session, &name).await;
            let shown = stack.receiver.events().into_iter().any(|event| {
                event["type"] == "session.status"
                    && event["session_id"] == session.session
                    && event["data"]["status"] == "reconnecting"
            });
            assert!(!shown, "{name}");
        }
        Then::Returns => {
            event(stack, session, &name, "session.status", "reconnecting").await;
            if cause == Cause::Stream(Fault::Mute) {
                hurt("fault", json!({ "kind": "release" })).await;
            }
            session.connected(LONG).await;
            works(session, &name).await;
        }
        Then::Ends(status, reason) => {
            let shown = session
                .api
                .until(&format!("sessions/{}/status", session.session), LONG, |shown| {
                    (shown["status"] == status).then(|| shown.clone())
                })
                .await
                .unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!(shown["reason"].as_str(), reason, "{name}");
            assert_eq!(shown["until"].is_string(), cause == Cause::Login(402), "{name}: {shown}");
            event(stack, session, &name, "session.status", status).await;
            let refused = send(session, "too late").await.unwrap_err();
            assert!(format!("{refused:#}").contains("session-not-running"), "{name}: {refused:#}");
            starts_again(stack, session, &name, status).await;
        }
    }
}

/// A session that has ended is started again: one that was unlinked shows a QR code, others log in.
async fn starts_again(stack: &Stack, session: &Tenant, name: &str, status: &str) {
    session.api.post(&format!("sessions/{}/start", session.session), json!({})).await.unwrap();
    if status == "logged_out" {
        let path = format!("sessions/{}/qr", session.session);
        let qr = session.api.until(&path, LONG, |answer| text(answer, "/qr").ok()).await;
        let qr = qr.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        stack.network.scan(&session.phone, &qr).await.unwrap();
    }
    session.connected(LONG).await;
    works(session, name).await;
}

/// A message goes out.
async fn works(session: &Tenant, name: &str) {
    let sent = send(session, name).await.unwrap();
    message(session, &sent, "sent").await;
}

async fn send(session: &Tenant, words: &str) -> anyhow::Result<String> {
    let api: &Api = &session.api;
    let body = json!({
        "session_id": session.session, "to": format!("+{FRIEND}"), "type": "text", "text": { "body": words },
    });
    text(&api.post("messages/send", body).await?, "/id")
}

/// Waits until a message has got this far.
async fn message(session: &Tenant, id: &str, wanted: &str) -> Value {
    let beyond = |status: &str| wanted == "sent" && matches!(status, "delivered" | "read");
    session
        .api
        .until(&format!("messages/{id}"), LONG, |message| {
            let status = message["status"].as_str()?;
            (status == wanted || beyond(status)).then(|| message.clone())
        })
        .await
        .unwrap()
}

/// Waits for a verified event of the session with this status.
async fn event(stack: &Stack, session: &Tenant, name: &str, kind: &str, status: &str) {
    stack
        .receiver
        .event(LONG.max(PATIENCE), |event| {
            event["type"] == kind && event["session_id"] == session.session && event["data"]["status"] == status
        })
        .await
        .unwrap_or_else(|error| panic!("{name}: {kind} {status}: {error:#}"));
}
