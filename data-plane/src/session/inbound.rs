//! Incoming messages → outbox rows.
//!
//! The library awaits [`Inbound`] before it acknowledges a message to WhatsApp. A message that it answers `Ok` for is in
//! the outbox; on `Err` the session's store handle is poisoned, so that the client ends without a flush and WhatsApp
//! delivers the message again to the next one. (Read the library's `types/durability_hook.rs` first.) What the own phone
//! resends comes past the hook, as an event that the writer stores; the phone's answer, which does come here, is acknowledged
//! after that.

use std::sync::Arc;

use async_trait::async_trait;
use shared::wire::{
    outbox::{InboundBody, InboundMessage, OutboxEvent},
    send::Content,
};
use tokio::sync::{mpsc, oneshot};
use wacore::{
    proto_helpers::MessageExt,
    types::message::{MessageCategory, MessageInfo},
};
use waproto::whatsapp::{self as wa, message::protocol_message};
use whatsapp_rust::{Client, types::durability_hook::InboundDurabilityHook};

use super::{
    party::{UnreadableMap, party},
    writer::Write,
};
use crate::{
    shipper::Shipper,
    store::{FencedBackend, Poison},
};

/// The longest text that is taken: WhatsApp's own limit of 65,536 characters, in UTF-8. A row must fit into one request
/// to the control plane, or it would hold up all that come after it.
const MAX_TEXT: usize = 256 << 10;
/// The longest name or id that is taken, in bytes. Senders choose theirs; WhatsApp's own are far shorter.
const MAX_NAME: usize = 512;

/// The durability hook of one client.
pub struct Inbound {
    /// Where rows go.
    pub backend: Arc<FencedBackend>,
    /// Who takes them on.
    pub shipper: Arc<Shipper>,
    /// To the writer.
    pub writes: mpsc::Sender<Write>,
}

/// The writer has ended, so what it was handed isn't stored.
#[derive(Debug, thiserror::Error)]
#[error("the writer has ended")]
struct WriterEnded;

#[async_trait]
impl InboundDurabilityHook for Inbound {
    async fn on_messages(
        &self,
        client: Arc<Client>,
        batch: &[wacore::types::events::InboundMessage],
    ) -> anyhow::Result<()> {
        let committed = self.commit(&client, batch).await;
        if committed.is_err() {
            // Whatever was wrong, this client's memory and the store may differ from now on.
            self.backend.poison(Poison::HookFailed);
        }
        committed
    }
}

impl Inbound {
    async fn commit(&self, client: &Client, batch: &[wacore::types::events::InboundMessage]) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(batch.len());
        for item in batch {
            if let Some(body) = body(&item.message, &item.info) {
                events.push(OutboxEvent::Message(message(client, &item.info, body).await?));
            }
        }
        if batch.iter().any(|item| resends(&item.message)) {
            let (done, stored) = oneshot::channel();
            self.writes.send(Write::Flush(done)).await.map_err(|_| WriterEnded)?;
            stored.await.map_err(|_| WriterEnded)?;
        }
        if events.is_empty() {
            return Ok(());
        }
        self.backend.commit_events(&events).await?;
        metrics::counter!("data_plane_messages_received_total").increment(events.len() as u64);
        self.shipper.ring(self.backend.session_id());
        Ok(())
    }
}

/// Whether it is the own phone's answer to a request for a message. The event with that message came before it.
fn resends(message: &wa::Message) -> bool {
    let protocol = message.get_base_message().protocol_message.as_option();
    protocol.is_some_and(|protocol| protocol.peer_data_operation_request_response_message.is_set())
}

/// A message with its canonical identity.
///
/// # Errors
/// [`UnreadableMap`] if the store can't be read.
pub async fn message(client: &Client, info: &MessageInfo, body: InboundBody) -> Result<InboundMessage, UnreadableMap> {
    let source = &info.source;
    let from_a_person = !source.is_group && !source.is_from_me;
    let chat_alt = if from_a_person { source.sender_alt.as_ref() } else { info.peer_recipient_pn.as_ref() };
    Ok(InboundMessage {
        wa_id: short(&info.id).to_owned(),
        chat: party(client, &source.chat, chat_alt).await?,
        sender: party(client, &source.sender, source.sender_alt.as_ref()).await?,
        from_me: source.is_from_me,
        push_name: Some(short(&info.push_name).to_owned()).filter(|name| !name.is_empty()),
        sent_at: info.timestamp,
        body,
    })
}

/// The beginning of a name or id, up to what is taken.
fn short(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME)]
}

/// What a message holds, or `None` if it is between devices and not for people.
pub fn body(message: &wa::Message, info: &MessageInfo) -> Option<InboundBody> {
    if info.category == MessageCategory::Peer {
        return None;
    }
    let unsupported = |kind: &str| Some(InboundBody::Unsupported { kind: kind.into() });
    if message.edited_message.is_set() {
        return unsupported("edited_message");
    }
    let base = message.get_base_message();
    if let Some(text) = message.text_content() {
        if text.len() > MAX_TEXT {
            return unsupported("oversized_text");
        }
        return Some(InboundBody::Content { content: Content::Text { body: text.to_owned() } });
    }
    if let Some(protocol) = base.protocol_message.as_option() {
        return match protocol.r#type {
            Some(protocol_message::Type::REVOKE | protocol_message::Type::MESSAGE_EDIT) => {
                unsupported("protocol_message")
            }
            _ => None,
        };
    }
    match kind(base) {
        Some(kind) => unsupported(kind),
        None if *base == wa::Message::default() => None,
        None if base.sender_key_distribution_message.is_set() || base.message_context_info.is_set() => None,
        None => unsupported("unknown"),
    }
}

