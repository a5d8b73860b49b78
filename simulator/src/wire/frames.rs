//! Frames over a WebSocket: 3-byte length and payload in, sealed stanzas out.

use std::time::Duration;

use bytes::BytesMut;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use wacore_binary::consts::WA_CONN_HEADER;
use wacore_binary::{Node, OwnedNodeRef};
use wacore_noise::NoiseCipher;
use wacore_noise::framing::{FRAME_LENGTH_SIZE, FrameDecoder};

use super::EndReason;

/// An accepted WebSocket.
pub(crate) type WebSocket = WebSocketStream<TcpStream>;

/// How long a peer may leave a write unread before its connection ends.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);
/// The largest edge-routing blob accepted in front of the prologue.
const MAX_ROUTING_BLOB: usize = 4096;

/// Reads frames, and opens them once the handshake has given a cipher.
pub(crate) struct FrameReader {
    stream: SplitStream<WebSocket>,
    decoder: FrameDecoder,
    prologue: Option<Vec<u8>>,
    cipher: Option<NoiseCipher>,
    counter: u32,
}

impl FrameReader {
    pub(crate) fn new(stream: SplitStream<WebSocket>) -> Self {
        Self { stream, decoder: FrameDecoder::new(), prologue: Some(Vec::new()), cipher: None, counter: 0 }
    }

    pub(crate) fn start_opening(&mut self, cipher: NoiseCipher) {
        self.cipher = Some(cipher);
    }

    /// The next frame as received. Cancel-safe: bytes already read stay buffered.
    pub(crate) async fn next_frame(&mut self) -> Result<BytesMut, EndReason> {
        loop {
            if self.prologue.is_none()
                && let Some(frame) = self.decoder.decode_frame()
            {
                return Ok(frame);
            }
            match self.stream.next().await {
                Some(Ok(Message::Binary(bytes))) => self.take(&bytes)?,
                Some(Ok(Message::Close(_))) => return Err(EndReason::ClientClosed),
                Some(Ok(Message::Text(_))) => return Err(EndReason::MalformedFrame),
                Some(Ok(_)) => {}
                Some(Err(WsError::Capacity(_))) => return Err(EndReason::TooLarge),
                Some(Err(_)) | None => return Err(EndReason::StreamEnded),
            }
        }
    }

    /// The next stanza. Cancel-safe.
    pub(crate) async fn next_stanza(&mut self) -> Result<OwnedNodeRef, EndReason> {
        let mut frame = self.next_frame().await?;
        let cipher = self.cipher.as_ref().ok_or(EndReason::MalformedHandshake)?;
        let counter = self.counter;
        self.counter = counter.checked_add(1).ok_or(EndReason::FrameDecrypt)?;
        cipher.decrypt_in_place_with_counter(counter, &mut frame).map_err(|_| EndReason::FrameDecrypt)?;
        let plain = wacore_binary::util::unpack_bytes(frame).map_err(|_| EndReason::MalformedFrame)?;
        OwnedNodeRef::new(plain).map_err(|_| EndReason::MalformedFrame)
    }

    /// Takes off the prologue (and a routing blob before it), then hands bytes to the frame decoder.
    fn take(&mut self, bytes: &[u8]) -> Result<(), EndReason> {
        let Some(head) = self.prologue.as_mut() else {
            self.decoder.feed(bytes);
            return Ok(());
        };
        head.extend_from_slice(bytes);
        let mut rest = head.as_slice();
        if rest.starts_with(b"ED") {
            let Some((fixed, after)) = rest.split_at_checked(7) else {
                return Ok(());
            };
            let length = usize::from(fixed[4]) << 16 | usize::from(fixed[5]) << 8 | usize::from(fixed[6]);
            if fixed[2..4] != [0, 1] || length > MAX_ROUTING_BLOB {
                return Err(EndReason::BadPrologue);
            }
            let Some((_, after)) = after.split_at_checked(length) else {
                return Ok(());
            };
            rest = after;
        }
        let Some((header, frames)) = rest.split_at_checked(WA_CONN_HEADER.len()) else {
            return Ok(());
        };
        if header != WA_CONN_HEADER {
            return Err(EndReason::BadPrologue);
        }
        self.decoder.feed(frames);
        self.prologue = None;
        Ok(())
    }
}

/// Writes frames, sealed once the handshake has given a cipher.
pub(crate) struct FrameWriter {
    sink: SplitSink<WebSocket, Message>,
    cipher: Option<NoiseCipher>,
    counter: u32,
}

impl FrameWriter {
    pub(crate) fn new(sink: SplitSink<WebSocket, Message>) -> Self {
        Self { sink, cipher: None, counter: 0 }
    }

    pub(crate) fn start_sealing(&mut self, cipher: NoiseCipher) {
        self.cipher = Some(cipher);
    }

    /// Writes one handshake frame in the clear.
    pub(crate) async fn send_plain(&mut self, payload: &[u8]) -> Result<(), EndReason> {
        let mut message = Vec::with_capacity(FRAME_LENGTH_SIZE + payload.len());
        append(&mut message, payload)?;
        self.write(message).await
    }

    /// Seals and writes stanzas as one WebSocket message. `Ok` means the socket took them.
    pub(crate) async fn send(&mut self, stanzas: &[Node]) -> Result<(), EndReason> {
        let Some(cipher) = self.cipher.as_ref() else {
            return Err(EndReason::MalformedHandshake);
        };
        let mut message = Vec::new();
        for stanza in stanzas {
            let mut frame = wacore_binary::marshal(stanza).map_err(|_| EndReason::WriteFailed)?;
            cipher.encrypt_in_place_with_counter(self.counter, &mut frame).map_err(|_| EndReason::WriteFailed)?;
            self.counter = self.counter.checked_add(1).ok_or(EndReason::WriteFailed)?;
            append(&mut message, &frame)?;
        }
        self.write(message).await
    }

    /// Says goodbye with a close frame, as far as the peer still listens.
    pub(crate) async fn close(&mut self, reason: EndReason) {
        let code = match reason {
            EndReason::Shutdown => CloseCode::Away,
            EndReason::ClientClosed
            | EndReason::Paired
            | EndReason::Replaced
            | EndReason::DeviceRemoved
            | EndReason::Fault(_) => CloseCode::Normal,
            _ => CloseCode::Protocol,
        };
        let frame = Message::Close(Some(CloseFrame { code, reason: "".into() }));
        if !matches!(tokio::time::timeout(WRITE_DEADLINE, self.sink.send(frame)).await, Ok(Ok(()))) {
            tracing::trace!("the close frame was not taken");
        }
    }

    async fn write(&mut self, message: Vec<u8>) -> Result<(), EndReason> {
        match tokio::time::timeout(WRITE_DEADLINE, self.sink.send(Message::Binary(message.into()))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(EndReason::WriteFailed),
            Err(_) => Err(EndReason::WriteDeadline),
        }
    }
}

fn append(message: &mut Vec<u8>, payload: &[u8]) -> Result<(), EndReason> {
    wacore_noise::framing::append_frame_into(payload, None, message).map_err(|_| EndReason::TooLarge)
}
