//! Receipts: they release what the companion was holding open, and tell the sender what became of its message.
//!
//! From wacore 0.7.0 / whatsapp-rust `receipt.rs`: a delivery receipt has no `type`, or `inactive` while the client is not in
//! the foreground; `sender` and `peer_msg` release an account's own messages and go no further; `read` and `played` go to
//! the sender; `retry` asks one device to encrypt anew and carries fresh keys. More ids follow in `<list><item id>`. A `type`
//! that wacore's `ReceiptType` doesn't know, or that only servers use, is malformed.
//!
//! What releases a message, from whatsapp-rust 0.7.0 `message/retry.rs` (`handle_decrypt_failure`): a delivery receipt does,
//! `retry` alone doesn't, only the bare `<ack class="message">` that follows it; the copy of a message that the account wrote
//! itself goes by a receipt only, a bare ack of it is ignored.

use std::sync::Arc;

use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Node, NodeRef, Server};

use super::{Class, Release};
use crate::directory::Account;
use crate::network::Network;
use crate::phone::{InboxItem, IncomingReceipt};
use crate::wire::{EndReason, children, required};

/// The most ids in one receipt; clients put at most 256.
const MAX_IDS: usize = 1_000;

/// A receipt written by a phone.
pub(crate) struct PhoneReceipt<'a> {
    /// The account whose phone writes it.
    pub(crate) reader: &'a Arc<Account>,
    /// The account that sent the messages.
    pub(crate) sender: &'a Arc<Account>,
    /// The namespace in which the reader was addressed.
    pub(crate) server: Server,
    /// `None` for delivered, else `read`.
    pub(crate) kind: Option<&'a str>,
    pub(crate) ids: &'a [String],
}

/// Takes a receipt from a companion and returns its ack.
pub(crate) fn accept_receipt(
    network: &Network,
    reader: &Arc<Account>,
    device: u16,
    stanza: &NodeRef<'_>,
) -> Result<Node, EndReason> {
    let id = required(stanza, "id")?;
    let to = stanza.get_attr("to").and_then(|to| to.to_jid()).ok_or(EndReason::MalformedStanza("to"))?;
    let kind = stanza.get_attr("type").map(|kind| kind.as_str());
    let releases = match kind.as_deref() {
        None | Some("inactive" | "sender" | "peer_msg" | "hist_sync") => true,
        Some("read" | "read-self" | "played" | "played-self" | "retry" | "enc_rekey_retry" | "server-error") => false,
        Some(_) => return Err(EndReason::MalformedStanza("type")),
    };
    let ids = receipt_ids(&id, stanza)?;
    let sender = network.resolve(&to);

    if releases {
        release(reader, device, sender.as_ref(), &ids);
    }
    if let Some(sender) = &sender
        && let None | Some("inactive" | "read" | "played" | "retry") = kind.as_deref()
    {
        let forward = Forward { reader, device, sender, server: to.server, kind: kind.as_deref(), ids: &ids };
        if kind.as_deref() == Some("retry") {
            forward_retry(network, &forward, to.device, stanza);
        } else {
            forward_to_account(network, &forward);
        }
    }
    let mut ack = NodeBuilder::new("ack").attr("class", "receipt").attr("id", &*id).attr("from", &to);
    if let Some(kind) = kind {
        ack = ack.attr("type", &*kind);
    }
    Ok(ack.build())
}

/// Releases what an `<ack>` from a companion names.
pub(crate) fn release_acknowledged(
    network: &Network,
    account: &Account,
    device: u16,
    stanza: &NodeRef<'_>,
) -> Result<(), EndReason> {
    let id = required(stanza, "id")?;
    let class = Class::parse(&required(stanza, "class")?).ok_or(EndReason::MalformedStanza("class"))?;
    let to = stanza.get_attr("to").and_then(|to| to.to_jid()).ok_or(EndReason::MalformedStanza("to"))?;
    let sender = network.resolve(&to);
    let mut state = account.state();
    if let Some(companion) = state.companions.get_mut(&device) {
        let sender = sender.as_ref().map(|sender| sender.alias.as_str());
        let named = Release { class, id: &id, sender, bare_ack: stanza.get_attr("error").is_none() };
        if companion.mailbox.release(&named).is_none() {
            tracing::debug!("an ack named nothing that was delivered");
        }
    }
    Ok(())
}

