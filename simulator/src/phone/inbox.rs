//! The inbox: a phone opens what arrived, acknowledges it, and reacts as it was told to.

use std::sync::Arc;

use wacore::messages::MessageUtils;
use wacore_binary::{Jid, Server};
use waproto::whatsapp::Message;
use waproto::whatsapp::message::ProtocolMessage;

use super::resend::answer_resend_request;
use super::writing::{NewMessage, write_again, write_messages};
use super::{PhoneError, ReceivedMessage, ReceivedReceipt, share_app_state_key, signal_address};
use crate::accepted::AcceptedMessage;
use crate::directory::Account;
use crate::network::{Network, message_id};
use crate::routing::{PhoneReceipt, send_phone_receipt};

/// How many items are worked off before other tasks get their turn.
const BATCH: usize = 32;

/// One Signal ciphertext.
#[derive(Clone)]
pub(crate) struct SealedText {
    /// `pkmsg` or `msg`.
    pub(crate) kind: String,
    pub(crate) ciphertext: Vec<u8>,
}

/// A message for a phone.
pub(crate) struct IncomingMessage {
    pub(crate) sender: Arc<Account>,
    pub(crate) sender_device: u16,
    pub(crate) server: Server,
    pub(crate) id: String,
    pub(crate) sealed: Vec<SealedText>,
    /// The chat, when one of the phone's own companions wrote it.
    pub(crate) recipient: Option<Jid>,
    pub(crate) peer: bool,
    pub(crate) accepted: Option<Arc<AcceptedMessage>>,
}

/// A receipt for a phone.
pub(crate) struct IncomingReceipt {
    pub(crate) reader: Arc<Account>,
    pub(crate) reader_device: u16,
    /// `None` for delivered.
    pub(crate) kind: Option<String>,
    pub(crate) ids: Vec<String>,
}

/// What waits in an inbox.
pub(crate) enum InboxItem {
    Message(IncomingMessage),
    Receipt(IncomingReceipt),
}

/// Works off an account's inbox until it is empty, or the phone is switched off.
pub(crate) async fn process_inbox(network: Network, account: Arc<Account>) {
    loop {
        let batch: Vec<InboxItem> = {
            let mut state = account.state();
            let count = if state.offline { 0 } else { state.inbox.len().min(BATCH) };
            if count == 0 {
                state.inbox_busy = false;
                return;
            }
            state.inbox.drain(..count).collect()
        };
        for item in batch {
            let outcome = match item {
                InboxItem::Message(message) => take_message(&network, &account, &message),
                InboxItem::Receipt(receipt) => take_receipt(&network, &account, &receipt),
            };
            if let Err(error) = outcome {
                // The error's own text may name an address, its kind doesn't.
                tracing::warn!(kind = error.kind(), "a phone could not work off an item of its inbox");
            }
        }
        tokio::task::yield_now().await;
    }
}

impl PhoneError {
    fn kind(&self) -> &'static str {
        match self {
            Self::Signal(_) => "signal",
            Self::Curve(_) => "curve",
            Self::NotAMessage => "not a message",
            Self::NotReady => "not ready",
        }
    }
}

fn take_message(network: &Network, account: &Arc<Account>, incoming: &IncomingMessage) -> Result<(), PhoneError> {
    let address = signal_address(&incoming.sender, incoming.sender_device);
    let name = account.jid(Server::Pn, 0).to_string();
    let own = Arc::ptr_eq(&incoming.sender, account);
    for sealed in &incoming.sealed {
        let opened = account.handset().open(&account.primary, &address, sealed).and_then(|padded| parse(&padded));
        let message = match opened {
            Ok(message) => message,
            Err(error) => {
                if let Some(accepted) = &incoming.accepted {
                    accepted.failed_at(name);
                }
                return Err(error);
            }
        };
        if let Some(accepted) = &incoming.accepted {
            accepted.decrypted_by(name.clone());
        }
        if incoming.peer {
            if let Some(protocol) = message.protocol_message.as_option() {
                answer_peer(network, account, incoming, protocol)?;
            }
            continue;
        }
        let shown = shown(&message);
        let text = text_of(shown);
        let chat = match (&incoming.recipient, own) {
            (Some(chat), true) => {
                network.resolve(chat).map_or_else(|| chat.user.to_string(), |chat| chat.phone.clone())
            }
            _ => incoming.sender.phone.clone(),
        };
        account.handset().remember_received(ReceivedMessage {
            id: incoming.id.clone(),
            from: incoming.sender.phone.clone(),
            from_device: incoming.sender_device,
            chat,
            text: text.clone().unwrap_or_default(),
            at: crate::unix_millis(),
            read: false,
            server: incoming.server,
            content: waproto::codec::message_to_vec(shown),
        });
        if !own {
            react(network, account, incoming, text.is_some())?;
        }
    }
    Ok(())
}

