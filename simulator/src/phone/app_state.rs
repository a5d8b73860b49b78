//! App state: the key a phone shares with its companions, and the collections the server keeps for them.
//!
//! A companion that has just paired waits for an `AppStateSyncKeyShare` from its phone, then syncs `critical_block` and
//! `critical_unblock_low` before it counts as connected; without a `setting_pushName` in the former it repeats all that at
//! every login and stays silent about its presence (whatsapp-rust 0.7.0 `client/node_io.rs`). So each phone writes its push
//! name as the first patch of `critical_block`. The server stores patches without being able to read them; a patch based on
//! an old version is refused with 409.

use std::collections::HashMap;
use std::sync::Arc;

use wacore::appstate::encode::encode_record;
use wacore::appstate::hash::{HashState, generate_patch_mac};
use wacore::appstate::keys::expand_app_state_keys;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Node, NodeRef};
use waproto::buffa::MessageField;
use waproto::whatsapp::message::protocol_message::Type;
use waproto::whatsapp::message::{
    AppStateSyncKey, AppStateSyncKeyData, AppStateSyncKeyFingerprint, AppStateSyncKeyId, AppStateSyncKeyShare,
    ProtocolMessage,
};
use waproto::whatsapp::sync_action_value::PushNameSetting;
use waproto::whatsapp::syncd_mutation::SyncdOperation;
use waproto::whatsapp::{KeyId, Message, SyncActionValue, SyncdPatch, SyncdVersion};

use super::PhoneError;
use super::writing::write_peer_message;
use crate::directory::Account;
use crate::network::{Network, message_id};
use crate::wire::{EndReason, children, iq_result, required};

const PUSH_NAME_COLLECTION: &str = "critical_block";
/// The index of the push name setting, as JSON; its schema version is 1 (wacore-appstate 0.7.0 `schemas.rs`).
const PUSH_NAME_INDEX: &[u8] = br#"["setting_pushName"]"#;
/// The most patches a collection holds, and the most it hands out at once.
const MAX_PATCHES: usize = 10_000;
const PATCHES_PER_ANSWER: usize = 100;

/// The key that app state is encrypted with; the server never has it.
pub(super) struct AppStateKey {
    id: Vec<u8>,
    data: [u8; 32],
}

impl AppStateKey {
    pub(super) fn generate() -> Self {
        Self { id: rand::random::<[u8; 6]>().to_vec(), data: rand::random() }
    }
}

/// A collection as the server keeps it: its version is the number of its patches.
#[derive(Default)]
pub(crate) struct AppStateCollection {
    patches: Vec<Vec<u8>>,
}

/// The collections of a new account: the push name.
pub(super) fn initial(key: &AppStateKey, push_name: &str) -> HashMap<String, AppStateCollection> {
    let keys = expand_app_state_keys(&key.data);
    let value = SyncActionValue {
        push_name_setting: MessageField::some(PushNameSetting { name: Some(push_name.to_owned()) }),
        timestamp: Some(crate::unix_millis()),
        ..Default::default()
    };
    let (mutation, _) = encode_record(SyncdOperation::SET, PUSH_NAME_INDEX, &value, &keys, &key.id, &rand::random(), 1);
    let mutations = vec![mutation];
    let mut state = HashState::default();
    let (_, hashed) = state.update_hash(&mutations, |_, _| Ok(None));
    if hashed.is_err() {
        tracing::warn!("the push name could not be hashed; companions will sync again at each login");
        return HashMap::new();
    }
    state.version = 1;
    let mut patch = SyncdPatch {
        version: MessageField::some(SyncdVersion { version: Some(1) }),
        mutations,
        snapshot_mac: Some(state.generate_snapshot_mac(PUSH_NAME_COLLECTION, &keys.snapshot_mac)),
        key_id: MessageField::some(KeyId { id: Some(key.id.clone()) }),
        ..Default::default()
    };
    patch.patch_mac = Some(generate_patch_mac(&patch, PUSH_NAME_COLLECTION, &keys.patch_mac, 1));
    let collection = AppStateCollection { patches: vec![waproto::codec::syncd_patch_to_vec(&patch)] };
    HashMap::from([(PUSH_NAME_COLLECTION.to_owned(), collection)])
}

