//! Acknowledgements, receipts and placeholders on their way into the store: one task for each client, in order.
//!
//! An acknowledgement must not be lost: if its commit fails, or the queue is full, the session's store handle is poisoned
//! and the try becomes one whose outcome isn't known. A receipt is a hint: a full queue drops it, and counts that.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use shared::wire::{
    outbox::{InboundBody, OutboxEvent, ReceiptKind},
    send::SendOutcome,
};
use tokio::sync::{mpsc, oneshot};
use wacore::types::{
    events::{InboundMessage, Receipt},
    message::MessageInfo,
    presence::ReceiptType,
};
use whatsapp_rust::Client;

use super::{
    client::Link,
    inbound::{body, message},
    party::{UnreadableMap, party},
};
use crate::store::{JournalAck, Poison, StoreError};

/// How many entries wait at most.
pub const CAPACITY: usize = 1_024;
/// How many hints are committed together at most.
const TOGETHER: usize = 64;
/// The most messages that one receipt is taken for, and the longest id, in bytes: a row must fit into one request to the
/// control plane. Ids of ours, and of WhatsApp's own clients, are far shorter.
const RECEIPT_IDS: (usize, usize) = (1_000, 128);

/// Something to be stored.
pub enum Write {
    /// WhatsApp took, or refused, a message of ours.
    Ack {
        /// Its id on WhatsApp.
        wa_id: String,
        /// WhatsApp's code, if it refused.
        error: Option<u16>,
        /// When.
        at: DateTime<Utc>,
    },
    /// A recipient's device said something about messages of ours.
    Receipt(Box<Receipt>),
    /// A message could not be decrypted.
    Undecryptable(Arc<MessageInfo>),
    /// A message that could not be decrypted, as the own phone has it.
    Resent(InboundMessage),
    /// Tell when everything before this is stored.
    Flush(oneshot::Sender<()>),
}

/// Why something was not stored.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Names(#[from] UnreadableMap),
}

/// Stores what comes until the queue is closed, or a write fails.
pub async fn run(link: Arc<Link>, client: Arc<Client>, mut queue: mpsc::Receiver<Write>) {
    let mut next = Vec::with_capacity(TOGETHER);
    while queue.recv_many(&mut next, TOGETHER).await > 0 {
        // Boxed: it is 12 KiB, and most of the time nothing is to be stored.
        if let Err(error) = Box::pin(store(&link, &client, next.drain(..))).await {
            tracing::warn!(session = %link.backend.session_id(), %error, "an acknowledgement or receipt was not stored");
            link.backend.poison(Poison::HookFailed);
            return;
        }
    }
}

async fn store(link: &Link, client: &Client, writes: impl Iterator<Item = Write>) -> Result<(), WriteError> {
    let mut hints = Vec::new();
    for write in writes {
        match write {
            Write::Receipt(receipt) => hints.extend(hint(client, &receipt).await?),
            Write::Undecryptable(info) => {
                hints.push(OutboxEvent::Message(message(client, &info, InboundBody::Undecryptable).await?));
            }
            Write::Resent(resent) => {
                if let Some(body) = body(&resent.message, &resent.info) {
                    hints.push(OutboxEvent::Message(message(client, &resent.info, body).await?));
                    metrics::counter!("data_plane_messages_recovered_total").increment(1);
                }
            }
            Write::Ack { wa_id, error, at } => {
                commit(link, &mut hints).await?;
                let ack = link.backend.journal_ack(&wa_id, error, at).await?;
                if let JournalAck::Recorded { .. } = ack {
                    metrics::counter!("data_plane_messages_acked_total", "result" => if error.is_some() { "refused" } else { "taken" })
                        .increment(1);
                    link.shipper.ring(link.backend.session_id());
                }
                link.acks.finish(
                    &wa_id,
                    match error {
                        None => SendOutcome::Acked { at },
                        Some(code) => SendOutcome::Nacked { code },
                    },
                );
            }
            Write::Flush(done) => {
                commit(link, &mut hints).await?;
                // Who asked may have stopped waiting.
                let _ = done.send(());
            }
        }
    }
    commit(link, &mut hints).await
}

async fn commit(link: &Link, hints: &mut Vec<OutboxEvent>) -> Result<(), WriteError> {
    if !hints.is_empty() {
        link.backend.commit_events(hints).await?;
        hints.clear();
        link.shipper.ring(link.backend.session_id());
    }
    Ok(())
}

/// What a receipt says of our messages; `None` if it says nothing of interest, or comes from our own account.
async fn hint(client: &Client, receipt: &Receipt) -> Result<Option<OutboxEvent>, UnreadableMap> {
    let kind = match receipt.r#type {
        // A device that isn't in the foreground says "inactive" for "delivered".
        ReceiptType::Delivered | ReceiptType::Inactive => ReceiptKind::Delivered,
        ReceiptType::Read => ReceiptKind::Read,
        ReceiptType::Played => ReceiptKind::Played,
        _ => return Ok(None),
    };
    let source = &receipt.source;
    let own = [client.pn(), client.lid()].into_iter().flatten().any(|own| own.user == source.sender.user);
    if own {
        return Ok(None);
    }
    let alt = if source.is_group { None } else { source.sender_alt.as_ref() };
    Ok(Some(OutboxEvent::Receipt {
        chat: party(client, &source.chat, alt).await?,
        wa_ids: receipt
            .message_ids
            .iter()
            .filter(|id| id.len() <= RECEIPT_IDS.1)
            .take(RECEIPT_IDS.0)
            .cloned()
            .collect(),
        receipt: kind,
        at: receipt.timestamp,
    }))
}