/// What one of the phone's own companions asks it for.
fn answer_peer(
    network: &Network,
    account: &Arc<Account>,
    incoming: &IncomingMessage,
    asked: &ProtocolMessage,
) -> Result<(), PhoneError> {
    if asked.app_state_sync_key_request.is_set() {
        share_app_state_key(network, account, incoming.sender_device)?;
    }
    if let Some(request) = asked.peer_data_operation_request_message.as_option() {
        answer_resend_request(network, account, incoming.sender_device, &incoming.id, request)?;
    }
    Ok(())
}

/// Delivery receipt, then what the phone was told to do.
fn react(
    network: &Network,
    account: &Arc<Account>,
    incoming: &IncomingMessage,
    is_text: bool,
) -> Result<(), PhoneError> {
    let ids = [incoming.id.clone()];
    let receipt =
        |kind| PhoneReceipt { reader: account, sender: &incoming.sender, server: incoming.server, kind, ids: &ids };
    send_phone_receipt(network, &receipt(None));
    let (auto_read, auto_reply) = {
        let state = account.state();
        (state.auto_read, state.auto_reply.clone())
    };
    if auto_read {
        mark_read(network, account, &incoming.sender, &ids);
    }
    // Phones don't answer phones: two that answer each other would never stop.
    if let Some(reply) = auto_reply
        && is_text
        && incoming.sender_device != 0
    {
        write_messages(
            network,
            account,
            &incoming.sender,
            incoming.server,
            vec![NewMessage::text(message_id(), reply)],
        )?;
    }
    Ok(())
}

/// Marks messages of one sender as read and tells the sender.
pub(crate) fn mark_read(network: &Network, account: &Arc<Account>, sender: &Arc<Account>, ids: &[String]) {
    let mut server = Server::Pn;
    {
        let mut handset = account.handset();
        for message in handset.received.iter_mut().rev() {
            if message.from == sender.phone && ids.contains(&message.id) {
                message.read = true;
                server = message.server;
            }
        }
    }
    send_phone_receipt(network, &PhoneReceipt { reader: account, sender, server, kind: Some("read"), ids });
}

fn take_receipt(network: &Network, account: &Arc<Account>, receipt: &IncomingReceipt) -> Result<(), PhoneError> {
    for id in &receipt.ids {
        account.handset().remember_receipt(ReceivedReceipt {
            id: id.clone(),
            from: receipt.reader.phone.clone(),
            from_device: receipt.reader_device,
            kind: receipt.kind.clone().unwrap_or_else(|| "delivered".to_owned()),
            at: crate::unix_millis(),
        });
        if receipt.kind.as_deref() == Some("retry") && !account.state().ignores_retries {
            write_again(network, account, id, &receipt.reader, receipt.reader_device)?;
        }
    }
    Ok(())
}

fn parse(padded: &[u8]) -> Result<Message, PhoneError> {
    let bytes = MessageUtils::unpad_message_ref(padded, 2).map_err(|_| PhoneError::NotAMessage)?;
    waproto::codec::message_decode(bytes).map_err(|_| PhoneError::NotAMessage)
}

/// A message, or the one that a companion reports having sent.
fn shown(message: &Message) -> &Message {
    message.device_sent_message.as_option().and_then(|sent| sent.message.as_option()).unwrap_or(message)
}

fn text_of(message: &Message) -> Option<String> {
    message
        .conversation
        .clone()
        .or_else(|| message.extended_text_message.as_option().and_then(|extended| extended.text.clone()))
}