/// Sends the phone's app state key to one of its companions.
pub(crate) fn share_app_state_key(network: &Network, account: &Arc<Account>, device: u16) -> Result<(), PhoneError> {
    let (id, data) = {
        let handset = account.handset();
        (handset.app_state_key.id.clone(), handset.app_state_key.data)
    };
    let share = AppStateSyncKeyShare {
        keys: vec![AppStateSyncKey {
            key_id: MessageField::some(AppStateSyncKeyId { key_id: Some(id) }),
            key_data: MessageField::some(AppStateSyncKeyData {
                key_data: Some(data.to_vec()),
                fingerprint: MessageField::some(AppStateSyncKeyFingerprint {
                    raw_id: Some(account.raw_id),
                    current_index: Some(u32::from(device)),
                    device_indexes: vec![0, u32::from(device)],
                }),
                timestamp: Some(crate::unix_millis()),
            }),
        }],
    };
    let message = Message {
        protocol_message: MessageField::some(ProtocolMessage {
            r#type: Some(Type::APP_STATE_SYNC_KEY_SHARE),
            app_state_sync_key_share: MessageField::some(share),
            ..Default::default()
        }),
        ..Default::default()
    };
    write_peer_message(network, account, device, message_id(), message)
}

/// Answers `w:sync:app:state`: hands out patches, takes new ones, tells the account's other companions.
pub(crate) fn answer_app_state(
    account: &Arc<Account>,
    device: u16,
    id: &str,
    request: &NodeRef<'_>,
) -> Result<Node, EndReason> {
    let sync = request.get_optional_child("sync").ok_or(EndReason::MalformedStanza("sync"))?;
    let mut answers = Vec::with_capacity(children(sync).len());
    let mut state = account.state();
    for collection in sync.get_children_by_tag("collection") {
        let name = required(collection, "name")?;
        let base = match collection.get_attr("version") {
            Some(version) => version.as_str().parse().map_err(|_| EndReason::MalformedStanza("version"))?,
            None => 0,
        };
        let kept = state.app_state.entry(name.to_string()).or_default();
        let answer = match collection.get_optional_child("patch").map(|patch| patch.content_bytes()) {
            Some(Some(patch)) => kept.take(&name, base, patch)?,
            Some(None) => return Err(EndReason::MalformedStanza("patch")),
            None => kept.hand_out(&name, base),
        };
        answers.push(answer);
    }
    drop(state);
    tracing::trace!(device, "answered an app state request");
    Ok(iq_result(id, [NodeBuilder::new("sync").children(answers).build()]))
}

impl AppStateCollection {
    fn hand_out(&self, name: &str, base: usize) -> Node {
        let version = self.patches.len();
        let patches: Vec<Node> = self
            .patches
            .iter()
            .skip(base)
            .take(PATCHES_PER_ANSWER)
            .map(|patch| NodeBuilder::new("patch").bytes(patch.clone()).build())
            .collect();
        let more = base + patches.len() < version;
        let answer = NodeBuilder::new("collection")
            .attr("name", name)
            .attr("version", (base.max(version.min(base + patches.len()))).to_string())
            .attr("has_more_patches", if more { "true" } else { "false" });
        if patches.is_empty() {
            answer.build()
        } else {
            answer.children([NodeBuilder::new("patches").children(patches).build()]).build()
        }
    }

    fn take(&mut self, name: &str, base: usize, patch: &[u8]) -> Result<Node, EndReason> {
        if base != self.patches.len() || base >= MAX_PATCHES {
            let error = NodeBuilder::new("error").attr("code", "409").attr("text", "conflict").build();
            return Ok(NodeBuilder::new("collection")
                .attr("name", name)
                .attr("type", "error")
                .children([error])
                .build());
        }
        let mut patch = waproto::codec::syncd_patch_decode(patch).map_err(|_| EndReason::MalformedStanza("patch"))?;
        let version = base + 1;
        // Clients leave the version to the server, and other clients rely on it.
        patch.version = MessageField::some(SyncdVersion { version: Some(version as u64) });
        self.patches.push(waproto::codec::syncd_patch_to_vec(&patch));
        Ok(NodeBuilder::new("collection").attr("name", name).attr("version", version.to_string()).build())
    }
}
