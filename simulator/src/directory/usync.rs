//! `xmlns=usync`: who is registered, under which LID, with which devices.
//!
//! Formats from wacore 0.7.0 `iq/usync.rs` and `iq/usync/query.rs`. A user with companions but without a signed key index
//! list is dropped by clients, so the list always goes along. Who asks for
//! devices is told of later changes.

use std::sync::Arc;

use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node, NodeRef, Server};

use super::Account;
use crate::network::Network;
use crate::wire::{EndReason, children, iq_result};

/// The most users one query may name.
const MAX_USERS: usize = 5_000;

/// Answers a `usync` query.
pub(crate) fn answer_usync(
    network: &Network,
    asker: &Arc<Account>,
    id: &str,
    request: &NodeRef<'_>,
) -> Result<Node, EndReason> {
    let usync = request.get_optional_child("usync").ok_or(EndReason::MalformedStanza("usync"))?;
    let query = usync.get_optional_child("query").ok_or(EndReason::MalformedStanza("query"))?;
    let list = usync.get_optional_child("list").ok_or(EndReason::MalformedStanza("list"))?;
    if children(list).len() > MAX_USERS {
        return Err(EndReason::MalformedStanza("list"));
    }
    let asks = |protocol: &str| query.get_optional_child(protocol).is_some();
    let protocols = Protocols { contact: asks("contact"), lid: asks("lid"), devices: asks("devices") };
    let mut users = Vec::with_capacity(children(list).len());
    for user in children(list) {
        users.push(answer_user(network, asker, user, &protocols)?);
    }
    let mut answer = NodeBuilder::new("usync").children([NodeBuilder::new("list").children(users).build()]);
    for name in ["sid", "mode", "context", "index", "last"] {
        if let Some(value) = usync.get_attr(name) {
            answer = answer.attr(name, value.to_node_value());
        }
    }
    Ok(iq_result(id, [answer.build()]))
}

struct Protocols {
    contact: bool,
    lid: bool,
    devices: bool,
}

fn answer_user(
    network: &Network,
    asker: &Arc<Account>,
    user: &NodeRef<'_>,
    protocols: &Protocols,
) -> Result<Node, EndReason> {
    let named = user.get_attr("jid").and_then(|jid| jid.to_jid()).map(Jid::into_non_ad);
    let number = user.get_optional_child("contact").and_then(|contact| contact.content_as_string());
    let account = match (&named, &number) {
        (Some(jid), _) => network.resolve(jid),
        (None, Some(number)) => network.account(number.trim_start_matches('+')),
        (None, None) => return Err(EndReason::MalformedStanza("user")),
    };
    let mut content = Vec::new();
    if protocols.contact {
        let kind = if account.is_some() { "in" } else { "out" };
        let contact = NodeBuilder::new("contact").attr("type", kind);
        content.push(match &number {
            Some(number) => contact.string_content(number.clone()).build(),
            None => contact.build(),
        });
    }
    let mut answer = NodeBuilder::new("user");
    let address = named.or_else(|| account.as_ref().map(|account| account.bare_jid(Server::Pn)));
    if let Some(address) = address {
        answer = answer.attr("jid", address);
    }
    if let Some(account) = account {
        answer = answer.attr("pn_jid", account.bare_jid(Server::Pn));
        if protocols.lid {
            content.push(NodeBuilder::new("lid").attr("val", account.bare_jid(Server::Lid)).build());
        }
        if protocols.devices {
            if !Arc::ptr_eq(&account, asker) {
                account.state().watchers.insert(asker.alias.clone(), Arc::downgrade(asker));
            }
            content.push(devices_node(&account));
        }
    }
    Ok(answer.children(content).build())
}

fn devices_node(account: &Account) -> Node {
    let (signed_list, timestamp) = account.key_index_list();
    let mut devices = vec![NodeBuilder::new("device").attr("id", "0").build()];
    devices.extend(account.state().companions.values().map(|companion| {
        NodeBuilder::new("device")
            .attr("id", companion.device.to_string())
            .attr("key-index", companion.key_index.to_string())
            .build()
    }));
    NodeBuilder::new("devices")
        .children([
            NodeBuilder::new("device-list").children(devices).build(),
            NodeBuilder::new("key-index-list").attr("ts", timestamp.to_string()).bytes(signed_list).build(),
        ])
        .build()
}
