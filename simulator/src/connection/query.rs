//! `<iq>` of logged-in devices: one answer each, some with an effect on the stream.
//!
//! The namespaces are those that whatsapp-rust 0.7.0 asks after login (`client/node_io.rs`) and while it runs. What is not
//! simulated is refused with 501 and counted by namespace in `GET health`, so that a gap shows.

use std::sync::Arc;

use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Node, NodeRef};

use crate::directory::{Account, answer_encrypt, answer_usync};
use crate::network::Network;
use crate::phone::answer_app_state;
use crate::wire::{EndReason, iq_error, iq_result, required};

/// What an answered query means for the stream.
pub(super) enum Effect {
    None,
    /// The device wants its messages.
    Active,
    /// The device has published pre-keys.
    KeysUploaded,
    /// The device has unlinked itself.
    Removed,
}

pub(super) struct Answer {
    pub(super) reply: Node,
    pub(super) effect: Effect,
}

impl From<Node> for Answer {
    fn from(reply: Node) -> Self {
        Self { reply, effect: Effect::None }
    }
}

/// Answers a query.
pub(super) fn answer(
    network: &Network,
    account: &Arc<Account>,
    device: u16,
    id: &str,
    query: &NodeRef<'_>,
) -> Result<Answer, EndReason> {
    let namespace = required(query, "xmlns")?;
    Ok(match &*namespace {
        "w:p" | "urn:xmpp:whatsapp:dirty" | "w:stats" | "tos" => iq_result(id, []).into(),
        "passive" => {
            let effect = if query.get_optional_child("active").is_some() { Effect::Active } else { Effect::None };
            Answer { reply: iq_result(id, []), effect }
        }
        "encrypt" => {
            let answer = answer_encrypt(network, account, device, id, query)?;
            Answer { reply: answer.reply, effect: if answer.uploaded { Effect::KeysUploaded } else { Effect::None } }
        }
        "usync" => answer_usync(network, account, id, query)?.into(),
        "w:sync:app:state" => answer_app_state(account, device, id, query)?.into(),
        "abt" => {
            let props = NodeBuilder::new("props")
                .attr("protocol", "1")
                .attr("ab_key", "sim")
                .attr("hash", "sim")
                .attr("refresh", "86400");
            iq_result(id, [props.build()]).into()
        }
        "blocklist" => iq_result(id, [NodeBuilder::new("list").build()]).into(),
        "privacy" => privacy(id, query).into(),
        "w:profile:picture" => iq_error(id, 404, "item-not-found").into(),
        "md" => remove_device(network, account, device, id, query)?,
        _ => {
            network.count_unimplemented(&namespace);
            iq_error(id, 501, "feature-not-implemented").into()
        }
    })
}

fn privacy(id: &str, query: &NodeRef<'_>) -> Node {
    if query.get_attr("type").is_some_and(|kind| *kind == "set") {
        return iq_result(id, []);
    }
    let category =
        |name: &str, value: &str| NodeBuilder::new("category").attr("name", name).attr("value", value).build();
    let settings = [
        category("last", "all"),
        category("online", "all"),
        category("readreceipts", "all"),
        category("groupadd", "all"),
    ];
    iq_result(id, [NodeBuilder::new("privacy").children(settings).build()])
}

/// `remove-companion-device`: a device logs itself, or another of its account, out.
fn remove_device(
    network: &Network,
    account: &Arc<Account>,
    device: u16,
    id: &str,
    query: &NodeRef<'_>,
) -> Result<Answer, EndReason> {
    let Some(remove) = query.get_optional_child("remove-companion-device") else {
        network.count_unimplemented("md");
        return Ok(iq_error(id, 501, "feature-not-implemented").into());
    };
    let jid = remove.get_attr("jid").and_then(|jid| jid.to_jid()).ok_or(EndReason::MalformedStanza("jid"))?;
    let own = network.resolve(&jid).is_some_and(|named| Arc::ptr_eq(&named, account));
    if !own || jid.device == 0 {
        return Ok(iq_error(id, 403, "forbidden").into());
    }
    let itself = jid.device == device;
    let link = network.forget_device(account, jid.device).map_err(|_| EndReason::MalformedStanza("jid"))?;
    if !itself && let Some(link) = link {
        network.end_removed(&link);
    }
    Ok(Answer { reply: iq_result(id, []), effect: if itself { Effect::Removed } else { Effect::None } })
}
