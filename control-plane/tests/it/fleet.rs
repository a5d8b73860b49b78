//! A worker of one's own for each test: it speaks the wire types over real HTTP with real signatures, and does what the
//! test tells it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use chrono::Utc;
use serde::Serialize;
use serde_json::{Value, json};
use shared::{
    identity::{CONTROL_PLANE, KeySet, PeerClaims, SigningKey},
    ids::{Incarnation, SessionId, StoreId, WorkerId},
    seal::DataKey,
    wire::{
        PROTOCOL_VERSION,
        linking::{PairingCode, PairingCodeOrder, Passkey, PasskeyAnswer, PasskeyOrder, QrCode},
        outbox::{OutboxBatch, OutboxEvent, OutboxRow, row_name, row_place},
        send::{SendBatch, SendItem, SendOutcome, SendResult, SendResults},
        session::{Account, Network, Observed, PutSession, Report, Reports, SecretText, SessionView},
        worker::{Heartbeat, Join, ReAttach, WorkerIdentity},
    },
};

use crate::harness::{Answer, JOIN_TOKEN, PATIENCE, TestApp};

/// As often as real workers.
const BEAT_EVERY: Duration = Duration::from_secs(5);

/// What a test's worker does with a message.
pub type Sender = Arc<dyn Fn(&SendItem) -> SendOutcome + Send + Sync>;

/// What a test's worker does when a session is to be linked.
#[derive(Clone, Default)]
pub struct Linking {
    /// Refuse with this status and problem.
    pub refuse: Option<(u16, &'static str)>,
    /// What WhatsApp asks of the passkey.
    pub asked: Option<Passkey>,
    /// The phone numbers that codes were asked for.
    pub phones: Vec<String>,
    /// The answers that were given.
    pub answers: Vec<PasskeyAnswer>,
}

#[derive(Clone)]
struct Inner {
    id: WorkerId,
    incarnation: Incarnation,
    keys: Arc<Mutex<Option<KeySet>>>,
    held: Arc<Mutex<HashMap<SessionId, PutSession>>>,
    reports: Arc<Mutex<HashMap<SessionId, Report>>>,
    qr: Arc<Mutex<Option<(i64, String)>>>,
    views: Arc<AtomicU64>,
    linking: Arc<Mutex<Linking>>,
    sender: Arc<Mutex<Sender>>,
    sent: Arc<Mutex<Vec<SendItem>>>,
    request_ids: Arc<Mutex<Vec<Option<String>>>>,
}

/// One run of a worker.
pub struct FakeWorker {
    inner: Inner,
    pub key: SigningKey,
    pub store: StoreId,
    pub endpoint: String,
    internal: String,
    http: reqwest::Client,
    seq: std::sync::atomic::AtomicI64,
    server: tokio::task::JoinHandle<()>,
    beats: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        self.server.abort();
        self.fall_silent();
    }
}

/// How a worker calls the control plane.
#[derive(Clone)]
struct Caller {
    id: WorkerId,
    incarnation: Incarnation,
    key: SigningKey,
    internal: String,
    http: reqwest::Client,
}

impl Caller {
    fn signed(&self, path: &str) -> reqwest::RequestBuilder {
        let token = self.key.token_for_control_plane(&self.id, &self.incarnation, Utc::now()).unwrap();
        self.http.post(format!("{}/internal/v1/{path}", self.internal)).bearer_auth(token)
    }

    fn beat(&self) -> reqwest::RequestBuilder {
        self.signed(&format!("workers/{}/heartbeat", self.id)).json(&Heartbeat {
            incarnation: self.incarnation.clone(),
            sessions: 0,
            connected: 0,
            outbox_rows: 0,
            lease_renewed_at: Utc::now(),
        })
    }
}

