//! Messages: taken from a companion, split by addressee, handed to mailboxes and inboxes.
//!
//! Shapes from wacore 0.7.0: what a client sends in `send/dm.rs` and `send/peer.rs`, what it expects to receive in
//! `messages.rs::parse_message_info`. A device's part arrives `from` the sending device, in the namespace in which the
//! addressee was named; an account's own devices also learn the chat (`recipient`).

use std::sync::Arc;

use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node, NodeRef, Server};

use super::{Class, MAILBOX_LIMIT};
use crate::accepted::{AcceptedEntry, AcceptedMessage, AcceptedPart};
use crate::directory::Account;
use crate::network::Network;
use crate::phone::{InboxItem, IncomingMessage, SealedText};
use crate::wire::{EndReason, children, required};

/// The most devices one message may address.
const MAX_PARTS: usize = 256;
/// The `v` of an `<enc>`: the version of the Signal ciphertexts (`stanza::ENC_VERSION` in wacore 0.7.0).
const ENC_VERSION: &str = "2";
/// The children of a message that belong to the recipients rather than to the server.
const FORWARDED: [&str; 2] = ["meta", "reporting"];

/// The answer to a message stanza.
pub(crate) struct MessageAnswer {
    /// The ack (or, with `error`, the refusal).
    pub(crate) ack: Node,
    /// The log entry, if the message was accepted.
    pub(crate) accepted: Option<Arc<AcceptedMessage>>,
}

/// One device's part of a message, on its way.
pub(crate) struct Delivery<'a> {
    pub(crate) sender: &'a Arc<Account>,
    pub(crate) sender_device: u16,
    pub(crate) target: &'a Arc<Account>,
    pub(crate) target_device: u16,
    /// The namespace the target was addressed in.
    pub(crate) server: Server,
    pub(crate) id: &'a str,
    /// The stanza's `type`: text, media, reaction...
    pub(crate) stanza_type: &'a str,
    /// The encrypted parts: type and ciphertext, with the attributes that the sender gave them.
    pub(crate) sealed: Vec<Node>,
    /// Proof that the sending companion belongs to its account; needed with `pkmsg`.
    pub(crate) device_identity: Option<&'a [u8]>,
    /// The chat, for the sending account's own devices.
    pub(crate) recipient: Option<Jid>,
    pub(crate) category: Option<&'a str>,
    pub(crate) edit: Option<&'a str>,
    pub(crate) extra: Vec<Node>,
    pub(crate) accepted: Option<Arc<AcceptedMessage>>,
}

/// The addressed devices, and the hash of those that should have been addressed if they differ.
struct Parts {
    parts: Vec<Part>,
    phash: Option<String>,
}

struct Part {
    target: Arc<Account>,
    device: u16,
    server: Server,
    sealed: Vec<Node>,
}

/// Takes a message from a companion. `Err` means the stanza is malformed and the connection must end.
pub(crate) fn accept_message(
    network: &Network,
    sender: &Arc<Account>,
    sender_device: u16,
    stanza: &NodeRef<'_>,
) -> Result<MessageAnswer, EndReason> {
    let id = required(stanza, "id")?;
    let stanza_type = required(stanza, "type")?;
    let to = stanza.get_attr("to").and_then(|to| to.to_jid()).ok_or(EndReason::MalformedStanza("to"))?;
    let refuse = |error: &str| Ok(MessageAnswer { ack: ack(&id, &to, [("error", error)]), accepted: None });
    if !matches!(to.server, Server::Pn | Server::Lid) {
        return refuse("501");
    }
    let parts = read_parts(network, sender, sender_device, &to, stanza)?;
    let device_identity = stanza.get_optional_child("device-identity").and_then(|node| node.content_bytes());
    if let Some(Parts { parts, .. }) = &parts {
        check_identity(sender, sender_device, parts, device_identity)?;
    }
    let category = stanza.get_attr("category").map(|category| category.as_str());
    if category.is_none()
        && let Some(error) = ordered_refusal(sender, sender_device)
    {
        return refuse(&error.to_string());
    }
    let Some(Parts { parts, phash }) = parts else {
        return refuse("404");
    };
    if parts.iter().any(is_full) {
        return refuse("503");
    }

    let accepted = Arc::new(AcceptedMessage::new(AcceptedEntry {
        device: sender.jid(Server::Pn, sender_device).to_string(),
        id: id.to_string(),
        to: to.to_string(),
        category: category.as_ref().map(ToString::to_string),
        at: crate::unix_millis(),
        ack_written: false,
        decrypted_by: Vec::new(),
        failed_at: Vec::new(),
        parts: parts.iter().flat_map(log_parts).collect(),
    }));
    sender.accepted().record(&accepted);

    let edit = stanza.get_attr("edit").map(|edit| edit.as_str());
    let extra: Vec<Node> =
        children(stanza).iter().filter(|child| FORWARDED.contains(&&*child.tag)).map(NodeRef::to_owned).collect();
    for part in parts {
        let own = Arc::ptr_eq(&part.target, sender) && category.is_none();
        deliver(
            network,
            Delivery {
                sender,
                sender_device,
                target: &part.target,
                target_device: part.device,
                server: part.server,
                id: &id,
                stanza_type: &stanza_type,
                sealed: part.sealed,
                device_identity,
                recipient: own.then(|| to.to_non_ad()),
                category: category.as_deref(),
                edit: edit.as_deref(),
                extra: extra.clone(),
                accepted: Some(Arc::clone(&accepted)),
            },
        );
    }
    Ok(MessageAnswer { ack: ack(&id, &to, phash.as_deref().map(|phash| ("phash", phash))), accepted: Some(accepted) })
}

