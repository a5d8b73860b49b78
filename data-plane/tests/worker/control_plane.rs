//! The worker's peer: says what to run, takes reports and events. It keeps what it was told, in memory.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use chrono::Utc;
use serde::de::DeserializeOwned;
use shared::{
    identity::{CONTROL_PLANE, KeySet, PeerClaims, PublicKey, SigningKey},
    ids::{SessionId, WorkerId},
    seal::DataKey,
    wire::{
        outbox::{OutboxAccepted, OutboxBatch, OutboxEvent, row_name, row_place},
        session::{PutSession, Report, Reports, ReportsAccepted},
        worker::{Heartbeat, HeartbeatReply, Join, Joined, ReAttach, ReAttached, Validate, Validated, WorkerIdentity},
    },
};
use tokio::net::TcpListener;

pub struct ControlPlane {
    pub url: String,
    state: Arc<Peer>,
    http: reqwest::Client,
}

struct Peer {
    key: SigningKey,
    down: AtomicBool,
    generations: AtomicI64,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    workers: HashMap<WorkerId, (PublicKey, String)>,
    attached: HashSet<WorkerId>,
    placed: HashMap<SessionId, (WorkerId, PutSession)>,
    keys: HashMap<SessionId, DataKey>,
    events: BTreeMap<(SessionId, i64, i64), OutboxEvent>,
    shipped_twice: u32,
    reports: HashMap<SessionId, Vec<Report>>,
    validations: u32,
}

impl Peer {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap()
    }
    fn keys(&self) -> KeySet {
        KeySet { keys: vec![self.key.public()] }
    }
}

impl ControlPlane {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Peer {
            key: SigningKey::generate().unwrap(),
            down: AtomicBool::new(false),
            generations: AtomicI64::new(0),
            told: Mutex::default(),
        });
        let router = Router::new()
            .route("/internal/v1/workers", post(join))
            .route("/internal/v1/workers/{id}/heartbeat", post(heartbeat))
            .route("/internal/v1/workers/{id}/re-attach", post(re_attach))
            .route("/internal/v1/workers/{id}/validate", post(validate))
            .route("/internal/v1/workers/{id}/reports", post(reports))
            .route("/internal/v1/events", post(events))
            .route("/internal/v1/jwks", get(jwks))
            .layer(middleware::from_fn_with_state(Arc::clone(&state), unless_down))
            .with_state(Arc::clone(&state));
        tokio::spawn(async move { axum::serve(listener, router).await });
        // A refused large body ends its connection: the next request is not to meet that one's end.
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
        Self { url, state, http }
    }

    /// Answers nothing but 503 from now on, or everything again.
    pub fn set_down(&self, down: bool) {
        self.state.down.store(down, Ordering::SeqCst);
    }

    pub fn next_generation(&self) -> i64 {
        self.state.generations.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Says which worker is to run a session, for a re-attach; and which key opens its events.
    pub fn place(&self, worker: &WorkerId, order: &PutSession) {
        let mut told = self.state.told();
        told.keys.insert(order.session_id.clone(), DataKey::from_base64(order.session_key.expose()).unwrap());
        told.placed.insert(order.session_id.clone(), (worker.clone(), order.clone()));
    }

    /// Whether a worker has joined and taken its sessions back: what is placed on it from now on keeps its generation.
    pub fn has_joined(&self, worker: &WorkerId) -> bool {
        self.state.told().attached.contains(worker)
    }

    /// Forgets that a worker joined, so that the next join can be seen.
    pub fn forget(&self, worker: &WorkerId) {
        let mut told = self.state.told();
        told.workers.remove(worker);
        told.attached.remove(worker);
    }

    /// The events of a session, by epoch and sequence.
    pub fn events(&self, session: &SessionId) -> Vec<OutboxEvent> {
        let told = self.state.told();
        told.events.iter().filter(|((of, ..), _)| of == session).map(|(_, event)| event.clone()).collect()
    }

    pub fn shipped_twice(&self) -> u32 {
        self.state.told().shipped_twice
    }

    pub fn report(&self, session: &SessionId) -> Option<Report> {
        self.state.told().reports.get(session)?.last().cloned()
    }

    /// All that it was told of a session, oldest first.
    pub fn reports(&self, session: &SessionId) -> Vec<Report> {
        self.state.told().reports.get(session).cloned().unwrap_or_default()
    }

    pub fn validations(&self) -> u32 {
        self.state.told().validations
    }

    pub fn token(&self, worker: &WorkerId) -> String {
        self.state.key.token_for_worker(worker, Utc::now()).unwrap()
    }

    /// Asks a worker, signed.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        worker: &WorkerId,
        method: reqwest::Method,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<T, (u16, serde_json::Value)> {
        let endpoint = self.state.told().workers[worker].1.clone();
        let mut request = self.http.request(method, format!("{endpoint}{path}")).bearer_auth(self.token(worker));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let reply = request.send().await.unwrap();
        let status = reply.status();
        if status.is_success() {
            let body = reply.bytes().await.unwrap();
            // 204 has none.
            return Ok(serde_json::from_slice(if body.is_empty() { b"null" } else { &body }).unwrap());
        }
        assert_eq!(reply.headers()["content-type"], "application/problem+json");
        Err((status.as_u16(), reply.json().await.unwrap()))
    }
}

