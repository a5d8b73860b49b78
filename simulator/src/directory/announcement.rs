//! Telling others that an account's devices have changed.
//!
//! Clients keep device lists and encrypt for whom they list, so a new companion must be announced before anyone writes:
//! `<notification type=devices>` with one `<add>` or `<remove>` to every account that has asked for the list, and
//! `<notification type=account_sync>` with the whole list to the account's other companions (wacore 0.7.0
//! `stanza/devices.rs`, whatsapp-rust `handlers/notification/device.rs`). Both wait in the mailbox until acknowledged.

use std::sync::Arc;

use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Node, Server};

use super::Account;
use crate::network::message_id;
use crate::routing::Class;

/// What happened to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceChange {
    /// It was linked, with this key index.
    Added { key_index: u32 },
    /// It was unlinked.
    Removed,
}

/// Announces a change that the account's state already shows.
pub(crate) fn announce(account: &Arc<Account>, device: u16, change: DeviceChange) {
    let (watchers, own) = {
        let state = account.state();
        let watchers: Vec<Arc<Account>> = state.watchers.values().filter_map(std::sync::Weak::upgrade).collect();
        let devices: Vec<(u16, u32)> =
            state.companions.values().map(|companion| (companion.device, companion.key_index)).collect();
        (watchers, devices)
    };
    let notice = contact_notice(account, device, change);
    for watcher in watchers {
        push(account, &watcher, &notice, None);
    }
    push(account, account, &own_notice(account, &own), Some(device));
}

fn push(about: &Account, to: &Account, notice: &Node, except: Option<u16>) {
    let id = notice.attrs.get("id").map(ToString::to_string).unwrap_or_default();
    for companion in to.state().companions.values_mut() {
        if Some(companion.device) != except {
            companion.mailbox.push(Class::Notification, id.clone(), about.alias.clone(), notice.clone(), None);
            companion.wake();
        }
    }
}

fn notification(account: &Account, kind: &str, content: Node) -> Node {
    NodeBuilder::new("notification")
        .attr("from", account.bare_jid(Server::Pn))
        .attr("id", message_id())
        .attr("t", crate::unix_seconds().to_string())
        .attr("type", kind)
        .attr("lid", account.bare_jid(Server::Lid))
        .children([content])
        .build()
}

fn contact_notice(account: &Account, device: u16, change: DeviceChange) -> Node {
    let element = NodeBuilder::new("device")
        .attr("jid", account.jid(Server::Pn, device))
        .attr("lid", account.jid(Server::Lid, device));
    let (signed_list, timestamp) = account.key_index_list();
    let list = NodeBuilder::new("key-index-list").attr("ts", timestamp.to_string());
    let content = match change {
        DeviceChange::Added { key_index } => NodeBuilder::new("add")
            .children([element.attr("key-index", key_index.to_string()).build(), list.bytes(signed_list).build()]),
        DeviceChange::Removed => NodeBuilder::new("remove").children([element.build(), list.build()]),
    };
    notification(account, "devices", content.build())
}

fn own_notice(account: &Account, companions: &[(u16, u32)]) -> Node {
    let (signed_list, timestamp) = account.key_index_list();
    let mut content = vec![NodeBuilder::new("device").attr("jid", account.bare_jid(Server::Pn)).build()];
    content.extend(companions.iter().map(|(device, key_index)| {
        NodeBuilder::new("device")
            .attr("jid", account.jid(Server::Pn, *device))
            .attr("key-index", key_index.to_string())
            .build()
    }));
    content.push(NodeBuilder::new("key-index-list").attr("ts", timestamp.to_string()).bytes(signed_list).build());
    notification(account, "account_sync", NodeBuilder::new("devices").children(content).build())
}
