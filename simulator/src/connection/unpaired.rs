//! The stream of a client that has no identity yet: references, a scan or a code, the client's signature, and 515.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use wacore_binary::NodeRef;

use super::{Command, Ended, Wire, stream_error, telling};
use crate::directory::KeyBundle;
use crate::network::{Network, NetworkError};
use crate::pairing::code::Codes;
use crate::pairing::passkey::Passkeys;
use crate::pairing::{self, References, ScanOrder};
use crate::wire::{EndReason, iq_error, iq_result, required};

/// How long after the client's signature the restart is ordered. On the real network that is a round trip; without it the
/// order can overtake what the client still has to note down, which costs whatsapp-rust 0.7.0 a second reconnect.
const RESTART_AFTER: Duration = Duration::from_millis(50);

/// Runs until the client is paired or gone.
pub(super) async fn run(
    network: &Network,
    connection: u64,
    wire: &mut Wire,
    noise_public: [u8; 32],
    keys: KeyBundle,
    commands: mpsc::Sender<Command>,
    mut orders: mpsc::Receiver<Command>,
) -> Ended {
    let references = References::open(network, noise_public, keys.identity, &commands);
    if let Err(reason) = wire.writer.send(&[references.stanza()]).await {
        return reason.into();
    }
    let expire = Instant::from_std(references.expire);
    let mut codes = Codes::new(network, connection, noise_public, commands);
    let mut passkeys = Passkeys::default();
    let mut scanned: Option<Box<ScanOrder>> = None;
    loop {
        let step = tokio::select! {
            () = tokio::time::sleep_until(expire), if scanned.is_none() => Err(EndReason::PairingExpired),
            order = orders.recv() => match order {
                Some(Command::Scanned(order)) if scanned.is_none() => {
                    let sent = wire.writer.send(&[pairing::pair_success(&order)]).await;
                    scanned = Some(order);
                    sent
                }
                Some(Command::CodeEntered(order)) if scanned.is_none() => {
                    codes.answer = Some(order.answer);
                    wire.writer.send(&[order.stanza]).await
                }
                Some(Command::PasskeyAsked(order)) => {
                    let asked = passkeys.ask(*order);
                    wire.writer.send(&[asked]).await
                }
                Some(Command::Say(stanza)) => wire.writer.send(std::slice::from_ref(&*stanza)).await,
                // A second scan of the same client: its waiter learns from the dropped channel.
                Some(Command::Scanned(_) | Command::CodeEntered(_)) | None => Ok(()),
                Some(Command::End { reason, goodbye, .. }) => return Ended { reason, goodbye },
            },
            stanza = tokio::time::timeout(network.config().idle_timeout, wire.reader.next_stanza()) => match stanza {
                Ok(Ok(stanza)) => {
                    let stanza = stanza.get();
                    match scanned.take_if(|_| stanza.get_optional_child("pair-device-sign").is_some() || is_error(stanza)) {
                        Some(order) => finish(wire, *order, noise_public, keys.clone(), stanza).await,
                        None => answer(network, wire, &mut codes, &passkeys, stanza).await,
                    }
                }
                Ok(Err(reason)) => Err(reason),
                Err(_) => Err(EndReason::Idle),
            },
        };
        if let Err(reason) = step {
            return reason.into();
        }
    }
}

fn is_error(stanza: &NodeRef<'_>) -> bool {
    stanza.tag == "iq" && stanza.get_attr("type").is_some_and(|kind| *kind == "error")
}

/// The companion has answered `pair-success`: either way this stream ends.
async fn finish(
    wire: &mut Wire,
    order: ScanOrder,
    noise_public: [u8; 32],
    keys: KeyBundle,
    answer: &NodeRef<'_>,
) -> Result<(), EndReason> {
    let completed = pairing::complete(&order, noise_public, keys, answer);
    let told = order.done.send(completed.map_err(|_| NetworkError::PairingFailed));
    if told.is_err() {
        tracing::debug!("the scan had stopped waiting");
    }
    completed?;
    tokio::time::sleep(RESTART_AFTER).await;
    wire.writer.send(&[stream_error("515")]).await?;
    Err(EndReason::Paired)
}

/// An unpaired client may only link itself, answer, keep the connection alive and tell about itself. What else it asks is refused
/// and counted, as where logged-in devices ask for what isn't simulated; what else it says is malformed.
async fn answer(
    network: &Network,
    wire: &mut Wire,
    codes: &mut Codes,
    passkeys: &Passkeys,
    stanza: &NodeRef<'_>,
) -> Result<(), EndReason> {
    match &*stanza.tag {
        "iq" => {
            let id = required(stanza, "id")?;
            match &*required(stanza, "type")? {
                "get" | "set" => {}
                "result" | "error" => return Ok(()),
                _ => return Err(EndReason::MalformedStanza("type")),
            }
            let namespace = required(stanza, "xmlns")?;
            let reply = match &*namespace {
                "w:p" => Some(iq_result(&id, [])),
                "md" => match stanza.get_optional_child("link_code_companion_reg") {
                    Some(registration) => Some(codes.answer(&id, registration)?),
                    None => passkeys.answer(&id, stanza)?,
                },
                _ => None,
            };
            let reply = reply.unwrap_or_else(|| {
                network.count_unimplemented(&namespace);
                iq_error(&id, 501, "feature-not-implemented")
            });
            wire.writer.send(&[reply]).await
        }
        // It has no backlog to ask for, and was given nothing but notifications.
        "ib" => match telling::info(stanza)?.batch {
            None => Ok(()),
            Some(_) => Err(EndReason::MalformedStanza("ib")),
        },
        "presence" => telling::presence(stanza).map(drop),
        "ack" => {
            required(stanza, "id")?;
            match &*required(stanza, "class")? {
                "notification" => Ok(()),
                _ => Err(EndReason::MalformedStanza("class")),
            }
        }
        "xmlstreamend" => Err(EndReason::ClientClosed),
        _ => Err(EndReason::MalformedStanza("tag")),
    }
}