impl FakeWorker {
    /// A worker that listens and has not joined.
    pub async fn listening(app: &TestApp, id: &str, key: SigningKey, store: StoreId) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(app, id, key, store, listener)
    }

    pub fn on(app: &TestApp, id: &str, key: SigningKey, store: StoreId, listener: tokio::net::TcpListener) -> Self {
        let inner = Inner {
            id: id.parse().unwrap(),
            incarnation: Incarnation::new(),
            keys: Arc::default(),
            held: Arc::default(),
            reports: Arc::default(),
            qr: Arc::default(),
            views: Arc::default(),
            linking: Arc::default(),
            sender: Arc::new(Mutex::new(Arc::new(|_| SendOutcome::Acked { at: Utc::now() }))),
            sent: Arc::default(),
            request_ids: Arc::default(),
        };
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/v1/identity", get(identity))
            .route("/v1/sessions/{id}", put(put_session).get(view_session))
            .route("/v1/sessions/{id}/send", post(send))
            .route("/v1/sessions/{id}/pairing-code", post(pairing_code))
            .route("/v1/sessions/{id}/passkey", post(answer_passkey))
            .with_state(inner.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            inner,
            key,
            store,
            endpoint,
            internal: app.internal_url(),
            http: app.http.clone(),
            seq: std::sync::atomic::AtomicI64::new(0),
            server,
            beats: Mutex::default(),
        }
    }

    /// A worker that has joined and taken back what is placed on it: active.
    pub async fn active(app: &TestApp, id: &str) -> Self {
        let worker = Self::listening(app, id, SigningKey::generate().unwrap(), StoreId::new()).await;
        worker.come().await;
        worker
    }

    /// Joins and re-attaches; gives the sessions that it is to run.
    pub async fn come(&self) -> Vec<PutSession> {
        let joined = self.join(&self.join_body()).await;
        assert_eq!(joined.status, 200, "{joined:?}");
        let keys = serde_json::from_value(joined.json()["control_plane_keys"].clone()).unwrap();
        *self.inner.keys.lock().unwrap() = Some(keys);
        let answer = self.post("re-attach", &ReAttach { incarnation: self.incarnation() }).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let sessions: Vec<PutSession> = serde_json::from_value(answer.json()["sessions"].clone()).unwrap();
        for session in &sessions {
            self.inner.held.lock().unwrap().insert(session.session_id.clone(), session.clone());
        }
        self.beats.lock().unwrap().get_or_insert_with(|| {
            let caller = self.caller();
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(BEAT_EVERY).await;
                    // The control plane may be gone already, or know of a newer run: the next beat, or the test, will tell.
                    let _answered = caller.beat().send().await;
                }
            })
        });
        sessions
    }

    /// Beats no more, unless it is asked to.
    pub fn fall_silent(&self) {
        if let Some(beats) = &*self.beats.lock().unwrap() {
            beats.abort();
        }
    }

    pub fn incarnation(&self) -> Incarnation {
        self.inner.incarnation.clone()
    }

    pub fn id(&self) -> WorkerId {
        self.inner.id.clone()
    }

    pub fn join_body(&self) -> Join {
        Join {
            worker_id: self.id(),
            incarnation: self.incarnation(),
            store_id: self.store.clone(),
            network: Network::Sandbox,
            endpoint: self.endpoint.clone(),
            capacity: 10,
            zone: None,
            pool: None,
            protocol_version: PROTOCOL_VERSION,
            public_key: self.key.public(),
            join_token: Some(JOIN_TOKEN.into()),
        }
    }

    pub async fn join(&self, join: &Join) -> Answer {
        Answer::of(self.signed("workers").json(join)).await
    }

    fn caller(&self) -> Caller {
        Caller {
            id: self.id(),
            incarnation: self.incarnation(),
            key: self.key.clone(),
            internal: self.internal.clone(),
            http: self.http.clone(),
        }
    }

    fn signed(&self, path: &str) -> reqwest::RequestBuilder {
        self.caller().signed(path)
    }

    pub async fn post<T: Serialize>(&self, what: &str, body: &T) -> Answer {
        Answer::of(self.signed(&format!("workers/{}/{what}", self.id())).json(body)).await
    }

    pub async fn beat(&self) -> Answer {
        Answer::of(self.caller().beat()).await
    }

    /// What the control plane last told of a session, once it is as `wanted`.
    pub async fn told(&self, id: &SessionId, wanted: impl Fn(&PutSession) -> bool) -> PutSession {
        until("the control plane told the worker", async || {
            let held = self.inner.held.lock().unwrap();
            held.get(id).filter(|put| wanted(put)).cloned()
        })
        .await
    }

    pub fn holds(&self, id: &SessionId) -> bool {
        self.inner.held.lock().unwrap().contains_key(id)
    }

    /// Reports a session under the generation that it was told.
    pub async fn report(&self, id: &SessionId, observed: Observed) -> Answer {
        let generation = self.inner.held.lock().unwrap().get(id).map_or(0, |put| put.generation);
        self.report_at(id, generation, observed).await
    }

    pub async fn report_at(&self, id: &SessionId, generation: i64, observed: Observed) -> Answer {
        let linked = matches!(observed, Observed::Connected | Observed::Reconnecting);
        let report = Report {
            session_id: id.clone(),
            generation,
            report_seq: self.seq.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1,
            restart_seq: 0,
            observed: observed.clone(),
            since: Utc::now(),
            last_frame_at: (observed == Observed::Connected).then(Utc::now),
            account: linked.then(|| Account {
                jid: "15550009999:3@s.whatsapp.net".into(),
                lid: Some("777:3@lid".into()),
                push_name: Some("Desk".into()),
            }),
            qr_seq: self.inner.qr.lock().unwrap().as_ref().map(|(seq, _)| *seq),
        };
        self.inner.reports.lock().unwrap().insert(id.clone(), report.clone());
        let answer = self.post("reports", &Reports { incarnation: self.incarnation(), reports: vec![report] }).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    }

    /// Shows another code from now on.
    pub fn show_qr(&self, text: &str) {
        let mut qr = self.inner.qr.lock().unwrap();
        let seq = qr.as_ref().map_or(0, |(seq, _)| *seq) + 1;
        *qr = Some((seq, text.into()));
        for report in self.inner.reports.lock().unwrap().values_mut() {
            report.qr_seq = Some(seq);
        }
    }

    /// How often it was asked how a session is.
    pub fn views(&self) -> u64 {
        self.inner.views.load(Ordering::SeqCst)
    }

    /// What the worker says of linking from now on.
    pub fn link_with(&self, change: impl FnOnce(&mut Linking)) {
        change(&mut self.inner.linking.lock().unwrap());
    }

    /// What it was told of linking.
    pub fn linked_with(&self) -> Linking {
        self.inner.linking.lock().unwrap().clone()
    }

    pub fn send_with(&self, sender: impl Fn(&SendItem) -> SendOutcome + Send + Sync + 'static) {
        *self.inner.sender.lock().unwrap() = Arc::new(sender);
    }

    /// The request ids of all signed calls so far.
    pub fn request_ids(&self) -> Vec<Option<String>> {
        self.inner.request_ids.lock().unwrap().clone()
    }

    pub fn sent(&self) -> Vec<SendItem> {
        self.inner.sent.lock().unwrap().clone()
    }

    /// Ships outbox rows from `first_seq` on, sealed with the session's key.
    pub async fn ship(&self, put: &PutSession, first_seq: i64, events: &[OutboxEvent]) -> Answer {
        let key = DataKey::from_base64(put.session_key.expose()).unwrap();
        let rows = events
            .iter()
            .zip(first_seq..)
            .map(|(event, seq)| {
                let name = row_name(put.epoch, seq);
                let plain = serde_json::to_vec(event).unwrap();
                OutboxRow { seq, sealed: key.seal(&row_place(&put.session_id, &name), &plain).unwrap() }
            })
            .collect();
        let batch =
            OutboxBatch { incarnation: self.incarnation(), session_id: put.session_id.clone(), epoch: put.epoch, rows };
        self.ship_batch(&batch).await
    }

    pub async fn ship_batch(&self, batch: &OutboxBatch) -> Answer {
        Answer::of(self.signed("events").json(batch)).await
    }
}

