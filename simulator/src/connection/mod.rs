//! One client's connection, from the WebSocket upgrade to the reason it ended.
//!
//! A connection is one task: upgrade, Noise handshake, then either pairing (no identity yet) or the stream of a logged-in
//! device. It owns its socket; others reach it only through [`Command`]s and the wake-up of its mailbox. Whatever happens,
//! it leaves a reason in `GET connections/ended`.

mod query;
mod stream;
mod telling;
mod unpaired;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node, Server};

use crate::lock;
use crate::login::{self, Identity};
use crate::network::Network;
use crate::pairing::ScanOrder;
use crate::pairing::code::HelloOrder;
use crate::pairing::passkey::PasskeyOrder;
use crate::wire::{EndReason, FrameReader, FrameWriter, Handshake, Session, WebSocket, respond};

/// How long the upgrade and the handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(20);
/// How long a client may take to close after a final stream error.
const LINGER: Duration = Duration::from_secs(2);
/// Orders that may wait for a connection.
const COMMANDS: usize = 8;
/// Frames are at most 16 MiB less one byte, their header 3.
const MAX_MESSAGE: usize = (1 << 24) + 1024;

/// An order to a connection.
pub(crate) enum Command {
    /// A phone has scanned this connection's QR.
    Scanned(Box<ScanOrder>),
    /// Somebody has typed this connection's code into a phone.
    CodeEntered(Box<HelloOrder>),
    /// The account wants to see its passkey first.
    PasskeyAsked(Box<PasskeyOrder>),
    /// Write this stanza.
    Say(Box<Node>),
    /// End, after this stanza if there is one.
    End { stanza: Option<Box<Node>>, reason: EndReason, goodbye: Goodbye },
}

/// What is shown of a connection.
pub(crate) struct ConnectionRecord {
    pub(crate) id: u64,
    /// Unix milliseconds.
    pub(crate) since: i64,
    shown: Mutex<Shown>,
}

#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) jid: Option<String>,
    pub(crate) state: &'static str,
    pub(crate) pattern: Option<&'static str>,
}

impl ConnectionRecord {
    pub(crate) fn new(id: u64) -> Self {
        Self {
            id,
            since: crate::unix_millis(),
            shown: Mutex::new(Shown { jid: None, state: "handshake", pattern: None }),
        }
    }

    pub(crate) fn shown(&self) -> Shown {
        lock(&self.shown).clone()
    }

    fn show(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut lock(&self.shown));
    }

    /// Its login is refused.
    fn show_refused(&self, claimed: &Jid) {
        self.show(|shown| {
            shown.jid = Some(claimed.to_string());
            shown.state = "refused";
        });
    }
}

/// The two directions of an upgraded socket.
struct Wire {
    reader: FrameReader,
    writer: FrameWriter,
}

/// Serves one client until its connection ends.
pub(crate) async fn serve(network: Network, socket: TcpStream) {
    let record = network.open_connection();
    let reason = match tokio::time::timeout(HANDSHAKE_DEADLINE, upgrade(socket)).await {
        Ok(Ok(websocket)) => {
            let (sink, stream) = websocket.split();
            let mut wire = Wire { reader: FrameReader::new(stream), writer: FrameWriter::new(sink) };
            let (commands, orders) = mpsc::channel(COMMANDS);
            let ended = tokio::select! {
                () = network.stopping() => Ended { reason: EndReason::Shutdown, goodbye: Goodbye::Close },
                ended = converse(&network, &record, &mut wire, commands, orders) => ended,
            };
            if ended.goodbye == Goodbye::AfterClient {
                linger(&network, &mut wire.reader).await;
            }
            if ended.goodbye != Goodbye::Drop {
                wire.writer.close(ended.reason).await;
            }
            ended.reason
        }
        Ok(Err(reason)) => reason,
        Err(_) => EndReason::HandshakeTimeout,
    };
    tracing::debug!(connection = record.id, %reason, "connection ended");
    network.close_connection(&record, reason);
}

/// How to part from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goodbye {
    /// Drop the socket: the client sees the stream end.
    Drop,
    /// Send a close frame.
    Close,
    /// Let the client close first, as it does on a final stream error; a moment later, close anyway.
    AfterClient,
}

/// How a connection ended.
struct Ended {
    reason: EndReason,
    goodbye: Goodbye,
}