async fn unless_down(State(peer): State<Arc<Peer>>, request: Request, next: Next) -> Response {
    if peer.down.load(Ordering::SeqCst) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    next.run(request).await
}

/// The worker that a request comes from.
fn signer(peer: &Peer, headers: &HeaderMap) -> WorkerId {
    let token = headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap();
    let worker: WorkerId = shared::identity::claimed_issuer(token).unwrap().parse().unwrap();
    let key = peer.told().workers[&worker].0.clone();
    let claims: PeerClaims = key.verify(token, worker.as_str(), CONTROL_PLANE).unwrap();
    assert!(claims.inc.is_some());
    worker
}

async fn join(State(peer): State<Arc<Peer>>, headers: HeaderMap, Json(join): Json<Join>) -> Json<Joined> {
    let identity: WorkerIdentity =
        reqwest::get(format!("{}/v1/identity", join.endpoint)).await.unwrap().json().await.unwrap();
    assert_eq!((&identity.worker_id, &identity.incarnation), (&join.worker_id, &join.incarnation));
    assert_eq!(join.join_token.as_deref(), Some("let-me-in"));
    peer.told().workers.insert(join.worker_id.clone(), (join.public_key, join.endpoint));
    assert_eq!(signer(&peer, &headers), join.worker_id);
    Json(Joined { worker_id: join.worker_id, control_plane_keys: peer.keys(), heartbeat_seconds: 5 })
}

async fn heartbeat(
    State(peer): State<Arc<Peer>>,
    Path(id): Path<WorkerId>,
    headers: HeaderMap,
    Json(_): Json<Heartbeat>,
) -> Response {
    if !peer.told().workers.contains_key(&id) {
        let problem = serde_json::json!({ "type": "/problems/worker-unknown", "title": "?", "status": 410 });
        return (StatusCode::GONE, Json(problem)).into_response();
    }
    assert_eq!(signer(&peer, &headers), id);
    Json(HeartbeatReply { control_plane_keys: peer.keys() }).into_response()
}

async fn re_attach(
    State(peer): State<Arc<Peer>>,
    Path(id): Path<WorkerId>,
    Json(_): Json<ReAttach>,
) -> Json<ReAttached> {
    let mut told = peer.told();
    let sessions = told
        .placed
        .values_mut()
        .filter(|(worker, _)| *worker == id)
        .map(|(_, order)| {
            order.generation = peer.generations.fetch_add(1, Ordering::SeqCst) + 1;
            order.clone()
        })
        .collect();
    told.attached.insert(id);
    Json(ReAttached { sessions })
}

async fn validate(State(peer): State<Arc<Peer>>, Json(ask): Json<Validate>) -> Json<Validated> {
    let mut told = peer.told();
    told.validations += 1;
    let current = |session: &SessionId| told.placed.get(session).map(|(_, order)| order.generation);
    let current = ask.sessions.iter().filter(|one| current(&one.session_id) == Some(one.generation)).cloned().collect();
    Json(Validated { current })
}

async fn reports(State(peer): State<Arc<Peer>>, Json(reports): Json<Reports>) -> Json<ReportsAccepted> {
    let mut told = peer.told();
    let mut stale = Vec::new();
    for report in reports.reports {
        let current = told.placed.get(&report.session_id).map(|(_, order)| order.generation);
        if current != Some(report.generation) {
            stale.push(report.session_id);
        } else {
            told.reports.entry(report.session_id.clone()).or_default().push(report);
        }
    }
    Json(ReportsAccepted { stale })
}

async fn events(
    State(peer): State<Arc<Peer>>,
    headers: HeaderMap,
    Json(batch): Json<OutboxBatch>,
) -> Json<OutboxAccepted> {
    signer(&peer, &headers);
    let mut told = peer.told();
    let key = told.keys[&batch.session_id].clone();
    assert!(batch.rows.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    let last = batch.rows.last().unwrap().seq;
    for row in batch.rows {
        let name = row_name(batch.epoch, row.seq);
        let plain = key.open(&row_place(&batch.session_id, &name), &row.sealed).unwrap();
        let event = serde_json::from_slice(&plain).unwrap();
        if told.events.insert((batch.session_id.clone(), batch.epoch, row.seq), event).is_some() {
            told.shipped_twice += 1;
        }
    }
    Json(OutboxAccepted { seq: last })
}

async fn jwks(State(peer): State<Arc<Peer>>) -> Json<KeySet> {
    Json(peer.keys())
}