fn verified(inner: &Inner, headers: &HeaderMap) {
    let token = headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap();
    let keys = inner.keys.lock().unwrap().clone().expect("called before it joined");
    let key = keys.key_of(token).expect("a key that was not published");
    key.verify::<PeerClaims>(token, CONTROL_PLANE, inner.id.as_str()).expect("a call that isn't signed");
    let id = headers.get("x-request-id").map(|id| id.to_str().unwrap().to_owned());
    inner.request_ids.lock().unwrap().push(id);
}

async fn identity(State(inner): State<Inner>) -> Json<WorkerIdentity> {
    Json(WorkerIdentity { worker_id: inner.id, incarnation: inner.incarnation, protocol_version: PROTOCOL_VERSION })
}

async fn put_session(State(inner): State<Inner>, headers: HeaderMap, Json(put): Json<PutSession>) -> StatusCode {
    verified(&inner, &headers);
    inner.held.lock().unwrap().insert(put.session_id.clone(), put);
    StatusCode::OK
}

async fn view_session(State(inner): State<Inner>, headers: HeaderMap, Path(id): Path<SessionId>) -> Response {
    verified(&inner, &headers);
    let Some(report) = inner.reports.lock().unwrap().get(&id).cloned() else {
        return (StatusCode::NOT_FOUND, Json(json!({}))).into_response();
    };
    inner.views.fetch_add(1, Ordering::SeqCst);
    let qr = inner.qr.lock().unwrap().clone();
    let qr = qr.map(|(_, text)| QrCode { text, expires_at: Utc::now() + chrono::TimeDelta::seconds(20) });
    let passkey = inner.linking.lock().unwrap().asked.clone();
    Json(SessionView { report, qr, passkey }).into_response()
}

async fn pairing_code(
    State(inner): State<Inner>,
    headers: HeaderMap,
    Path(id): Path<SessionId>,
    Json(order): Json<PairingCodeOrder>,
) -> Response {
    verified(&inner, &headers);
    let mut linking = inner.linking.lock().unwrap();
    if let Some(refusal) = refusal(&inner, &linking, &id, order.generation) {
        return refusal;
    }
    linking.phones.push(order.phone.expose().to_owned());
    let expires_at = Utc::now() + chrono::TimeDelta::seconds(180);
    Json(PairingCode { code: SecretText::new("ABCD1234".into()), expires_at }).into_response()
}