/// The name of the field that holds a message's content.
fn kind(message: &wa::Message) -> Option<&'static str> {
    macro_rules! first_set {
        ($($field:ident),* $(,)?) => {
            $(if message.$field.is_set() { return Some(stringify!($field)); })*
        };
    }
    first_set!(
        image_message,
        video_message,
        audio_message,
        document_message,
        sticker_message,
        contact_message,
        contacts_array_message,
        location_message,
        live_location_message,
        reaction_message,
        enc_reaction_message,
        poll_creation_message,
        poll_creation_message_v2,
        poll_creation_message_v3,
        poll_creation_message_v4,
        poll_creation_message_v5,
        poll_creation_message_v6,
        poll_update_message,
        poll_add_option_message,
        poll_result_snapshot_message,
        event_message,
        enc_event_response_message,
        event_invite_message,
        buttons_message,
        buttons_response_message,
        list_message,
        list_response_message,
        template_message,
        template_button_reply_message,
        interactive_message,
        interactive_response_message,
        highly_structured_message,
        product_message,
        order_message,
        invoice_message,
        send_payment_message,
        request_payment_message,
        decline_payment_request_message,
        cancel_payment_request_message,
        payment_invite_message,
        payment_reminder_message,
        split_payment_message,
        group_invite_message,
        newsletter_admin_invite_message,
        request_phone_number_message,
        pin_in_chat_message,
        keep_in_chat_message,
        album_message,
        sticker_pack_message,
        lottie_sticker_message,
        ptv_message,
        call,
        call_log_messsage,
        scheduled_call_creation_message,
        scheduled_call_edit_message,
        bcall_message,
        comment_message,
        enc_comment_message,
        secret_encrypted_message,
        placeholder_message,
        status_mention_message,
        group_status_mention_message,
        question_message,
        question_reply_message,
        rich_response_message,
        associated_child_message,
        group_mentioned_message,
        bot_invoke_message,
        message_history_bundle,
        message_history_notice,
        chat,
    );
    None
}

#[cfg(test)]
mod tests {
    use buffa::MessageField;
    use wacore::proto_helpers::MessageBuilderExt;

    use super::*;

    fn info() -> MessageInfo {
        MessageInfo::default()
    }

    fn text(body: &str) -> InboundBody {
        InboundBody::Content { content: Content::Text { body: body.into() } }
    }

    #[test]
    fn text_is_text_plain_extended_or_wrapped() {
        assert!(body(&wa::Message::text("hello"), &info()) == Some(text("hello")));
        let extended = wa::Message {
            extended_text_message: MessageField::some(wa::message::ExtendedTextMessage {
                text: Some("see".into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert!(body(&extended, &info()) == Some(text("see")));
        let wrapped = wa::Message {
            ephemeral_message: MessageField::some(wa::message::FutureProofMessage {
                message: MessageField::some(extended),
            }),
            ..Default::default()
        };
        assert!(body(&wrapped, &info()) == Some(text("see")));
    }

    #[test]
    fn a_text_that_is_longer_than_whatsapp_s_own_limit_is_named_and_any_row_fits_into_a_request() {
        let longest = "\u{1}".repeat(MAX_TEXT);
        let content = body(&wa::Message::text(longest.as_str()), &info());
        assert!(content == Some(text(&longest)));
        // Escaped six to one in JSON.
        assert!(serde_json::to_vec(&content).unwrap().len() < shared::wire::outbox::MAX_BYTES - 8 * MAX_NAME);
        let longer = body(&wa::Message::text(format!("{longest}x")), &info());
        assert!(longer == Some(InboundBody::Unsupported { kind: "oversized_text".into() }));
        assert_eq!(short(&"\u{1f980}x".repeat(MAX_NAME)).len(), 510, "no character is cut in two");
    }

    #[test]
    fn what_we_do_not_model_is_named_and_what_is_between_devices_is_left_out() {
        let sticker = wa::Message { sticker_message: MessageField::some(Default::default()), ..Default::default() };
        assert!(body(&sticker, &info()) == Some(InboundBody::Unsupported { kind: "sticker_message".into() }));
        let revoke = |kind| wa::Message {
            protocol_message: MessageField::some(wa::message::ProtocolMessage {
                r#type: Some(kind),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert!(body(&revoke(protocol_message::Type::REVOKE), &info()).is_some());
        assert!(body(&revoke(protocol_message::Type::APP_STATE_SYNC_KEY_SHARE), &info()).is_none());
        assert!(body(&wa::Message::default(), &info()).is_none());
        let peer = MessageInfo { category: MessageCategory::Peer, ..info() };
        assert!(body(&wa::Message::text("between devices"), &peer).is_none());
    }
}
