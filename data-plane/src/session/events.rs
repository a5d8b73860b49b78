//! The library's event bus → signals for the actor, and writes.
//!
//! The library calls [`Events::handle_event`] inline, on the task that received the stanza, and doesn't wait for anything
//! it starts. So everything here is a queue with room; if the room is used up, the session's store handle is poisoned and
//! the client is built anew, because a lost acknowledgement or a lost end of the session can't be made good.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use shared::wire::linking::{Passkey, QrCode};
use tokio::sync::mpsc::{self, error::TrySendError};
use wacore::types::events::{
    ConnectFailureReason, DecryptFailMode, Event, EventHandler, EventInterest, EventKind, ServerAck,
};

use super::{client::Link, state::Signal, writer::Write};
use crate::store::Poison;

/// How many signals wait at most.
pub const CAPACITY: usize = 256;

/// The handler of one client's events.
pub struct Events {
    /// The client's life.
    pub link: Arc<Link>,
    /// To the actor.
    pub signals: mpsc::Sender<Signal>,
    /// To the writer.
    pub writes: mpsc::Sender<Write>,
}

impl EventHandler for Events {
    fn handle_event(&self, event: Arc<Event>) {
        match &*event {
            Event::ServerAck(ack) => {
                if ack.class.as_deref() == Some("message") {
                    let at = ack.timestamp.unwrap_or_else(Utc::now);
                    if ack.error.is_none() {
                        self.link.acks.taken(&ack.id, at);
                    }
                    self.write(acknowledgement(ack, at));
                }
            }
            Event::Receipt(receipt) => self.hint(Write::Receipt(Box::new(receipt.clone()))),
            Event::UndecryptableMessage(message) => {
                // The sender marked it as one whose failure isn't to be shown, such as a reaction.
                if message.decrypt_fail_mode == DecryptFailMode::Show {
                    self.write(Write::Undecryptable(Arc::clone(&message.info)));
                }
            }
            // Everything else that came in has been through the durability hook; a resend by the own phone doesn't go there.
            Event::Messages(batch) => {
                for resent in batch.messages.iter().filter(|message| message.info.unavailable_request_id.is_some()) {
                    self.write(Write::Resent(resent.clone()));
                }
            }
            other => {
                if let Some(signal) = signal(other) {
                    self.signal(signal);
                }
            }
        }
    }

    fn interest(&self) -> EventInterest {
        EventInterest::of(&[
            EventKind::Connected,
            EventKind::Disconnected,
            EventKind::PairSuccess,
            EventKind::LoggedOut,
            EventKind::PairingQrCode,
            EventKind::PairingQrCodesExhausted,
            EventKind::PairPasskeyRequest,
            EventKind::PairPasskeyConfirmation,
            EventKind::PairPasskeyError,
            EventKind::ClientOutdated,
            EventKind::StreamReplaced,
            EventKind::TemporaryBan,
            EventKind::ConnectFailure,
            EventKind::SelfPushNameUpdated,
            EventKind::ServerAck,
            EventKind::Receipt,
            EventKind::UndecryptableMessage,
            EventKind::Messages,
        ])
    }
}

impl Events {
    fn signal(&self, signal: Signal) {
        match signal {
            Signal::Connected => self.link.up(),
            Signal::Renamed | Signal::QrShown(_) | Signal::PasskeyAsked(_) | Signal::Linked => {}
            _ => self.link.down(),
        }
        if let Err(TrySendError::Full(_)) = self.signals.try_send(signal) {
            self.overflow();
        }
    }

    fn write(&self, write: Write) {
        if let Err(TrySendError::Full(_)) = self.writes.try_send(write) {
            self.overflow();
        }
    }

    fn hint(&self, write: Write) {
        if !leaves_room(&self.writes) || matches!(self.writes.try_send(write), Err(TrySendError::Full(_))) {
            metrics::counter!("data_plane_receipts_dropped_total").increment(1);
        }
    }

    fn overflow(&self) {
        tracing::warn!(session = %self.link.backend.session_id(), "a queue is full, the client will be built anew");
        self.link.backend.poison(Poison::HookFailed);
    }
}

/// Whether another receipt leaves half of the queue to what mustn't be lost: receipts of hours may come all at once.
fn leaves_room(writes: &mpsc::Sender<Write>) -> bool {
    writes.capacity() > writes.max_capacity() / 2
}

fn acknowledgement(ack: &ServerAck, at: DateTime<Utc>) -> Write {
    Write::Ack {
        wa_id: ack.id.clone(),
        // A refusal without a code that is a number is a refusal all the same.
        error: ack.error.as_ref().map(|code| code.parse().unwrap_or(0)),
        at,
    }
}

fn signal(event: &Event) -> Option<Signal> {
    Some(match event {
        Event::Connected(_) => Signal::Connected,
        Event::Disconnected(_) => Signal::Dropped,
        Event::PairSuccess(_) => Signal::Linked,
        // WhatsApp calls a ban without an end a locked account; the library, a logout.
        Event::LoggedOut(out) if out.reason == ConnectFailureReason::AccountLocked => Signal::Banned(None),
        Event::LoggedOut(out) => Signal::LoggedOut(logout_reason(&out.reason)),
        Event::PairingQrCode(qr) => Signal::QrShown(QrCode {
            text: qr.code.clone(),
            expires_at: after(chrono::TimeDelta::from_std(qr.timeout).unwrap_or_default()).unwrap_or_default(),
        }),
        Event::PairingQrCodesExhausted(_) => Signal::QrExhausted,
        Event::PairPasskeyRequest(asked) => {
            Signal::PasskeyAsked(Passkey::Assertion { request_options: asked.request_options_json.clone() })
        }
        Event::PairPasskeyConfirmation(asked) => {
            Signal::PasskeyAsked(Passkey::Confirmation { code: asked.code.clone() })
        }
        Event::PairPasskeyError(_) => Signal::PasskeyFailed,
        Event::ClientOutdated(_) => Signal::Outdated,
        Event::StreamReplaced(_) => Signal::Replaced,
        Event::TemporaryBan(ban) => Signal::Banned(after(ban.expire)),
        Event::ConnectFailure(failure) if failure.reason.should_reconnect() => Signal::Dropped,
        Event::ConnectFailure(failure) => match failure.reason {
            ConnectFailureReason::TempBanned => Signal::Banned(None),
            ref reason => Signal::Refused(u16::try_from(reason.code()).unwrap_or(0)),
        },
        Event::SelfPushNameUpdated(_) => Signal::Renamed,
        _ => return None,
    })
}

fn after(duration: chrono::TimeDelta) -> Option<DateTime<Utc>> {
    Utc::now().checked_add_signed(duration)
}

fn logout_reason(reason: &ConnectFailureReason) -> &'static str {
    match reason {
        ConnectFailureReason::LoggedOut => "unlinked",
        _ => "logged_out",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_leave_half_of_the_room_to_what_must_not_be_lost() {
        let (writes, _queue) = mpsc::channel(8);
        let entry = || Write::Flush(tokio::sync::oneshot::channel().0);
        let mut receipts = 0;
        while leaves_room(&writes) {
            writes.try_send(entry()).unwrap();
            receipts += 1;
        }
        assert_eq!(receipts, 4);
        for _ in 0..4 {
            writes.try_send(entry()).unwrap();
        }
    }
}