async fn answer_passkey(
    State(inner): State<Inner>,
    headers: HeaderMap,
    Path(id): Path<SessionId>,
    Json(order): Json<PasskeyOrder>,
) -> Response {
    verified(&inner, &headers);
    let mut linking = inner.linking.lock().unwrap();
    if let Some(refusal) = refusal(&inner, &linking, &id, order.generation) {
        return refusal;
    }
    linking.answers.push(order.answer);
    StatusCode::NO_CONTENT.into_response()
}

fn refusal(inner: &Inner, linking: &Linking, id: &SessionId, generation: i64) -> Option<Response> {
    let held = inner.held.lock().unwrap().get(id).map(|put| put.generation);
    let (status, slug) = match linking.refuse {
        _ if held != Some(generation) => (StatusCode::CONFLICT, "generation-mismatch"),
        Some((status, slug)) => (StatusCode::from_u16(status).unwrap(), slug),
        None => return None,
    };
    let problem = json!({"type": format!("/problems/{slug}"), "title": "", "status": status.as_u16()});
    Some((status, Json(problem)).into_response())
}

async fn send(
    State(inner): State<Inner>,
    headers: HeaderMap,
    Path(id): Path<SessionId>,
    Json(batch): Json<SendBatch>,
) -> Response {
    verified(&inner, &headers);
    let held = inner.held.lock().unwrap().get(&id).map(|put| put.generation);
    if held != Some(batch.generation) {
        let problem = json!({"type": "/problems/generation-mismatch", "title": "", "status": 409, "generation": held});
        return (StatusCode::CONFLICT, Json(problem)).into_response();
    }
    let sender = inner.sender.lock().unwrap().clone();
    let results = batch
        .items
        .iter()
        .map(|item| {
            inner.sent.lock().unwrap().push(item.clone());
            SendResult { message_id: item.message_id.clone(), outcome: sender(item) }
        })
        .collect();
    Json(SendResults { generation: batch.generation, results }).into_response()
}

impl Answer {
    /// As [`assert_problem`](Self::assert_problem), on the internal listener, which has no request ids.
    #[track_caller]
    pub fn assert_problem_of(&self, status: u16, slug: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.json()["type"], format!("/problems/{slug}"), "{self:?}");
    }
}

/// Waits until `probe` gives something.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A program of a tenant.
pub struct Program<'a> {
    pub app: &'a TestApp,
    pub key: String,
    pub tenant: String,
}

impl<'a> Program<'a> {
    pub async fn new(app: &'a TestApp) -> Self {
        let owner = app.sign_up().await;
        let scopes = ["sessions:read", "sessions:write", "messages:read", "messages:send", "usage:read"];
        let key = app.api_key(&owner, "sandbox", &scopes).await;
        Self { app, key, tenant: owner.tenant_id }
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.app.get(&format!("/api/v1/{path}")).bearer_auth(&self.key)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.app.post(&format!("/api/v1/{path}"), body).bearer_auth(&self.key)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        let request = self.app.request(reqwest::Method::DELETE, &format!("/api/v1/{path}"));
        Answer::of(request.bearer_auth(&self.key)).await
    }

    pub async fn session(&self) -> SessionId {
        let answer = self.post("sessions", &json!({"name": "Reception"})).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()["id"].as_str().unwrap().parse().unwrap()
    }

    /// A session that `worker` holds and has reported as connected.
    pub async fn connected(&self, worker: &FakeWorker) -> PutSession {
        let id = self.session().await;
        let put = worker.told(&id, |_| true).await;
        worker.report(&id, Observed::Connected).await;
        self.status(&id, "connected").await;
        put
    }

    pub async fn status(&self, id: &SessionId, wanted: &str) -> Value {
        until(wanted, async || {
            let status = self.get(&format!("sessions/{id}/status")).await.json();
            (status["status"] == wanted).then_some(status)
        })
        .await
    }

    pub async fn send(&self, session: &SessionId, to: &str, text: &str) -> Answer {
        let body = json!({"session_id": session, "to": to, "type": "text", "text": {"body": text}});
        self.post("messages/send", &body).await
    }

    pub async fn message(&self, id: &str, wanted: &str) -> Value {
        until(wanted, async || {
            let message = self.get(&format!("messages/{id}")).await.json();
            (message["status"] == wanted).then_some(message)
        })
        .await
    }

    /// The types of the tenant's events about a session's status, oldest first, as `previous>status`.
    pub async fn events(&self, kind: &str) -> i64 {
        let query = format!("SELECT COUNT(*) FROM events WHERE tenant_id = '{}' AND type = '{kind}'", self.tenant);
        self.app.count(&query).await
    }
}
