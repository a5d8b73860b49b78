//! Writing: a phone encrypts a text for every device of the chat and for its own companions.
//!
//! Each device has a Signal session of its own. A phone's own companions get the text wrapped in a `deviceSentMessage` that
//! names the chat, as WhatsApp does, so that they show it too.

use std::sync::Arc;

use wacore::messages::MessageUtils;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node, Server};
use wacore_libsignal::protocol::{PreKeyBundle, SignalProtocolError};
use waproto::buffa::MessageField;
use waproto::whatsapp::message::{DeviceSentMessage, ReactionMessage};
use waproto::whatsapp::{Message, MessageKey};

use super::{Handset, PhoneError, SealedText, SentMessage, signal_address};
use crate::directory::Account;
use crate::network::Network;
use crate::routing::{Delivery, deliver};

/// Encrypting anew for one device stops after this many retries of one message, as clients stop asking.
const MAX_RETRIES: u8 = 5;

/// A message to write.
pub(crate) struct NewMessage {
    pub(crate) id: String,
    pub(crate) message: Message,
}

impl NewMessage {
    /// A plain text.
    pub(crate) fn text(id: String, text: String) -> Self {
        Self { id, message: Message { conversation: Some(text), ..Default::default() } }
    }

    /// A reaction to a message of `chat`, written by the phone itself or by the other side. No emoji takes it back.
    pub(crate) fn reaction(id: String, chat: &Jid, to: String, to_own: bool, emoji: String) -> Self {
        let key = MessageKey {
            remote_jid: Some(chat.to_string()),
            from_me: Some(to_own),
            id: Some(to),
            ..Default::default()
        };
        let reaction = ReactionMessage {
            key: MessageField::some(key),
            text: Some(emoji),
            sender_timestamp_ms: Some(crate::unix_millis()),
            ..Default::default()
        };
        Self { id, message: Message { reaction_message: MessageField::some(reaction), ..Default::default() } }
    }
}

/// Writes messages to a chat, in order. Returns when all are in the mailboxes of all devices.
pub(crate) fn write_messages(
    network: &Network,
    author: &Arc<Account>,
    to: &Arc<Account>,
    server: Server,
    messages: Vec<NewMessage>,
) -> Result<(), PhoneError> {
    let mut handset = author.handset();
    let own_chat = Arc::ptr_eq(author, to);
    let mut targets: Vec<(&Arc<Account>, u16)> = Vec::new();
    if !own_chat {
        targets.push((to, 0));
        targets.extend(to.state().companions.keys().map(|device| (to, *device)));
    }
    targets.extend(author.state().companions.keys().map(|device| (author, *device)));
    for new in messages {
        for (target, device) in &targets {
            write_part(
                network,
                &mut handset,
                &Part { author, to, server, id: &new.id, message: &new.message, target, device: *device, peer: false },
            )?;
        }
        handset.remember_sent(
            new.id,
            SentMessage {
                to: Arc::clone(to),
                server,
                message: new.message,
                peer: false,
                retries: std::collections::HashMap::new(),
            },
        );
    }
    Ok(())
}

/// Writes a protocol message to one of the phone's own companions.
pub(super) fn write_peer_message(
    network: &Network,
    author: &Arc<Account>,
    device: u16,
    id: String,
    message: Message,
) -> Result<(), PhoneError> {
    let mut handset = author.handset();
    write_part(
        network,
        &mut handset,
        &Part {
            author,
            to: author,
            server: Server::Pn,
            id: &id,
            message: &message,
            target: author,
            device,
            peer: true,
        },
    )?;
    let sent = SentMessage {
        to: Arc::clone(author),
        server: Server::Pn,
        message,
        peer: true,
        retries: std::collections::HashMap::new(),
    };
    handset.remember_sent(id, sent);
    Ok(())
}

/// Encrypts a message anew, in a new session, for the device that could not open it.
pub(super) fn write_again(
    network: &Network,
    author: &Arc<Account>,
    id: &str,
    target: &Arc<Account>,
    device: u16,
) -> Result<(), PhoneError> {
    let mut handset = author.handset();
    let Some(sent) = handset.sent.get_mut(id) else {
        return Ok(());
    };
    let retries = sent.retries.entry((target.alias.clone(), device)).or_default();
    *retries += 1;
    if *retries > MAX_RETRIES {
        return Ok(());
    }
    let (to, server, message, peer) = (Arc::clone(&sent.to), sent.server, sent.message.clone(), sent.peer);
    handset.sessions.renew(&signal_address(target, device))?;
    write_part(network, &mut handset, &Part { author, to: &to, server, id, message: &message, target, device, peer })
}

struct Part<'a> {
    author: &'a Arc<Account>,
    to: &'a Arc<Account>,
    server: Server,
    id: &'a str,
    message: &'a Message,
    target: &'a Arc<Account>,
    device: u16,
    peer: bool,
}

fn write_part(network: &Network, handset: &mut Handset, part: &Part<'_>) -> Result<(), PhoneError> {
    let own = Arc::ptr_eq(part.target, part.author) && !part.peer;
    let chat = part.to.bare_jid(part.server);
    let plaintext = if own {
        MessageUtils::encode_and_pad(&Message {
            device_sent_message: MessageField::some(DeviceSentMessage {
                destination_jid: Some(chat.to_string()),
                message: MessageField::some(part.message.clone()),
                ..Default::default()
            }),
            ..Default::default()
        })
    } else {
        MessageUtils::encode_and_pad(part.message)
    };
    let address = signal_address(part.target, part.device);
    let reaction = part.message.reaction_message.is_set();
    let sealed = handset.seal(&part.author.primary, &address, || bundle(part.target, part.device), &plaintext)?;
    let Some(sealed) = sealed else { return Ok(()) };
    deliver(
        network,
        Delivery {
            sender: part.author,
            sender_device: 0,
            target: part.target,
            target_device: part.device,
            server: part.server,
            id: part.id,
            stanza_type: if reaction { "reaction" } else { "text" },
            sealed: vec![enc_node(sealed, reaction)],
            device_identity: None,
            recipient: own.then_some(chat),
            category: part.peer.then_some("peer"),
            edit: None,
            extra: Vec::new(),
            accepted: None,
        },
    );
    Ok(())
}

fn bundle(target: &Account, device: u16) -> Result<Option<PreKeyBundle>, SignalProtocolError> {
    if device == 0 {
        return target.primary.take_bundle().map(Some);
    }
    match target.state().companions.get_mut(&device) {
        Some(companion) => companion.keys.take_pre_key_bundle(device).map(Some),
        None => Ok(None),
    }
}

/// `hidden`: a client that can't open it shows nothing.
fn enc_node(sealed: SealedText, hidden: bool) -> Node {
    let mut node = NodeBuilder::new("enc").attr("v", "2").attr("type", sealed.kind.as_str());
    if hidden {
        node = node.attr("decrypt-fail", "hide");
    }
    node.bytes(sealed.ciphertext).build()
}
