//! A simulator, a control plane, a store, and workers on it.

use std::{
    collections::HashSet,
    num::NonZeroU32,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use chrono::Utc;
use data_plane::{Config, Timing, Worker};
use shared::{
    identity::SigningKey,
    ids::{MessageId, SessionId, TenantId, WorkerId},
    seal::DataKey,
    wire::{
        outbox::{InboundBody, InboundMessage, OutboxEvent},
        send::{Content, SendBatch, SendItem, SendOutcome, SendResults},
        session::{Desired, Network, Observed, PutSession, SecretText, SessionSettings, SessionView},
    },
};
use simulator::{NewPhone, Simulator, TextOrder};

use crate::control_plane::ControlPlane;

/// How long a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until the condition holds.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub struct World {
    pub sim: Simulator,
    pub plane: ControlPlane,
    folder: PathBuf,
    phones: AtomicU32,
}

impl Drop for World {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

impl World {
    pub async fn new() -> Self {
        shared::tls::install_provider();
        let folder = std::env::temp_dir().join(format!("data-plane-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        Self {
            sim: Simulator::start(simulator::Config::default()).await.unwrap(),
            plane: ControlPlane::start().await,
            folder,
            phones: AtomicU32::new(0),
        }
    }

    pub fn database(&self) -> String {
        format!("sqlite://{}?mode=rwc", self.folder.join("data-plane.db").display())
    }

    pub fn key_file(&self) -> PathBuf {
        self.folder.join("worker.key")
    }

    pub fn config(&self, id: &str) -> Config {
        Config {
            worker_id: id.parse().unwrap(),
            listen: ([127, 0, 0, 1], 0).into(),
            endpoint: None,
            capacity: 100,
            zone: None,
            pool: None,
            control_plane: self.plane.url.parse().unwrap(),
            join_token: Some("let-me-in".into()),
            key: SigningKey::generate().unwrap(),
            database: self.database().into(),
            login_rate: NonZeroU32::new(1_000).unwrap(),
            network: Network::Sandbox,
            ws_url: Some(self.sim.ws_url().parse().unwrap()),
            whatsapp_version: None,
            control_plane_tls: data_plane::config::PeerTls::default(),
            metrics: None,
            timing: Timing {
                heartbeat: Duration::from_millis(200),
                lease_renewal: Duration::from_millis(500),
                lease_ttl: Duration::from_secs(5),
                adoption: Duration::from_millis(300),
                rebuild: Duration::from_millis(100),
                replaced: Duration::from_millis(500),
                ..Timing::default()
            },
        }
    }

    /// Starts a worker and waits until it has joined.
    pub async fn worker(&self, id: &str) -> Worker {
        self.worker_with(self.config(id)).await
    }

    pub async fn worker_with(&self, config: Config) -> Worker {
        let id = config.worker_id.clone();
        self.plane.forget(&id);
        let worker = Worker::start(config).await.unwrap();
        until("the worker joins", async || self.plane.has_joined(&id).then_some(())).await;
        let ready = format!("http://{}/readyz", worker.addr());
        until("the worker is ready", async || reqwest::get(&ready).await.ok()?.status().is_success().then_some(()))
            .await;
        worker
    }

    /// An order to run a new session.
    pub fn order(&self) -> PutSession {
        PutSession {
            session_id: SessionId::new(),
            tenant_id: TenantId::new(),
            generation: self.plane.next_generation(),
            epoch: 1,
            network: Network::Sandbox,
            desired: Desired::Running,
            restart_seq: 0,
            session_key: SecretText::from(&DataKey::generate()),
            settings: SessionSettings::default(),
        }
    }

    /// Places a session on a worker and tells it.
    pub async fn put(&self, worker: &WorkerId, order: &PutSession) -> SessionView {
        self.plane.place(worker, order);
        self.try_put(worker, order).await.unwrap()
    }

    pub async fn try_put(
        &self,
        worker: &WorkerId,
        order: &PutSession,
    ) -> Result<SessionView, (u16, serde_json::Value)> {
        let path = format!("/v1/sessions/{}", order.session_id);
        self.plane.ask(worker, reqwest::Method::PUT, &path, Some(serde_json::to_value(order).unwrap())).await
    }

    pub async fn view(&self, worker: &WorkerId, session: &SessionId) -> Option<SessionView> {
        self.plane.ask(worker, reqwest::Method::GET, &format!("/v1/sessions/{session}"), None).await.ok()
    }

    /// Waits until the control plane was told that a session is in such a state.
    pub async fn observed(&self, session: &SessionId, what: &str, matches: impl Fn(&Observed) -> bool) -> Observed {
        until(what, async || self.plane.report(session).map(|report| report.observed).filter(&matches)).await
    }

    pub async fn connected(&self, session: &SessionId) {
        self.observed(session, "the session is connected", |observed| *observed == Observed::Connected).await;
    }

    /// Another phone. The numbers are the same in each run, since fault plans throw by them.
    pub async fn phone(&self) -> String {
        let number = format!("15550177{:03}", self.phones.fetch_add(1, Ordering::Relaxed));
        let order = NewPhone { phone: Some(number), ..NewPhone::default() };
        self.sim.network().create_phone(order).await.unwrap().phone
    }

    /// Waits for a QR code and lets a phone scan it. Answers the new device's JID.
    pub async fn scan(&self, worker: &WorkerId, session: &SessionId, phone: &str) -> String {
        let qr = until("a code is shown", async || self.view(worker, session).await?.qr).await;
        assert!(qr.expires_at > Utc::now());
        self.sim.network().scan(phone, &qr.text).await.unwrap().jid
    }

    /// A worker with one connected session, and the phone that it is linked to.
    pub async fn linked(&self) -> Linked {
        self.linked_at(self.config("w1")).await
    }

    pub async fn linked_at(&self, config: Config) -> Linked {
        let worker = self.worker_with(config).await;
        let order = self.order();
        self.put(worker.id(), &order).await;
        let phone = self.phone().await;
        let device = self.scan(worker.id(), &order.session_id, &phone).await;
        self.connected(&order.session_id).await;
        Linked { worker, order, phone, device }
    }

    pub async fn text(&self, from: &str, to: &str, text: &str, count: usize) -> Vec<String> {
        let order = TextOrder { to: to.into(), text: text.into(), id: None, count: Some(count), by_lid: false };
        self.sim.network().write(from, order).await.unwrap()
    }

    pub async fn send(&self, worker: &WorkerId, order: &PutSession, items: Vec<SendItem>) -> Vec<SendOutcome> {
        self.send_within(worker, order, items, 10_000).await
    }

    pub async fn send_within(
        &self,
        worker: &WorkerId,
        order: &PutSession,
        items: Vec<SendItem>,
        wait_ms: u64,
    ) -> Vec<SendOutcome> {
        let batch = SendBatch { generation: order.generation, items, wait_ms };
        let path = format!("/v1/sessions/{}/send", order.session_id);
        let results: SendResults = self
            .plane
            .ask(worker, reqwest::Method::POST, &path, Some(serde_json::to_value(batch).unwrap()))
            .await
            .unwrap();
        assert_eq!(results.generation, order.generation);
        results.results.into_iter().map(|result| result.outcome).collect()
    }

    /// The messages that the control plane has of a session.
    pub fn messages(&self, session: &SessionId) -> Vec<InboundMessage> {
        let messages = self.plane.events(session).into_iter().filter_map(|event| match event {
            OutboxEvent::Message(message) => Some(message),
            OutboxEvent::ServerAck { .. } | OutboxEvent::Receipt { .. } => None,
        });
        messages.collect()
    }

    /// Waits until the control plane was given these messages of a session, each at least once.
    pub async fn has_all(&self, session: &SessionId, ids: &[String]) {
        until("all messages are there", async || {
            let have: HashSet<_> = self.messages(session).into_iter().map(|message| message.wa_id).collect();
            ids.iter().all(|id| have.contains(id)).then_some(())
        })
        .await;
    }
}

pub struct Linked {
    pub worker: Worker,
    pub order: PutSession,
    pub phone: String,
    pub device: String,
}

impl Linked {
    pub fn id(&self) -> &SessionId {
        &self.order.session_id
    }
}

pub fn item(to: &str, text: &str) -> SendItem {
    let wa_id = uuid::Uuid::new_v4().simple().to_string().to_uppercase();
    SendItem {
        message_id: MessageId::new(),
        wa_id: format!("3EB0{}", &wa_id[..18]),
        to: format!("{to}@s.whatsapp.net"),
        content: Content::Text { body: text.into() },
        expires_at: Utc::now() + chrono::TimeDelta::hours(1),
    }
}

pub fn text_of(message: &InboundMessage) -> Option<&str> {
    match &message.body {
        InboundBody::Content { content: Content::Text { body } } => Some(body),
        InboundBody::Unsupported { .. } | InboundBody::Undecryptable => None,
    }
}
