//! The wire: WebSocket messages, length-prefixed frames, Noise and binary stanzas.
//!
//! A client opens a WebSocket and sends `WA 6 3` (optionally preceded by an edge-routing blob), which is also the
//! prologue of the Noise handshake, then frames of a 3-byte big-endian length and a payload; frames and WebSocket
//! messages need not coincide. After the handshake every frame is AES-256-GCM with a counter per direction, so
//! one flipped bit, one missing or one repeated frame is fatal. Nothing here knows accounts.
//!
//! Invariants: a frame that does not decrypt or decode ends the connection with a reason; every write has a
//! deadline; reasons are fixed strings that never carry what a peer sent.

mod certificates;
mod frames;
mod noise;
mod stanza;

pub(crate) use certificates::CertificateAuthority;
pub(crate) use frames::{FrameReader, FrameWriter, WebSocket};
pub(crate) use noise::{Handshake, ReplayGuard, Session, respond};
pub(crate) use stanza::{child_bytes, children, iq_error, iq_result, required, server_jid};

/// Why a connection ended. The text is what `GET connections/ended` shows: it is fixed, so it cannot leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EndReason {
    /// The peer closed the WebSocket properly.
    #[error("closed by the client")]
    ClientClosed,
    /// The TCP stream ended or failed without a close frame.
    #[error("stream ended without a close frame")]
    StreamEnded,
    /// The HTTP upgrade was not one of ours.
    #[error("not a chat websocket")]
    NotChat,
    /// The handshake did not finish in time.
    #[error("handshake timed out")]
    HandshakeTimeout,
    /// The connection's first bytes were not a WhatsApp prologue.
    #[error("prologue is not WA 6 3")]
    BadPrologue,
    /// A handshake message was not the protobuf that was due, or lacked a field.
    #[error("malformed handshake message")]
    MalformedHandshake,
    /// A handshake message failed authentication.
    #[error("handshake message does not decrypt")]
    HandshakeDecrypt,
    /// A hello that this server has already answered once.
    #[error("replayed handshake")]
    ReplayedHandshake,
    /// The login or registration payload was malformed.
    #[error("malformed client payload")]
    MalformedPayload,
    /// The device is unknown or its Noise key isn't the one paired.
    #[error("login refused")]
    LoginRefused,
    /// A transport frame failed authentication: altered, replayed or out of order.
    #[error("frame does not decrypt")]
    FrameDecrypt,
    /// A decrypted frame was not a well-formed stanza.
    #[error("frame is not a stanza")]
    MalformedFrame,
    /// A stanza lacked something its kind requires.
    #[error("malformed stanza: {0}")]
    MalformedStanza(&'static str),
    /// A frame or message over the size limit.
    #[error("message too large")]
    TooLarge,
    /// Nothing was received for longer than a living client stays silent.
    #[error("idle")]
    Idle,
    /// The client did not take what was written to it.
    #[error("write deadline exceeded")]
    WriteDeadline,
    /// The socket failed while being written to.
    #[error("write failed")]
    WriteFailed,
    /// The pairing reached its end; the client reconnects and logs in.
    #[error("restart after pairing (515)")]
    Paired,
    /// The companion answered the pairing with an error or with a signature that does not verify.
    #[error("pairing failed")]
    PairingFailed,
    /// All references of the QR expired.
    #[error("pairing references expired")]
    PairingExpired,
    /// A later login of the same device took over.
    #[error("replaced by a newer login")]
    Replaced,
    /// The phone unlinked this device.
    #[error("device removed (401)")]
    DeviceRemoved,
    /// A fault asked for by the control API.
    #[error("fault: {0}")]
    Fault(&'static str),
    /// The fault plan cut the socket.
    #[error("cut by the fault plan")]
    Cut,
    /// The simulator is stopping.
    #[error("server shutdown")]
    Shutdown,
}