/// Reads the addressed devices. `Ok(None)`: the chat doesn't exist. Devices that are gone are left out.
fn read_parts(
    network: &Network,
    sender: &Arc<Account>,
    sender_device: u16,
    to: &Jid,
    stanza: &NodeRef<'_>,
) -> Result<Option<Parts>, EndReason> {
    let Some(chat) = network.resolve(to) else {
        return Ok(None);
    };
    let Some(participants) = stanza.get_optional_child("participants") else {
        let part = Part { target: chat, device: to.device, server: to.server, sealed: sealed_nodes(stanza)? };
        return Ok(Some(Parts { parts: vec![part], phash: None }));
    };
    if children(participants).len() > MAX_PARTS {
        return Err(EndReason::MalformedStanza("participants"));
    }
    let mut parts = Vec::with_capacity(children(participants).len());
    for participant in children(participants) {
        let jid = participant
            .get_attr("jid")
            .and_then(|jid| jid.to_jid())
            .ok_or(EndReason::MalformedStanza("participants"))?;
        let target = network.resolve(&jid).ok_or(EndReason::MalformedStanza("participants"))?;
        let of_this_chat = Arc::ptr_eq(&target, &chat) || Arc::ptr_eq(&target, sender);
        let itself = Arc::ptr_eq(&target, sender) && jid.device == sender_device;
        let twice = parts.iter().any(|part: &Part| Arc::ptr_eq(&part.target, &target) && part.device == jid.device);
        if !of_this_chat || itself || twice {
            return Err(EndReason::MalformedStanza("participants"));
        }
        parts.push(Part { target, device: jid.device, server: jid.server, sealed: sealed_nodes(participant)? });
    }
    let phash = stale_list_hash(&parts, &chat, sender, sender_device, to.server);
    parts.retain(|part| part.device == 0 || part.target.state().companions.contains_key(&part.device));
    Ok(Some(Parts { parts, phash }))
}

/// A message that begins a Signal session must prove that its companion belongs to the account: with the identity that it was
/// linked with.
fn check_identity(
    sender: &Account,
    sender_device: u16,
    parts: &[Part],
    device_identity: Option<&[u8]>,
) -> Result<(), EndReason> {
    let begins = |enc: &Node| enc.attrs.get("type").is_some_and(|kind| *kind == "pkmsg");
    let needed = parts.iter().flat_map(|part| &part.sealed).any(begins);
    let Some(shown) = device_identity else {
        return if needed { Err(EndReason::MalformedStanza("device-identity")) } else { Ok(()) };
    };
    let linked_with = sender.state().companions.get(&sender_device).map(|companion| companion.device_identity.clone());
    let same = linked_with.is_some_and(|linked_with| {
        let decode = waproto::codec::adv_signed_device_identity_decode;
        // The account's key is left out or in, as clients please.
        matches!((decode(&linked_with), decode(shown)), (Ok(linked), Ok(shown))
            if linked.details == shown.details && linked.device_signature == shown.device_signature)
    });
    if same { Ok(()) } else { Err(EndReason::MalformedStanza("device-identity")) }
}

/// The hash over the devices that exist, if the sender addressed others: it then fetches the device lists again.
fn stale_list_hash(
    parts: &[Part],
    chat: &Arc<Account>,
    sender: &Arc<Account>,
    sender_device: u16,
    server: Server,
) -> Option<String> {
    let mut expected: Vec<Jid> = Vec::new();
    let mut complete = true;
    let own_chat = Arc::ptr_eq(chat, sender);
    for account in [chat, sender].into_iter().take(if own_chat { 1 } else { 2 }) {
        let named = || parts.iter().filter(|part| Arc::ptr_eq(&part.target, account));
        let server = named().next().map_or(server, |part| part.server);
        let mut devices: Vec<u16> = account.state().companions.keys().copied().collect();
        devices.push(0);
        devices.retain(|device| !(Arc::ptr_eq(account, sender) && *device == sender_device));
        complete &=
            named().count() == devices.len() && devices.iter().all(|device| named().any(|part| part.device == *device));
        expected.extend(devices.into_iter().map(|device| account.jid(server, device)));
    }
    if complete {
        return None;
    }
    wacore::messages::MessageUtils::participant_list_hash(&expected).ok()
}

