//! One life of the library's client: built from the store, closed with a flush or aborted without.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use shared::wire::session::{OnUnknown, SessionSettings};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use wacore::store::{DevicePropsOverride, traits::Backend};
use waproto::whatsapp::device_props::PlatformType;
use whatsapp_rust::{CacheConfig, CacheEntryConfig, Client, bot::Bot, bot::BotHandle};

use super::{
    acks::Acks,
    events::{self, Events},
    inbound::Inbound,
    runtime::SessionRuntime,
    state::Signal,
    writer::{self, Write},
};
use crate::{
    node::Node,
    shipper::Shipper,
    store::{FencedBackend, Lease},
    transport::{Gate, SessionDialer},
};

/// How long WhatsApp's word on what is on its way is waited for before a close.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long a close may take: the library flushes with bounds of five seconds each.
const CLOSE: Duration = Duration::from_secs(20);
/// One-time keys that a device keeps at WhatsApp. WhatsApp Web uploads 812 in one frame, and the library holds on to a
/// buffer of that frame's size, 40 KiB, for as long as the connection lasts. Fewer are uploaded more often; between two
/// uploads, whoever comes after the last one begins a chat without a one-time key, as the protocol allows.
const ONE_TIME_KEYS: usize = 64;
/// How long the tasks of a client may take to end once they are told.
const STOP: Duration = Duration::from_secs(5);

/// A client could not be built: its state can't be read from the store, or doesn't fit.
#[derive(Debug, thiserror::Error)]
#[error("the client can't be built from the store")]
pub struct Unbuildable;

/// What the parts of one client's life share.
pub struct Link {
    /// The session's handle on the store.
    pub backend: Arc<FencedBackend>,
    /// Ships what was committed.
    pub shipper: Arc<Shipper>,
    /// Messages on their way.
    pub acks: Acks,
    /// Where the client's tasks run.
    pub runtime: SessionRuntime,
    /// Whether sends whose outcome isn't known are held, and not sent again.
    hold_unknown: AtomicBool,
    /// How many sockets there have been.
    sockets: Arc<AtomicU64>,
    /// How many there had been when the last login was complete.
    logged_in_on: AtomicU64,
    connected: AtomicBool,
    /// No further message is to be written.
    closing: AtomicBool,
    client: OnceLock<Weak<Client>>,
}

impl Link {
    /// The client, if messages may be written.
    pub fn connected_client(&self) -> Option<Arc<Client>> {
        self.live_client().filter(|_| self.takes_sends())
    }

    /// The client, if it is connected, also while it is being closed.
    pub fn live_client(&self) -> Option<Arc<Client>> {
        let client = self.client.get()?.upgrade()?;
        (self.is_up() && client.is_connected()).then_some(client)
    }

    /// Whether messages may be written: its login is complete, on the socket of the moment, and it isn't being closed.
    pub fn takes_sends(&self) -> bool {
        self.is_up() && !self.closing.load(Ordering::Acquire)
    }

    fn is_up(&self) -> bool {
        self.connected.load(Ordering::Acquire) && !self.redialled() && !self.backend.is_poisoned()
    }

    /// What to do with sends whose outcome isn't known.
    pub fn on_unknown(&self) -> OnUnknown {
        if self.hold_unknown.load(Ordering::Acquire) { OnUnknown::Hold } else { OnUnknown::Resend }
    }

    /// The session's settings have changed.
    pub fn apply(&self, settings: &SessionSettings) {
        self.hold_unknown.store(settings.on_unknown == OnUnknown::Hold, Ordering::Release);
    }

    /// The client, while it is being linked.
    pub fn unlinked_client(&self) -> Option<Arc<Client>> {
        self.client.get()?.upgrade().filter(|client| client.is_connected() && client.pn().is_none())
    }

    /// Whether the library has dialled since the last login was complete. It doesn't say so when it gives a dead socket up.
    pub fn redialled(&self) -> bool {
        self.sockets.load(Ordering::Acquire) != self.logged_in_on.load(Ordering::Acquire)
    }

    /// The session is connected.
    pub fn up(&self) {
        self.logged_in_on.store(self.sockets.load(Ordering::Acquire), Ordering::Release);
        self.acks.socket_changed();
        self.connected.store(true, Ordering::Release);
    }

    /// It isn't.
    pub fn down(&self) {
        self.connected.store(false, Ordering::Release);
        self.acks.socket_changed();
    }
}

/// A client that runs.
pub struct Running {
    /// What its parts share.
    pub link: Arc<Link>,
    /// What happens to it.
    pub signals: mpsc::Receiver<Signal>,
    /// Resolves when the library's run loop has ended.
    pub handle: BotHandle,
    writes: mpsc::Sender<Write>,
}