/// Sends a phone's receipt to every device of the account that sent the messages.
pub(crate) fn send_phone_receipt(network: &Network, receipt: &PhoneReceipt<'_>) {
    let forward = Forward {
        reader: receipt.reader,
        device: 0,
        sender: receipt.sender,
        server: receipt.server,
        kind: receipt.kind,
        ids: receipt.ids,
    };
    forward_to_account(network, &forward);
}

fn receipt_ids(first: &str, stanza: &NodeRef<'_>) -> Result<Vec<String>, EndReason> {
    let mut ids = vec![first.to_owned()];
    if let Some(list) = stanza.get_optional_child("list") {
        if children(list).len() > MAX_IDS {
            return Err(EndReason::MalformedStanza("list"));
        }
        for item in children(list) {
            ids.push(required(item, "id")?.into_owned());
        }
    }
    Ok(ids)
}

fn release(reader: &Account, device: u16, sender: Option<&Arc<Account>>, ids: &[String]) {
    let name = reader.jid(Server::Pn, device).to_string();
    let mut state = reader.state();
    let Some(companion) = state.companions.get_mut(&device) else {
        return;
    };
    for id in ids {
        let sender = sender.map(|sender| sender.alias.as_str());
        let named = Release { class: Class::Message, id, sender, bare_ack: false };
        if let Some(Some(accepted)) = companion.mailbox.release(&named) {
            accepted.decrypted_by(name.clone());
        }
    }
}

struct Forward<'a> {
    reader: &'a Arc<Account>,
    device: u16,
    sender: &'a Arc<Account>,
    server: Server,
    kind: Option<&'a str>,
    ids: &'a [String],
}

impl Forward<'_> {
    fn stanza(&self, extra: Vec<Node>) -> Node {
        let mut receipt = NodeBuilder::new("receipt")
            .attr("from", self.reader.jid(self.server, self.device))
            .attr("id", self.ids.first().map(String::as_str).unwrap_or_default())
            .attr("t", crate::unix_seconds().to_string());
        if let Some(kind) = self.kind {
            receipt = receipt.attr("type", kind);
        }
        let mut content = extra;
        if self.ids.len() > 1 {
            let items = self.ids[1..].iter().map(|id| NodeBuilder::new("item").attr("id", id).build());
            content.push(NodeBuilder::new("list").children(items).build());
        }
        if content.is_empty() { receipt.build() } else { receipt.children(content).build() }
    }

    fn push(&self, device: u16, stanza: &Node) {
        let mut state = self.sender.state();
        if let Some(companion) = state.companions.get_mut(&device) {
            let id = self.ids.first().cloned().unwrap_or_default();
            companion.mailbox.push(Class::Receipt, id, self.reader.alias.clone(), stanza.clone(), None);
            companion.wake();
        }
    }
}

fn forward_to_account(network: &Network, forward: &Forward<'_>) {
    let stanza = forward.stanza(Vec::new());
    let devices: Vec<u16> = forward.sender.state().companions.keys().copied().collect();
    for device in devices {
        if !(Arc::ptr_eq(forward.sender, forward.reader) && device == forward.device) {
            forward.push(device, &stanza);
        }
    }
    let receipt = IncomingReceipt {
        reader: Arc::clone(forward.reader),
        reader_device: forward.device,
        kind: forward.kind.map(str::to_owned),
        ids: forward.ids.to_vec(),
    };
    network.put_in_inbox(forward.sender, InboxItem::Receipt(receipt));
}

/// A retry goes only to the device whose message could not be opened.
fn forward_retry(network: &Network, forward: &Forward<'_>, target: u16, stanza: &NodeRef<'_>) {
    if target == 0 {
        let receipt = IncomingReceipt {
            reader: Arc::clone(forward.reader),
            reader_device: forward.device,
            kind: Some("retry".to_owned()),
            ids: forward.ids.to_vec(),
        };
        network.put_in_inbox(forward.sender, InboxItem::Receipt(receipt));
    } else {
        let content = children(stanza).iter().filter(|child| child.tag != "list").map(NodeRef::to_owned).collect();
        forward.push(target, &forward.stanza(content));
    }
}
