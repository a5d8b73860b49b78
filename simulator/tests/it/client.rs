//! The client under the tests: whatsapp-rust on its in-memory store, over a transport that can record and alter.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use simulator::{Config, Network, NewPhone, Simulator, TextOrder};
use whatsapp_rust::bot::{Bot, BotHandle, EventDelivery};
use whatsapp_rust::wacore::net::{HttpClient, HttpRequest, HttpResponse, Transport, TransportEvent, TransportFactory};
use whatsapp_rust::wacore::store::InMemoryBackend;
use whatsapp_rust::wacore::types::events::{Event, InboundMessage};
use whatsapp_rust::wacore::types::presence::ReceiptType;
use whatsapp_rust::{Client, Jid, SendOptions, TokioRuntime, async_channel, async_trait};

/// How long a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(30);

/// Polls until the condition holds, and fails the test with `what` if it doesn't in time.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What the transport does besides carrying bytes.
#[derive(Default)]
pub struct Tap {
    /// Everything sent so far, one entry for each WebSocket message.
    sent: Mutex<Vec<Bytes>>,
    /// The number of the message whose last byte is altered; none if `usize::MAX`.
    flip: AtomicUsize,
}

impl Tap {
    fn new() -> Arc<Self> {
        Arc::new(Self { sent: Mutex::default(), flip: AtomicUsize::new(usize::MAX) })
    }

    /// Flips the lowest bit of the last byte of the n-th message of the next connection.
    pub fn flip_message(&self, number: usize) {
        self.flip.store(number, Ordering::SeqCst);
    }

    /// What the current connection has sent.
    pub fn sent(&self) -> Vec<Bytes> {
        self.sent.lock().expect("tap").clone()
    }
}

struct TappedTransport {
    inner: Arc<dyn Transport>,
    tap: Arc<Tap>,
}

#[async_trait]
impl Transport for TappedTransport {
    async fn send(&self, data: Bytes) -> Result<(), anyhow::Error> {
        let number = {
            let mut sent = self.tap.sent.lock().expect("tap");
            sent.push(data.clone());
            sent.len() - 1
        };
        if self.tap.flip.load(Ordering::SeqCst) != number {
            return self.inner.send(data).await;
        }
        let mut altered = data.to_vec();
        if let Some(last) = altered.last_mut() {
            *last ^= 1;
        }
        self.inner.send(altered.into()).await
    }

    async fn disconnect(&self) {
        self.inner.disconnect().await;
    }
}

struct Dialer {
    url: String,
    tap: Arc<Tap>,
}

#[async_trait]
impl TransportFactory for Dialer {
    async fn create_transport(
        &self,
    ) -> Result<(Arc<dyn Transport>, async_channel::Receiver<TransportEvent>), anyhow::Error> {
        let uri: axum::http::Uri = self.url.parse()?;
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let socket = tokio::net::TcpStream::connect(authority).await?;
        socket.set_nodelay(true)?;
        let (websocket, _) = tokio_websockets::ClientBuilder::from_uri(uri).connect_on(socket).await?;
        let (inner, events) = whatsapp_rust_tokio_transport::from_websocket(websocket);
        self.tap.sent.lock().expect("tap").clear();
        Ok((Arc::new(TappedTransport { inner, tap: Arc::clone(&self.tap) }), events))
    }
}

struct NoHttp;

#[async_trait]
impl HttpClient for NoHttp {
    async fn execute(&self, _request: HttpRequest) -> Result<HttpResponse, anyhow::Error> {
        Err(anyhow::anyhow!("the tests have no HTTP"))
    }
}

/// A device that can be started again on the same store.
pub struct Device {
    url: String,
    store: Arc<InMemoryBackend>,
    pub tap: Arc<Tap>,
}

/// A running client.
pub struct Running {
    handle: BotHandle,
    pub client: Arc<Client>,
    events: Arc<Mutex<Vec<Arc<Event>>>>,
}

impl Device {
    pub fn new(url: String) -> Self {
        Self { url, store: Arc::new(InMemoryBackend::new()), tap: Tap::new() }
    }

    /// The Noise keys the device was paired with.
    pub async fn noise_keys(&self) -> whatsapp_rust::wacore::libsignal::protocol::KeyPair {
        use whatsapp_rust::wacore::store::traits::DeviceStore as _;
        self.store.load().await.expect("load").expect("a device").noise_key
    }

    /// Deletes the Signal sessions with the phones of these users, as a store that was set back would have.
    pub async fn forget_sessions_with(&self, users: &[&str]) {
        use whatsapp_rust::wacore::store::traits::SignalStore as _;
        let mut forgotten = 0;
        for address in users.iter().flat_map(|user| [format!("{user}@c.us.0"), format!("{user}@lid.0")]) {
            if self.store.has_session(&address).await.expect("look") {
                self.store.delete_session(&address).await.expect("delete");
                forgotten += 1;
            }
        }
        assert!(forgotten > 0, "there was no session to forget");
    }

    pub async fn start(&self) -> Running {
        let events: Arc<Mutex<Vec<Arc<Event>>>> = Arc::default();
        let sink = Arc::clone(&events);
        let bot = Bot::builder()
            .with_backend_arc(Arc::clone(&self.store) as Arc<_>)
            .with_transport_factory(Dialer { url: self.url.clone(), tap: Arc::clone(&self.tap) })
            .with_http_client(NoHttp)
            .with_runtime(TokioRuntime)
            .with_version((2, 3000, 1_023_000_000))
            // The default runs a task for each event, in any order.
            .with_event_delivery(EventDelivery::Ordered { capacity: 100_000 })
            .on_event(move |event, _client| {
                sink.lock().expect("events").push(event);
                async {}
            })
            .build()
            .await
            .expect("build the client");
        let client = bot.client();
        Running { handle: bot.spawn(), client, events }
    }
}