impl Running {
    /// Builds a client from the store and starts it.
    ///
    /// # Errors
    /// [`Unbuildable`].
    pub async fn start(
        node: &Node,
        backend: Arc<FencedBackend>,
        lease: Lease,
        settings: &SessionSettings,
    ) -> Result<Self, Unbuildable> {
        let link = Arc::new(Link {
            backend: Arc::clone(&backend),
            shipper: Arc::clone(&node.shipper),
            acks: Acks::default(),
            runtime: SessionRuntime::default(),
            hold_unknown: AtomicBool::new(settings.on_unknown == OnUnknown::Hold),
            sockets: Arc::default(),
            logged_in_on: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            client: OnceLock::new(),
        });
        let (signals, from_events) = mpsc::channel(events::CAPACITY);
        let (writes, to_write) = mpsc::channel(writer::CAPACITY);
        let factory = SessionDialer {
            dialer: Arc::clone(&node.dialer),
            gate: Gate::new(Arc::clone(&backend), lease),
            sockets: Arc::clone(&link.sockets),
        };
        let hook =
            Inbound { backend: Arc::clone(&backend), shipper: Arc::clone(&node.shipper), writes: writes.clone() };
        let events = Events { link: Arc::clone(&link), signals, writes: writes.clone() };
        let mut builder = Bot::builder()
            .with_backend_arc(backend as Arc<dyn Backend>)
            .with_transport_factory(factory)
            .with_http_client(node.http.clone())
            .with_runtime(link.runtime.clone())
            .with_event_handler(events)
            .with_inbound_durability_hook(hook)
            .with_cache_config(caches())
            .with_wanted_pre_key_count(ONE_TIME_KEYS)
            .with_device_props(
                DevicePropsOverride::new()
                    .with_os(settings.device_name.clone())
                    .with_platform_type(PlatformType::DESKTOP),
            )
            .skip_history_sync();
        if let Some(version) = node.version.current(&node.http).await {
            builder = builder.with_version(version);
        }
        // The library's words may quote what is stored.
        let bot = builder.build().await.map_err(|_| Unbuildable)?;
        let handle = bot.spawn();
        let client = handle.client();
        link.client.get_or_init(|| Arc::downgrade(&client));
        link.runtime.run(writer::run(Arc::clone(&link), client, to_write));
        Ok(Self { link, signals: from_events, handle, writes })
    }

    /// The client.
    pub fn client(&self) -> Arc<Client> {
        self.handle.client()
    }

    /// Writes no further message, and gives WhatsApp a while to say what became of those that were written.
    pub async fn last_words(&self) {
        let first = !self.link.closing.swap(true, Ordering::AcqRel);
        let connected = first && self.link.live_client().is_some();
        if connected && timeout(LAST_WORDS, self.link.acks.none_left()).await.is_err() {
            let session = self.link.backend.session_id();
            tracing::info!(%session, "closing before WhatsApp has said what became of every message");
        }
    }

    /// Disconnects with a flush: what was received is acknowledged, what was sent is recorded. No further message is written,
    /// and WhatsApp gets a while to say what became of those that were: without their socket no word would come.
    pub async fn close(self) {
        let session = self.link.backend.session_id().clone();
        self.last_words().await;
        self.link.down();
        if timeout(CLOSE, self.handle.shutdown()).await.is_err() {
            tracing::warn!(%session, "the client did not close in time, aborting it");
        }
        let (done, stored) = oneshot::channel();
        let flushed = async {
            // Either fails only if the writer has ended, and then the handle is poisoned.
            if self.writes.send(Write::Flush(done)).await.is_ok() {
                let _ = stored.await;
            }
        };
        if timeout(STOP, flushed).await.is_err() {
            tracing::warn!(%session, "acknowledgements were not all stored in time");
        }
        end(&self.link).await;
    }

    /// Ends the client at once, without a flush.
    pub async fn abort(self) {
        self.link.down();
        self.handle.client().signal_shutdown_sync();
        self.handle.abort();
        end(&self.link).await;
    }
}

async fn end(link: &Link) {
    link.acks.close();
    if !link.runtime.stop(STOP).await {
        tracing::warn!(session = %link.backend.session_id(), "some of the client's tasks did not end in time");
    }
}

/// Smaller than the library's: a worker holds thousands of sessions, and everything that a cache forgets is in the store.
/// The library never evicts a lane or a lock that is held.
fn caches() -> CacheConfig {
    let hour = Some(Duration::from_secs(3_600));
    CacheConfig {
        group_cache: CacheEntryConfig::new(hour, 32),
        device_registry_cache: CacheEntryConfig::new(hour, 512),
        message_retry_counts: CacheEntryConfig::new(hour, 128),
        undecryptable_dispatched: CacheEntryConfig::new(Some(Duration::from_secs(300)), 128),
        sender_key_devices_cache: CacheEntryConfig::new(hour, 32),
        session_locks_capacity: 256,
        chat_lanes_capacity: 128,
        group_distribution_locks_capacity: 32,
        resend_rate_limiter_capacity: 256,
        ..CacheConfig::default()
    }
}