impl From<EndReason> for Ended {
    fn from(reason: EndReason) -> Self {
        let goodbye = match reason {
            EndReason::StreamEnded | EndReason::WriteFailed | EndReason::WriteDeadline | EndReason::Cut => {
                Goodbye::Drop
            }
            EndReason::Paired | EndReason::DeviceRemoved | EndReason::LoginRefused => Goodbye::AfterClient,
            _ => Goodbye::Close,
        };
        Self { reason, goodbye }
    }
}

/// Discards what still comes until the client closes.
async fn linger(network: &Network, reader: &mut FrameReader) {
    let discard = async { while reader.next_frame().await.is_ok() {} };
    tokio::select! {
        () = network.stopping() => {}
        _ = tokio::time::timeout(LINGER, discard) => {}
    }
}

async fn upgrade(socket: TcpStream) -> Result<WebSocket, EndReason> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    tokio_tungstenite::accept_hdr_async_with_config(socket, check_path, Some(config))
        .await
        .map_err(|_| EndReason::NotChat)
}

#[expect(clippy::result_large_err, reason = "the upgrade callback's type is given by tungstenite")]
fn check_path(request: &Request, response: Response) -> Result<Response, ErrorResponse> {
    if request.uri().path() == "/ws/chat" {
        return Ok(response);
    }
    let mut refusal = ErrorResponse::new(None);
    *refusal.status_mut() = StatusCode::NOT_FOUND;
    Err(refusal)
}

async fn converse(
    network: &Network,
    record: &Arc<ConnectionRecord>,
    wire: &mut Wire,
    commands: mpsc::Sender<Command>,
    orders: mpsc::Receiver<Command>,
) -> Ended {
    let session = match tokio::time::timeout(HANDSHAKE_DEADLINE, shake_hands(network, wire)).await {
        Ok(Ok(session)) => session,
        Ok(Err(reason)) => return reason.into(),
        Err(_) => return EndReason::HandshakeTimeout.into(),
    };
    record.show(|shown| shown.pattern = Some(session.pattern));
    let identity = login::identify(network, &session);
    let noise_public = session.client_static;
    wire.reader.start_opening(session.receive);
    wire.writer.start_sealing(session.send);
    match identity {
        Ok(Identity::Unpaired(keys)) => {
            record.show(|shown| shown.state = "pairing");
            unpaired::run(network, record.id, wire, noise_public, *keys, commands, orders).await
        }
        Ok(Identity::Device { account, device }) => {
            if let Some(failure) = login::refusal(&account, device) {
                record.show_refused(&account.jid(Server::Pn, device));
                return match wire.writer.send(&[failure]).await {
                    Ok(()) => Ended { reason: EndReason::Fault("login_failure"), goodbye: Goodbye::AfterClient },
                    Err(reason) => reason.into(),
                };
            }
            stream::run(network, record, wire, &account, device, commands, orders).await
        }
        Ok(Identity::Stranger(claimed)) => {
            record.show_refused(&claimed);
            match wire.writer.send(&[login::failure()]).await {
                Ok(()) => EndReason::LoginRefused.into(),
                Err(reason) => reason.into(),
            }
        }
        Err(reason) => reason.into(),
    }
}

async fn shake_hands(network: &Network, wire: &mut Wire) -> Result<Session, EndReason> {
    let hello = wire.reader.next_frame().await?;
    match respond(&hello, network.authority(), network.replay_guard())? {
        Handshake::Complete { reply, session } => {
            wire.writer.send_plain(&reply).await?;
            Ok(*session)
        }
        Handshake::AwaitFinish { reply, pending } => {
            wire.writer.send_plain(&reply).await?;
            let finish = wire.reader.next_frame().await?;
            pending.finish(&finish)
        }
    }
}

/// `<stream:error code>`.
pub(crate) fn stream_error(code: &str) -> Node {
    NodeBuilder::new("stream:error").attr("code", code).build()
}

/// The stream error of a device whose login was taken over.
pub(crate) fn stream_error_replaced() -> Node {
    NodeBuilder::new("stream:error").children([NodeBuilder::new("conflict").attr("type", "replaced").build()]).build()
}

/// The stream error of a device that was unlinked.
pub(crate) fn stream_error_removed() -> Node {
    NodeBuilder::new("stream:error")
        .attr("code", "401")
        .children([NodeBuilder::new("conflict").attr("type", "device_removed").build()])
        .build()
}