impl Running {
    /// The first event for which `select` finds something, now or later.
    pub async fn event<T>(&self, what: &str, mut select: impl FnMut(&Event) -> Option<T>) -> T {
        until(what, async || {
            let events = self.events.lock().expect("events");
            events.iter().find_map(|event| select(event))
        })
        .await
    }

    /// Whether such an event has come so far.
    pub fn has(&self, mut select: impl FnMut(&Event) -> bool) -> bool {
        self.events.lock().expect("events").iter().any(|event| select(event))
    }

    /// How many such events have come so far.
    pub fn count(&self, mut select: impl FnMut(&Event) -> bool) -> usize {
        self.events.lock().expect("events").iter().filter(|event| select(event)).count()
    }

    pub async fn connected(&self) {
        self.event("Connected", |event| matches!(event, Event::Connected(_)).then_some(())).await;
    }

    pub async fn qr(&self) -> String {
        self.event("a QR", |event| match event {
            Event::PairingQrCode(qr) => Some(qr.code.clone()),
            _ => None,
        })
        .await
    }

    /// All messages so far, in order of arrival.
    pub fn inbound(&self) -> Vec<InboundMessage> {
        let events = self.events.lock().expect("events");
        events.iter().flat_map(|event| event.messages().cloned().collect::<Vec<_>>()).collect()
    }

    /// The texts received so far, with ids.
    pub fn texts(&self) -> Vec<(String, String)> {
        self.inbound()
            .iter()
            .filter_map(|inbound| {
                let message = &inbound.message;
                let message = message
                    .device_sent_message
                    .as_option()
                    .and_then(|sent| sent.message.as_option())
                    .unwrap_or(message);
                message.conversation.clone().map(|text| (inbound.info.id.to_string(), text))
            })
            .collect()
    }

    /// Waits for a text.
    pub async fn text(&self, id: &str) -> String {
        until("a text", async || self.texts().into_iter().find(|(found, _)| found == id).map(|(_, text)| text)).await
    }

    /// Waits for the server's ack of a message.
    pub async fn acked(&self, id: &str) -> Option<String> {
        self.event("an ack", |event| match event {
            Event::ServerAck(ack) if ack.id == id => Some(ack.error.clone()),
            _ => None,
        })
        .await
    }

    /// Waits for a receipt of a kind.
    pub async fn receipt(&self, id: &str, kind: &ReceiptType) {
        self.event("a receipt", |event| match event {
            Event::Receipt(receipt)
                if receipt.r#type == *kind && receipt.message_ids.iter().any(|found| found == id) =>
            {
                Some(())
            }
            _ => None,
        })
        .await;
    }

    /// Sends a text to a phone number.
    pub async fn send(&self, phone: &str, id: &str, text: &str) {
        let message =
            whatsapp_rust::waproto::whatsapp::Message { conversation: Some(text.to_owned()), ..Default::default() };
        let options = SendOptions::default().with_message_id(id);
        self.client.send_message_with_options(Jid::pn(phone), message, options).await.expect("send");
    }

    pub async fn stop(self) {
        self.handle.shutdown().await;
    }

    /// Stops without flushing anything, as a crash would.
    pub fn abort(self) {
        self.handle.abort();
    }
}

/// A simulator for one test.
pub struct World {
    pub simulator: Simulator,
    pub network: Network,
}

impl World {
    pub async fn new() -> Self {
        let simulator = Simulator::start(Config::default()).await.expect("start the simulator");
        let network = simulator.network();
        Self { simulator, network }
    }

    pub async fn phone(&self) -> String {
        self.network.create_phone(NewPhone::default()).await.expect("create a phone").phone
    }

    pub fn device(&self) -> Device {
        Device::new(self.simulator.ws_url())
    }

    /// Pairs a new device with a phone and waits until it is connected. Returns it with its address.
    pub async fn pair(&self, phone: &str) -> (Device, Running, String) {
        let device = self.device();
        let running = device.start().await;
        let qr = running.qr().await;
        let scanned = self.network.scan(phone, &qr).await.expect("scan");
        running.connected().await;
        (device, running, scanned.jid)
    }

    /// Writes one text from phone to phone and returns its id.
    pub async fn write(&self, from: &str, to: &str, text: &str) -> String {
        let order = TextOrder { to: to.to_owned(), text: text.to_owned(), id: None, count: None, by_lid: false };
        self.network.write(from, order).await.expect("write").remove(0)
    }

    /// Waits until a phone has opened a message.
    pub async fn opened(&self, phone: &str, id: &str) -> simulator::ReceivedMessage {
        until("a message on a phone", async || {
            let messages = self.network.messages(phone, None, None).await.expect("messages");
            messages.into_iter().find(|message| message.id == id)
        })
        .await
    }

    /// Waits until a connection has ended with this reason.
    pub async fn ended(&self, reason: &str) -> simulator::EndedView {
        until(reason, async || self.network.ended(None).await.into_iter().find(|ended| ended.reason == reason)).await
    }

    /// Waits until a device has acknowledged all messages.
    pub async fn drained(&self, jid: &str) {
        until("an empty mailbox", async || (self.network.unacknowledged(jid).await == Ok(0)).then_some(())).await;
    }
}
