//! `xmlns=encrypt`: upload, count, digest, rotation and fetching of pre-keys.
//!
//! Formats as documented in wacore 0.7.0 `iq/prekeys.rs` and `prekeys.rs`: ids are 3 bytes big-endian, keys 32 bytes
//! without type byte, registration ids 4 bytes.

use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node, NodeRef};

use super::{Account, KeyBundle, SignedKey};
use crate::network::Network;
use crate::wire::{EndReason, child_bytes, children, iq_error, iq_result};

/// What an `encrypt` request leads to besides its answer.
pub(crate) struct EncryptAnswer {
    /// The answer.
    pub(crate) reply: Node,
    /// The device has uploaded one-time keys, so its phone can write to it now.
    pub(crate) uploaded: bool,
}

/// Answers an `encrypt` request of a logged-in device.
pub(crate) fn answer_encrypt(
    network: &Network,
    account: &Account,
    device: u16,
    id: &str,
    request: &NodeRef<'_>,
) -> Result<EncryptAnswer, EndReason> {
    let answer = |reply| Ok(EncryptAnswer { reply, uploaded: false });
    if let Some(fetch) = request.get_optional_child("key") {
        return answer(fetch_bundles(network, id, fetch)?);
    }
    let mut state = account.state();
    let Some(companion) = state.companions.get_mut(&device) else {
        return Err(EndReason::DeviceRemoved);
    };
    let keys = &mut companion.keys;
    if request.get_optional_child("count").is_some() {
        let count = NodeBuilder::new("count").attr("value", keys.count().to_string()).build();
        return answer(iq_result(id, [count]));
    }
    if request.get_optional_child("digest").is_some() {
        let digest = digest_node(keys);
        return answer(iq_result(id, [digest]));
    }
    if let Some(rotate) = request.get_optional_child("rotate") {
        let signed = signed_key(rotate.get_optional_child("skey"))?;
        if !keys.rotate(signed) {
            return Err(EndReason::MalformedStanza("skey signature"));
        }
        return answer(iq_result(id, []));
    }
    if request.get_optional_child("list").is_some() {
        upload(keys, request)?;
        return Ok(EncryptAnswer { reply: iq_result(id, []), uploaded: true });
    }
    answer(iq_error(id, 501, "feature-not-implemented"))
}

fn upload(keys: &mut KeyBundle, request: &NodeRef<'_>) -> Result<(), EndReason> {
    if child_bytes(request, "identity", 32)? != keys.identity {
        return Err(EndReason::MalformedStanza("identity"));
    }
    if child_bytes(request, "type", 1)? != [5] {
        return Err(EndReason::MalformedStanza("type"));
    }
    let registration = child_bytes(request, "registration", 4)?;
    let signed = signed_key(request.get_optional_child("skey"))?;
    let list = request.get_optional_child("list").ok_or(EndReason::MalformedStanza("list"))?;
    let mut one_time = Vec::with_capacity(children(list).len());
    for key in children(list) {
        one_time.push((three_byte_id(key)?, array(child_bytes(key, "value", 32)?)?));
    }
    if !keys.rotate(signed) {
        return Err(EndReason::MalformedStanza("skey signature"));
    }
    keys.registration_id = u32::from_be_bytes(array(registration)?);
    keys.add_one_time(one_time);
    Ok(())
}

fn fetch_bundles(network: &Network, id: &str, fetch: &NodeRef<'_>) -> Result<Node, EndReason> {
    let mut users = Vec::with_capacity(children(fetch).len());
    for user in children(fetch) {
        let jid = user.get_attr("jid").and_then(|jid| jid.to_jid()).ok_or(EndReason::MalformedStanza("user"))?;
        users.push(bundle_node(network, &jid));
    }
    Ok(iq_result(id, [NodeBuilder::new("list").children(users).build()]))
}

/// One device's bundle, or the error that tells the asker the device is gone (406).
fn bundle_node(network: &Network, jid: &Jid) -> Node {
    let user = NodeBuilder::new("user").attr("jid", jid);
    let content = network.resolve(jid).and_then(|account| {
        if jid.device == 0 {
            return Some(account.primary.hand_out_bundle());
        }
        let mut state = account.state();
        let companion = state.companions.get_mut(&jid.device)?;
        let one_time = companion.keys.take_one_time();
        let mut nodes =
            bundle_children(companion.keys.registration_id, &companion.keys.identity, &companion.keys.signed, one_time);
        nodes.push(NodeBuilder::new("device-identity").bytes(companion.device_identity.clone()).build());
        Some(nodes)
    });
    match content {
        Some(nodes) => user.children(nodes).build(),
        None => user
            .children([NodeBuilder::new("error").attr("code", "406").attr("text", "not-acceptable").build()])
            .build(),
    }
}

/// The children of a `<user>` in a bundle answer.
pub(crate) fn bundle_children(
    registration_id: u32,
    identity: &[u8; 32],
    signed: &SignedKey,
    one_time: Option<(u32, [u8; 32])>,
) -> Vec<Node> {
    let mut nodes = vec![
        NodeBuilder::new("registration").bytes(registration_id.to_be_bytes()).build(),
        NodeBuilder::new("type").bytes([5]).build(),
        NodeBuilder::new("identity").bytes(*identity).build(),
        signed_key_node(signed),
    ];
    if let Some((id, public)) = one_time {
        nodes.push(
            NodeBuilder::new("key").children([id_node(id), NodeBuilder::new("value").bytes(public).build()]).build(),
        );
    }
    nodes
}

fn digest_node(keys: &KeyBundle) -> Node {
    NodeBuilder::new("digest")
        .children([
            NodeBuilder::new("registration").bytes(keys.registration_id.to_be_bytes()).build(),
            NodeBuilder::new("type").bytes([5]).build(),
            NodeBuilder::new("identity").bytes(keys.identity).build(),
            signed_key_node(&keys.signed),
            NodeBuilder::new("list").children(keys.one_time_ids().map(id_node)).build(),
            NodeBuilder::new("hash").bytes(keys.digest()).build(),
        ])
        .build()
}

fn signed_key_node(signed: &SignedKey) -> Node {
    NodeBuilder::new("skey")
        .children([
            id_node(signed.id),
            NodeBuilder::new("value").bytes(signed.public).build(),
            NodeBuilder::new("signature").bytes(signed.signature).build(),
        ])
        .build()
}

fn id_node(id: u32) -> Node {
    NodeBuilder::new("id").bytes(&id.to_be_bytes()[1..]).build()
}

fn signed_key(node: Option<&NodeRef<'_>>) -> Result<SignedKey, EndReason> {
    let node = node.ok_or(EndReason::MalformedStanza("skey"))?;
    Ok(SignedKey {
        id: three_byte_id(node)?,
        public: array(child_bytes(node, "value", 32)?)?,
        signature: array(child_bytes(node, "signature", 64)?)?,
    })
}

fn three_byte_id(node: &NodeRef<'_>) -> Result<u32, EndReason> {
    let id = child_bytes(node, "id", 3)?;
    Ok(u32::from(id[0]) << 16 | u32::from(id[1]) << 8 | u32::from(id[2]))
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], EndReason> {
    bytes.try_into().map_err(|_| EndReason::MalformedStanza("length"))
}
