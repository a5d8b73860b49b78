//! The way to WhatsApp: one WebSocket for each session, and HTTP for media.
//!
//! Owns no table. It keeps three promises:
//! - No frame leaves for a session that may not speak: every send asks the session's [`Gate`], which closes when its
//!   store handle is poisoned or the worker's lease has ended.
//! - Sockets have `TCP_NODELAY` set; the library's own factory leaves Nagle's algorithm on, which costs 40 ms a login.
//! - All sessions share one TLS configuration; the library's own builds one for each connection.
//!
//! Logins are paced here as well ([`pacing`]): after an outage a worker must not greet WhatsApp with thousands at once.

mod http;
pub mod pacing;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{net::TcpStream, time::timeout};
use tokio_websockets::{ClientBuilder, Limits};
use url::Url;
use wacore::net::{Transport, TransportEvent, TransportFactory, WHATSAPP_WEB_ORIGIN, WHATSAPP_WEB_WS_URL};
use whatsapp_rust::async_channel;
use whatsapp_rust_tokio_transport::{Connector, default_tls_connector, from_websocket};

pub use self::http::MediaHttp;
use self::pacing::LoginPace;
use crate::store::{FencedBackend, Lease};

/// How long TCP, TLS and the upgrade may take together. The library gives a whole dial, waiting for its turn included,
/// 20 s.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// How long a dial waits for its turn; the library tries again later.
const TURN_DEADLINE: Duration = Duration::from_secs(9);
/// The largest WebSocket message that is read: WhatsApp's frames have a length of three bytes.
const MAX_MESSAGE: usize = 1 << 24;

/// Why a socket could not be had, or used.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address isn't one.
    #[error("the WebSocket address is not usable")]
    Address,
    /// The worker begins no more logins for now.
    #[error("logins are paced, try later")]
    Paced,
    /// No answer in time.
    #[error("dialling took too long")]
    Timeout,
    /// TCP, TLS or the upgrade failed.
    #[error("dialling failed ({0})")]
    Dial(&'static str),
    /// This session may not speak any more.
    #[error("the session may not send any more")]
    Closed,
}

/// Whether a session may speak.
#[derive(Clone)]
pub struct Gate {
    backend: Arc<FencedBackend>,
    lease: Lease,
}

impl Gate {
    /// Open while `backend` is well and `lease` lasts.
    #[must_use]
    pub fn new(backend: Arc<FencedBackend>, lease: Lease) -> Self {
        Self { backend, lease }
    }

    /// Whether a frame may leave now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.backend.is_poisoned() && self.lease.is_valid()
    }
}

/// Opens sockets for a whole worker.
pub struct Dialer {
    url: Url,
    tls: Connector,
    pace: LoginPace,
}

impl Dialer {
    /// A dialer to WhatsApp, or to `ws_url` in its stead. [`shared::tls::install_provider`] comes first.
    #[must_use]
    pub fn new(ws_url: Option<Url>, pace: LoginPace) -> Self {
        let url = ws_url.unwrap_or_else(|| {
            WHATSAPP_WEB_WS_URL.parse().unwrap_or_else(|_| unreachable!("the library's constant is a URL"))
        });
        Self { url, tls: default_tls_connector(), pace }
    }

    /// Waits for a turn and dials.
    ///
    /// # Errors
    /// [`TransportError`] if it isn't this session's turn soon, or the dial fails.
    pub async fn dial(&self) -> Result<(Arc<dyn Transport>, async_channel::Receiver<TransportEvent>), TransportError> {
        self.pace.turn_within(TURN_DEADLINE).await.map_err(|_| TransportError::Paced)?;
        timeout(DIAL_DEADLINE, self.connect()).await.map_err(|_| TransportError::Timeout)?
    }

    async fn connect(&self) -> Result<(Arc<dyn Transport>, async_channel::Receiver<TransportEvent>), TransportError> {
        let host = self.url.host_str().ok_or(TransportError::Address)?;
        let port = self.url.port_or_known_default().ok_or(TransportError::Address)?;
        // `Url` writes IPv6 hosts in brackets, which a resolver doesn't take.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((bare, port)).await.map_err(|_| TransportError::Dial("connect"))?;
        tcp.set_nodelay(true).map_err(|_| TransportError::Dial("nodelay"))?;
        let plain = Connector::Plain;
        let connector = if self.url.scheme() == "ws" { &plain } else { &self.tls };
        let stream = connector.wrap(bare, tcp).await.map_err(|_| TransportError::Dial("tls"))?;
        let uri = self.url.as_str().parse().map_err(|_| TransportError::Address)?;
        let (socket, _) = ClientBuilder::from_uri(uri)
            .limits(Limits::default().max_payload_len(Some(MAX_MESSAGE)))
            .add_header(::http::header::ORIGIN, ::http::HeaderValue::from_static(WHATSAPP_WEB_ORIGIN))
            .map_err(|_| TransportError::Dial("header"))?
            .connect_on(stream)
            .await
            .map_err(|_| TransportError::Dial("upgrade"))?;
        Ok(from_websocket(socket))
    }
}

/// Opens one session's sockets.
pub struct SessionDialer {
    /// The worker's dialer.
    pub dialer: Arc<Dialer>,
    /// Whether this session may speak.
    pub gate: Gate,
    /// Counts its sockets.
    pub sockets: Arc<AtomicU64>,
}

#[async_trait]
impl TransportFactory for SessionDialer {
    async fn create_transport(&self) -> anyhow::Result<(Arc<dyn Transport>, async_channel::Receiver<TransportEvent>)> {
        if !self.gate.is_open() {
            return Err(TransportError::Closed.into());
        }
        let (inner, events) = self.dialer.dial().await?;
        self.sockets.fetch_add(1, Ordering::AcqRel);
        Ok((Arc::new(GuardedTransport { inner, gate: self.gate.clone() }), events))
    }
}

/// A socket that stops sending when its session may not speak any more.
struct GuardedTransport {
    inner: Arc<dyn Transport>,
    gate: Gate,
}

#[async_trait]
impl Transport for GuardedTransport {
    async fn send(&self, data: Bytes) -> anyhow::Result<()> {
        if !self.gate.is_open() {
            return Err(TransportError::Closed.into());
        }
        self.inner.send(data).await
    }

    async fn disconnect(&self) {
        self.inner.disconnect().await;
    }

    fn resource_report(&self) -> Option<wacore::stats::TransportResourceReport> {
        self.inner.resource_report()
    }
}