fn sealed_nodes(node: &NodeRef<'_>) -> Result<Vec<Node>, EndReason> {
    let mut sealed = Vec::new();
    for enc in node.get_children_by_tag("enc") {
        let kind = required(enc, "type")?;
        if &*required(enc, "v")? != ENC_VERSION {
            return Err(EndReason::MalformedStanza("v"));
        }
        if !matches!(&*kind, "pkmsg" | "msg") || enc.content_bytes().is_none_or(<[u8]>::is_empty) {
            return Err(EndReason::MalformedStanza("enc"));
        }
        sealed.push(enc.to_owned());
    }
    if sealed.is_empty() { Err(EndReason::MalformedStanza("enc")) } else { Ok(sealed) }
}

fn log_parts(part: &Part) -> impl Iterator<Item = AcceptedPart> {
    let device = part.target.jid(Server::Pn, part.device).to_string();
    part.sealed.iter().map(move |enc| {
        let (kind, ciphertext) = sealed_content(enc);
        AcceptedPart { device: device.clone(), kind, ciphertext }
    })
}

fn sealed_content(enc: &Node) -> (String, Vec<u8>) {
    let kind = enc.attrs.get("type").map(ToString::to_string).unwrap_or_default();
    let ciphertext = match &enc.content {
        Some(wacore_binary::NodeContent::Bytes(bytes)) => bytes.clone(),
        _ => Vec::new(),
    };
    (kind, ciphertext)
}

fn is_full(part: &Part) -> bool {
    let state = part.target.state();
    match state.companions.get(&part.device) {
        Some(companion) => companion.mailbox.is_full(),
        None => state.inbox.len() >= MAILBOX_LIMIT,
    }
}

fn ack<'a>(id: &str, to: &Jid, extra: impl IntoIterator<Item = (&'static str, &'a str)>) -> Node {
    NodeBuilder::new("ack")
        .attr("class", "message")
        .attr("id", id)
        .attr("from", to)
        .attr("t", crate::unix_seconds().to_string())
        .attrs(extra)
        .build()
}

/// Puts one device's part where the device finds it.
pub(crate) fn deliver(network: &Network, delivery: Delivery<'_>) {
    if delivery.target_device == 0 {
        let incoming = IncomingMessage {
            sender: Arc::clone(delivery.sender),
            sender_device: delivery.sender_device,
            server: delivery.server,
            id: delivery.id.to_owned(),
            sealed: delivery
                .sealed
                .iter()
                .map(sealed_content)
                .map(|(kind, ciphertext)| SealedText { kind, ciphertext })
                .collect(),
            recipient: delivery.recipient,
            peer: delivery.category.is_some(),
            accepted: delivery.accepted,
        };
        network.put_in_inbox(delivery.target, InboxItem::Message(incoming));
        return;
    }
    let mut stanza = received_form(&delivery);
    let mut state = delivery.target.state();
    if let Some(companion) = state.companions.get_mut(&delivery.target_device) {
        if delivery.category.is_none() && companion.faults.garbles() {
            garble(&mut stanza);
        }
        companion.mailbox.push(
            Class::Message,
            delivery.id.to_owned(),
            delivery.sender.alias.clone(),
            stanza,
            delivery.accepted,
        );
        companion.wake();
    }
}

/// The refusal that the control API has ordered for this device's messages.
fn ordered_refusal(sender: &Account, device: u16) -> Option<u16> {
    sender.state().companions.get_mut(&device)?.faults.refuse_message()
}

/// Flips a bit in each ciphertext, so that it authenticates at nobody's.
fn garble(stanza: &mut Node) {
    let Some(wacore_binary::NodeContent::Nodes(content)) = &mut stanza.content else { return };
    for enc in content.iter_mut().filter(|node| node.tag == "enc") {
        if let Some(wacore_binary::NodeContent::Bytes(bytes)) = &mut enc.content
            && let Some(last) = bytes.last_mut()
        {
            *last ^= 1;
        }
    }
}

fn received_form(delivery: &Delivery<'_>) -> Node {
    let lid = delivery.server.is_lid_family();
    let from = delivery.sender.jid(delivery.server, delivery.sender_device);
    let other = delivery.sender.jid(if lid { Server::Pn } else { Server::Lid }, delivery.sender_device);
    let needs_identity = delivery.sealed.iter().any(|enc| enc.attrs.get("type").is_some_and(|kind| *kind == "pkmsg"));
    let push_name = delivery.sender.state().push_name.clone();
    let mut content = delivery.sealed.clone();
    if needs_identity && let Some(identity) = delivery.device_identity {
        content.push(NodeBuilder::new("device-identity").bytes(identity).build());
    }
    content.extend(delivery.extra.iter().cloned());
    let mut message = NodeBuilder::new("message")
        .attr("from", from)
        .attr("id", delivery.id)
        .attr("type", delivery.stanza_type)
        .attr("t", crate::unix_seconds().to_string())
        .attr("notify", push_name)
        .attr(if lid { "sender_pn" } else { "sender_lid" }, other);
    if let Some(recipient) = &delivery.recipient {
        message = message.attr("recipient", recipient);
    }
    if let Some(category) = delivery.category {
        message = message.attr("category", category);
    }
    if let Some(edit) = delivery.edit {
        message = message.attr("edit", edit);
    }
    message.children(content).build()
}
