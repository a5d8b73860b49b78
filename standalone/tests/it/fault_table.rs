//! Every fault that the simulator can make → status, events, what becomes of messages, and what the worker does next: the
//! connections that it makes, or doesn't make, are counted at the simulator. The same table, in words, is
//! `docs/session-status.md`; [`cause`] fails where the two differ.

mod cause;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{future::join_all, join};
use serde_json::{Value, json};
use simulator::Fault;
use standalone::tour::{
    api::{Api, text},
    network::Connection,
};

use crate::{
    postgres::Engine,
    stack::{PATIENCE, Stack, Tenant, until},
};
use cause::{Cause, Then};

/// Silence is noticed after 50 s, and a throttled login waits 30 s.
const LONG: Duration = Duration::from_secs(150);
const FRIEND: &str = "15550300000";
/// Encrypts nothing anew.
const DEAF_FRIEND: &str = "15550309001";
/// Is switched off.
const SLEEPING_FRIEND: &str = "15550309002";
/// A session that comes back after a pause waits at least this long, so what is quicker didn't wait.
const SHORTEST_PAUSE: Duration = Duration::from_millis(900);

/// A session and what happens to it.
struct Case<'a> {
    stack: &'a Stack,
    cause: Cause,
    session: &'a Tenant,
    device: String,
    name: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_has_its_documented_consequences() {
    let Some(stack) = Stack::start(Engine::Sqlite).await else { return };
    for friend in [FRIEND, DEAF_FRIEND, SLEEPING_FRIEND] {
        stack.network.new_phone(friend, "Friend", None).await.unwrap();
    }
    stack.network.configure(DEAF_FRIEND, &json!({ "ignore_retries": true })).await.unwrap();
    stack.network.switch_off(SLEEPING_FRIEND, true).await.unwrap();
    let api = stack.owner("fault-table", Some(&stack.receiver)).await;
    let causes = Cause::all();
    let sessions = join_all((1..=causes.len()).map(|n| stack.session(&api, format!("1555030{n:04}")))).await;
    let cases = causes.iter().zip(&sessions).map(|(cause, session)| Case {
        stack: &stack,
        cause: *cause,
        session,
        device: format!("{}:1@s.whatsapp.net", session.phone),
        name: cause.name(),
    });
    let (ending, others): (Vec<_>, Vec<_>) = cases.partition(|case| matches!(case.cause.then(), Then::Ends(..)));
    // The dead socket takes the longest, by far.
    let (returning, beside): (Vec<_>, Vec<_>) = others
        .into_iter()
        .partition(|case| case.cause.then() == Then::Returns && case.cause != Cause::Stream(Fault::Mute));
    let in_turn = async {
        let ended = join_all(ending.iter().map(Case::ends)).await;
        // Whoever comes back does so meanwhile, after each of the pauses that there are: so would one that has ended.
        join_all(returning.iter().map(Case::returns)).await;
        join_all(ending.iter().zip(ended).map(|(case, dials)| case.stayed_away_until_it_is_started(dials))).await;
    };
    join!(
        in_turn,
        join_all(beside.iter().map(async |case| match case.cause.then() {
            Then::Stays => case.stays().await,
            Then::Renews => case.renews().await,
            Then::Returns => case.returns().await,
            Then::Ends(..) => unreachable!("taken out above"),
        }))
    );
}

