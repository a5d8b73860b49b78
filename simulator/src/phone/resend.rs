//! Resends: a companion that could not open a message asks its own phone for its copy.
//!
//! The request is a peer message (`PLACEHOLDER_MESSAGE_RESEND`), and so is the answer: one `WebMessageInfo` for each key asked
//! for, under the stanza id of the request. What the phone doesn't have either is answered without content (whatsapp-rust 0.7.0
//! `pdo.rs`).

use std::sync::Arc;

use wacore_binary::{Jid, Server};
use waproto::buffa::{Message as _, MessageField};
use waproto::whatsapp::message::peer_data_operation_request_response_message::PeerDataOperationResult;
use waproto::whatsapp::message::peer_data_operation_request_response_message::peer_data_operation_result::PlaceholderMessageResendResponse;
use waproto::whatsapp::message::protocol_message::Type;
use waproto::whatsapp::message::{
    PeerDataOperationRequestMessage, PeerDataOperationRequestResponseMessage, PeerDataOperationRequestType,
    ProtocolMessage,
};
use waproto::whatsapp::{Message, MessageKey, WebMessageInfo};

use super::writing::write_peer_message;
use super::{Handset, PhoneError};
use crate::directory::Account;
use crate::network::{Network, message_id};

/// How many messages one request may ask for.
const MAX_KEYS: usize = 100;

/// Answers a request of one of the phone's own companions; `request_id` is the stanza that it came in.
pub(super) fn answer_resend_request(
    network: &Network,
    account: &Arc<Account>,
    device: u16,
    request_id: &str,
    request: &PeerDataOperationRequestMessage,
) -> Result<(), PhoneError> {
    let kind = PeerDataOperationRequestType::PLACEHOLDER_MESSAGE_RESEND;
    if request.peer_data_operation_request_type != Some(kind) {
        return Ok(());
    }
    let results: Vec<_> = {
        let handset = account.handset();
        let keys = request.placeholder_message_resend_request.iter().filter_map(|asked| asked.message_key.as_option());
        keys.take(MAX_KEYS).filter_map(|key| copy(network, &handset, key)).map(result).collect()
    };
    let answer = PeerDataOperationRequestResponseMessage {
        peer_data_operation_request_type: Some(kind),
        stanza_id: Some(request_id.to_owned()),
        peer_data_operation_result: results,
    };
    let message = Message {
        protocol_message: MessageField::some(ProtocolMessage {
            r#type: Some(Type::PEER_DATA_OPERATION_REQUEST_RESPONSE_MESSAGE),
            peer_data_operation_request_response_message: MessageField::some(answer),
            ..Default::default()
        }),
        ..Default::default()
    };
    write_peer_message(network, account, device, message_id(), message)
}

fn result(info: WebMessageInfo) -> PeerDataOperationResult {
    PeerDataOperationResult {
        placeholder_message_resend_response: MessageField::some(PlaceholderMessageResendResponse {
            web_message_info_bytes: Some(info.encode_to_vec()),
        }),
        ..Default::default()
    }
}

/// What the phone has under a key; `None` if the key names nothing. Chats are named by phone number, as phones do.
fn copy(network: &Network, handset: &Handset, key: &MessageKey) -> Option<WebMessageInfo> {
    let id = key.id.as_deref()?;
    let other = network.resolve(&key.remote_jid.as_deref()?.parse::<Jid>().ok()?)?;
    let from_me = key.from_me.unwrap_or(false);
    let received =
        handset.received.iter().rev().find(|message| {
            message.id == id && message.chat == other.phone && (message.from == message.chat) != from_me
        });
    let sent = || handset.sent.get(id).filter(|sent| from_me && !sent.peer && sent.to.phone == other.phone);
    let message = match received {
        Some(message) => waproto::codec::message_decode(&message.content).ok(),
        None => sent().map(|sent| sent.message.clone()),
    };
    Some(WebMessageInfo {
        key: MessageField::some(MessageKey {
            remote_jid: Some(other.bare_jid(Server::Pn).to_string()),
            from_me: Some(from_me),
            id: Some(id.to_owned()),
            ..Default::default()
        }),
        message: message.map(MessageField::some).unwrap_or_default(),
        message_timestamp: received.and_then(|message| u64::try_from(message.at / 1_000).ok()),
        ..Default::default()
    })
}