impl Case<'_> {
    /// Nothing changes.
    async fn stays(&self) {
        let Self { stack, cause, session, name, .. } = self;
        let before = self.newest().await;
        self.inflict().await;
        if cause.failure().is_some() {
            let refused = self.send(FRIEND, "refused").await.unwrap();
            let failed = self.message(&refused, "failed").await;
            assert_eq!(failed["reason"].as_str(), cause.failure(), "{name}");
            self.event("message.status", "failed").await;
        }
        if *cause == Cause::PhoneOff {
            let sent = self.send(SLEEPING_FRIEND, "goes out all the same").await.unwrap();
            self.message(&sent, "sent").await;
            self.works().await;
            assert_eq!(self.message(&sent, "sent").await["status"], "sent", "nobody has it yet");
            stack.network.switch_off(SLEEPING_FRIEND, false).await.unwrap();
            self.message(&sent, "delivered").await;
        }
        let author = if *cause == Cause::IgnoredRetry { DEAF_FRIEND } else { FRIEND };
        stack.network.write(author, &session.phone, "held", 1, None).await.unwrap();
        if *cause == Cause::Stream(Fault::Hold) {
            let sent = self.send(FRIEND, "goes out all the same").await.unwrap();
            self.message(&sent, "sent").await;
            assert!(session.texts("inbound").await.is_empty(), "nothing is delivered while it is held");
            self.hurt("fault", json!({ "kind": "release" })).await;
        }
        until(&format!("{name}: what was written arrives"), LONG, async || {
            (session.texts("inbound").await == ["held"]).then_some(())
        })
        .await;
        self.works().await;
        self.nobody_noticed().await;
        let after = self.newest().await;
        assert_eq!((after.id, after.ended), (before.id, None), "{name}: it keeps the connection");
    }

    /// It is asked for a new connection, and makes one without a pause.
    async fn renews(&self) {
        let Self { name, .. } = self;
        let mut quickest = Duration::MAX;
        // What pauses is never quicker than a pause, however often it is asked; what doesn't may have to wait for others.
        for _ in 0..5 {
            let (before, ordered) = (self.newest().await, now());
            self.inflict().await;
            let after = until(&format!("{name}: a new connection"), LONG, async || {
                Some(self.newest().await).filter(|newest| newest.id > before.id)
            })
            .await;
            self.works().await;
            quickest = quickest.min(millis(after.since - ordered));
            if quickest < SHORTEST_PAUSE {
                break;
            }
        }
        assert!(quickest < SHORTEST_PAUSE, "{name}: it came back after {quickest:?} at the soonest");
        self.nobody_noticed().await;
    }

    /// It comes back by itself, over a new connection and after the pause that is due.
    async fn returns(&self) {
        let Self { cause, session, name, .. } = self;
        let (before, ordered) = (self.newest().await, now());
        self.inflict().await;
        if *cause == Cause::Stream(Fault::Mute) {
            // Whether it is shown depends on how long the socket had been silent: what counts is that it is given up.
            until(&format!("{name}: a new connection"), LONG, async || {
                (self.newest().await.id > before.id).then_some(())
            })
            .await;
        } else {
            self.event("session.status", "reconnecting").await;
        }
        session.connected(LONG).await;
        self.works().await;
        let connections = self.connections().await;
        let old = connections.iter().find(|one| one.id == before.id).unwrap();
        assert!(old.ended.is_some(), "{name}: the old connection was given up");
        let dials: Vec<&Connection> = connections.iter().filter(|one| one.id > before.id).collect();
        let due = cause.refused_logins() + 1;
        // A try may fail on a machine that is busy; many mean that it doesn't pause.
        assert!((due..=due + 2).contains(&dials.len()), "{name}: {dials:?}");
        let lasting = dials.last().unwrap();
        assert_eq!(lasting.ended, None, "{name}: {dials:?}");
        if let Some((pause, _)) = cause.pause() {
            let since = if cause.refused_logins() > 0 { dials[0].since } else { ordered };
            assert!(millis(lasting.since - since) >= pause, "{name}: {dials:?} after {since}");
        }
        if *cause == Cause::RotatedKey {
            assert_eq!(lasting.pattern.as_deref(), Some("XXfallback"), "{name}");
        }
    }

    /// It ends, with a status and a reason. Gives how many connections it has made by then.
    async fn ends(&self) -> usize {
        let Self { cause, session, name, .. } = self;
        let Then::Ends(status, reason) = cause.then() else { unreachable!("only what ends") };
        let before = self.newest().await;
        self.inflict().await;
        let shown = session
            .api
            .until(&format!("sessions/{}/status", session.session), LONG, |shown| {
                (shown["status"] == status).then(|| shown.clone())
            })
            .await
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(shown["reason"].as_str(), reason, "{name}");
        assert_eq!(shown["until"].is_string(), *cause == Cause::Login(402), "{name}: {shown}");
        self.event("session.status", status).await;
        let refused = self.send(FRIEND, "too late").await.unwrap_err();
        assert!(format!("{refused:#}").contains("session-not-running"), "{name}: {refused:#}");
        let connections = self.connections().await;
        let dials = connections.iter().filter(|one| one.id > before.id).count();
        assert_eq!(dials, cause.refused_logins(), "{name}: {connections:?}");
        connections.len()
    }

    /// It has made no connection since it ended. Started again, it shows a QR code if it was unlinked, and logs in otherwise.
    async fn stayed_away_until_it_is_started(&self, connections: usize) {
        let Self { session, name, .. } = self;
        let made = self.connections().await;
        assert_eq!(made.len(), connections, "{name}: it dialled again: {made:?}");
        assert!(made.iter().all(|one| one.ended.is_some()), "{name}: it holds a connection: {made:?}");
        session.api.post(&format!("sessions/{}/start", session.session), json!({})).await.unwrap();
        let links_anew = matches!(self.cause.then(), Then::Ends("logged_out", _));
        if links_anew {
            let path = format!("sessions/{}/qr", session.session);
            let qr = session.api.until(&path, LONG, |answer| text(answer, "/qr").ok()).await;
            let qr = qr.unwrap_or_else(|error| panic!("{name}: {error:#}"));
            self.stack.network.scan(&session.phone, &qr).await.unwrap();
        }
        session.connected(LONG).await;
        self.works().await;
        // Linked anew, it is another device.
        let made = self.connections().await;
        assert_eq!(made.len() > connections, !links_anew, "{name}: {made:?}");
    }

    async fn inflict(&self) {
        let network = &self.stack.network;
        let cut = async || self.hurt("fault", json!({ "kind": "eof" })).await;
        match self.cause {
            Cause::Stream(fault) => self.hurt("fault", json!({ "kind": fault })).await,
            Cause::Login(code) => {
                let expire = (code == 402).then_some(3_600);
                let order =
                    json!({ "code": code, "times": 1, "ban_code": expire.map(|_| 101), "expire_seconds": expire });
                self.hurt("login-failures", order).await;
                cut().await;
            }
            Cause::LoginBanWithoutEnd => {
                self.hurt("login-failures", json!({ "code": 402, "times": 1 })).await;
                cut().await;
            }
            Cause::Nack(code) => self.hurt("nacks", json!({ "error": code, "times": 1 })).await,
            Cause::Garbled | Cause::IgnoredRetry => self.hurt("garble", json!({ "times": 1 })).await,
            // It sleeps already.
            Cause::PhoneOff => {}
            Cause::Unlinked => network.unlink(&self.session.phone, 1).await.unwrap(),
            Cause::RotatedKey => {
                network.rotate_static_key().await.unwrap();
                cut().await;
            }
        }
    }

    async fn hurt(&self, how: &str, order: Value) {
        self.stack.network.hurt(&self.device, how, &order).await.unwrap();
    }

    async fn connections(&self) -> Vec<Connection> {
        self.stack.network.connections_of(&self.device).await.unwrap()
    }

    async fn newest(&self) -> Connection {
        self.connections().await.pop().unwrap()
    }

    /// A message goes out.
    async fn works(&self) {
        let sent = self.send(FRIEND, &self.name).await.unwrap();
        self.message(&sent, "sent").await;
    }

    async fn send(&self, to: &str, words: &str) -> anyhow::Result<String> {
        let api: &Api = &self.session.api;
        let body = json!({
            "session_id": self.session.session, "to": format!("+{to}"), "type": "text", "text": { "body": words },
        });
        text(&api.post("messages/send", body).await?, "/id")
    }

    /// Waits until a message has got this far.
    async fn message(&self, id: &str, wanted: &str) -> Value {
        let beyond = |status: &str| match wanted {
            "sent" => matches!(status, "delivered" | "read"),
            "delivered" => status == "read",
            _ => false,
        };
        let path = format!("messages/{id}");
        let message = self.session.api.until(&path, LONG, |message| {
            let status = message["status"].as_str()?;
            (status == wanted || beyond(status)).then(|| message.clone())
        });
        message.await.unwrap_or_else(|error| panic!("{}: {wanted}: {error:#}", self.name))
    }

    /// Waits for a verified event of the session with this status.
    async fn event(&self, kind: &str, status: &str) {
        let event = self.stack.receiver.event(LONG.max(PATIENCE), |event| {
            event["type"] == kind && event["session_id"] == self.session.session && event["data"]["status"] == status
        });
        event.await.unwrap_or_else(|error| panic!("{}: {kind} {status}: {error:#}", self.name));
    }

    /// The session is shown as connected, and no event ever said otherwise.
    async fn nobody_noticed(&self) {
        let Self { session, name, .. } = self;
        let status = session.api.get(&format!("sessions/{}/status", session.session)).await.unwrap();
        assert_eq!(status["status"], "connected", "{name}");
        let shown = self.stack.receiver.events().into_iter().any(|event| {
            event["type"] == "session.status"
                && event["session_id"] == session.session
                && event["data"]["status"] == "reconnecting"
        });
        assert!(!shown, "{name}");
    }
}

/// Unix milliseconds.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

fn millis(span: i64) -> Duration {
    Duration::from_millis(span.try_into().unwrap())
}
