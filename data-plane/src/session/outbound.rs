//! Sends.
//!
//! A batch is opened in the journal in one commit before any of its frames. Within a chat, a message goes out when WhatsApp
//! has taken the one before it; chats go in parallel. `send_message` of the library returns when the stanza is written, so what
//! counts is WhatsApp's acknowledgement ([`super::acks`]): the caller hears it at once, and the writer records it. A refusal is
//! recorded before anybody hears of it, since what was recorded first stands. A message that was opened and whose frame was
//! never handed on is withdrawn, so that no later try takes it for one whose outcome isn't known. Between the journal and the frame time passes: what an earlier try's late word settles meanwhile, and what a
//! closing client can't send any more, isn't written.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::Utc;
use futures_util::{StreamExt, stream};
use shared::wire::send::{Content, MAX_BATCH, SendBatch, SendItem, SendOutcome, SendResult, SendResults};
use tokio::time::{Instant, timeout, timeout_at};
use wacore::proto_helpers::MessageBuilderExt;
use wacore_binary::Jid;
use waproto::whatsapp as wa;
use whatsapp_rust::{
    Client,
    client::ClientError,
    send::{SendError, SendOptions},
};

use super::{
    acks::{Begun, Outcome, PATIENCE, Progress},
    client::Link,
};
use crate::store::{JournalItem, JournalOpened, StoreError};

/// How long a caller may wait.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// How many chats of a batch are spoken in at once.
const CHATS: usize = 16;
/// How long WhatsApp may take to say whether a number is on it.
const LOOKUP: Duration = Duration::from_secs(5);
/// The longest text, in bytes.
const MAX_TEXT: usize = 65_536;

/// A batch that can't be taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a batch holds 1 to {MAX_BATCH} messages, each with an id of its own")]
pub struct BadBatch;

/// One item that is to be sent.
struct Ours {
    at: usize,
    item: SendItem,
    to: Jid,
    outcome: Outcome,
}

/// Sends a batch and waits for WhatsApp's word, at most as long as the batch says.
///
/// # Errors
/// [`BadBatch`].
pub async fn send(link: Option<Arc<Link>>, generation: i64, batch: SendBatch) -> Result<SendResults, BadBatch> {
    if batch.items.is_empty() || batch.items.len() > MAX_BATCH || has_repeats(&batch.items) {
        return Err(BadBatch);
    }
    let deadline = Instant::now() + Duration::from_millis(batch.wait_ms).min(LONGEST_WAIT);
    let ids: Vec<_> = batch.items.iter().map(|item| item.message_id.clone()).collect();
    let outcomes = match link.as_ref().and_then(|link| link.connected_client().map(|client| (link, client))) {
        Some((link, client)) => {
            let task = Arc::clone(link);
            let items = batch.items;
            // On the session's runtime: a caller that goes away doesn't cut a send short.
            let sent = link.runtime.run_to_end(async move { send_all(&task, &client, items, deadline).await });
            // It panicked: nobody knows what it had written by then.
            sent.await.unwrap_or_else(|_| vec![SendOutcome::Pending; ids.len()])
        }
        None => vec![SendOutcome::NotConnected; ids.len()],
    };
    let results =
        ids.into_iter().zip(outcomes).map(|(message_id, outcome)| SendResult { message_id, outcome }).collect();
    Ok(SendResults { generation, results })
}

fn has_repeats(items: &[SendItem]) -> bool {
    items.iter().enumerate().any(|(at, item)| items[..at].iter().any(|other| other.wa_id == item.wa_id))
}

fn failed(reason: &str) -> SendOutcome {
    SendOutcome::Failed { reason: reason.into() }
}

fn invalid(reason: &str) -> SendOutcome {
    SendOutcome::Invalid { reason: reason.into() }
}

async fn send_all(link: &Arc<Link>, client: &Arc<Client>, items: Vec<SendItem>, deadline: Instant) -> Vec<SendOutcome> {
    let mut outcomes: Vec<Option<SendOutcome>> = vec![None; items.len()];
    let mut good = Vec::with_capacity(items.len());
    for (at, item) in items.into_iter().enumerate() {
        match recipient(&item) {
            Ok(to) => good.push((at, to.to_string(), item, to)),
            Err(outcome) => outcomes[at] = Some(outcome),
        }
    }
    let batch: Vec<(&str, &str)> = good.iter().map(|(_, chat, item, _)| (item.wa_id.as_str(), chat.as_str())).collect();
    let begun = link.acks.begin(&batch, Instant::now());
    let mut theirs = Vec::new();
    let mut ours = Vec::new();
    for ((at, _, item, to), begun) in good.into_iter().zip(begun) {
        match begun {
            Begun::Ours(outcome) => ours.push(Ours { at, item, to, outcome }),
            Begun::Theirs(outcome) => theirs.push((at, outcome)),
            Begun::Blocked => outcomes[at] = Some(SendOutcome::ChatBlocked),
        }
    }

    let ours = open(link, ours, &mut outcomes).await;
    let mut chats: HashMap<String, Vec<Ours>> = HashMap::new();
    for one in ours {
        chats.entry(one.to.to_string()).or_default().push(one);
    }
    let spoken: Vec<Chat> = stream::iter(chats.into_values())
        .map(|chat| speak(link, client, chat, deadline))
        .buffer_unordered(CHATS)
        .collect()
        .await;
    let mut unwritten = Vec::new();
    for chat in spoken {
        unwritten.extend(chat.unwritten);
        for (at, outcome) in chat.outcomes {
            outcomes[at] = Some(outcome);
        }
    }
    if !unwritten.is_empty() {
        let ids: Vec<&str> = unwritten.iter().map(|(id, _)| id.as_str()).collect();
        if let Err(error) = link.backend.journal_withdraw(&ids).await {
            // They stay open, so a later try counts as a repeat. Nothing is lost.
            tracing::warn!(session = %link.backend.session_id(), %error, "unwritten messages were not withdrawn");
        }
        for (id, outcome) in unwritten {
            link.acks.finish(&id, outcome);
        }
    }
    for (at, outcome) in theirs {
        outcomes[at] = Some(heard(outcome, deadline).await);
    }
    outcomes.into_iter().map(|outcome| outcome.unwrap_or(SendOutcome::Pending)).collect()
}

/// Checks one item.
fn recipient(item: &SendItem) -> Result<Jid, SendOutcome> {
    let to = item.to.parse::<Jid>().map_err(|_| invalid("recipient"))?;
    if !(to.is_pn() || to.is_lid()) || to.user.is_empty() || item.wa_id.is_empty() {
        return Err(invalid("recipient"));
    }
    let Content::Text { body } = &item.content;
    if body.is_empty() || body.len() > MAX_TEXT {
        return Err(invalid("content"));
    }
    if item.expires_at <= Utc::now() {
        return Err(SendOutcome::Expired);
    }
    Ok(to.to_non_ad())
}

/// Opens a try of each in the journal. Answers those that are to be sent.
async fn open(link: &Link, ours: Vec<Ours>, outcomes: &mut [Option<SendOutcome>]) -> Vec<Ours> {
    if ours.is_empty() {
        return ours;
    }
    let chats: Vec<String> = ours.iter().map(|one| one.to.to_string()).collect();
    let entries: Vec<JournalItem<'_>> = ours
        .iter()
        .zip(&chats)
        .map(|(one, chat)| JournalItem { message_id: &one.item.message_id, wa_id: &one.item.wa_id, chat })
        .collect();
    let opened = match link.backend.journal_open(&entries, link.on_unknown()).await {
        Ok(opened) => opened,
        Err(error) => {
            tracing::warn!(session = %link.backend.session_id(), %error, "a batch was not opened in the journal");
            let outcome = failed(if matches!(error, StoreError::OutboxFull { .. }) { "outbox_full" } else { "store" });
            for one in ours {
                outcomes[one.at] = Some(outcome.clone());
                link.acks.finish(&one.item.wa_id, outcome.clone());
            }
            return Vec::new();
        }
    };
    let mut to_send = Vec::with_capacity(ours.len());
    for (one, opened) in ours.into_iter().zip(opened) {
        let settled = match opened {
            JournalOpened::Opened { .. } => None,
            JournalOpened::WasOpen { .. } => {
                metrics::counter!("data_plane_messages_resent_total").increment(1);
                None
            }
            JournalOpened::Held { .. } => Some(SendOutcome::UnknownHeld),
            JournalOpened::AlreadyAcked { at } => Some(SendOutcome::Acked { at }),
            JournalOpened::AlreadyNacked { code, .. } => Some(SendOutcome::Nacked { code }),
        };
        match settled {
            None => to_send.push(one),
            Some(outcome) => {
                link.acks.finish(&one.item.wa_id, outcome.clone());
                outcomes[one.at] = Some(outcome);
            }
        }
    }
    to_send
}

/// What became of one chat's messages.
#[derive(Default)]
struct Chat {
    outcomes: Vec<(usize, SendOutcome)>,
    /// Opened, but never handed on.
    unwritten: Vec<(String, SendOutcome)>,
}

/// Sends one chat's messages, one after the other: the next one when WhatsApp has taken the one before it.
async fn speak(link: &Arc<Link>, client: &Arc<Client>, messages: Vec<Ours>, deadline: Instant) -> Chat {
    let mut chat = Chat::default();
    let mut written = Vec::with_capacity(messages.len());
    let mut stuck = false;
    for one in messages {
        let refusal = if stuck {
            Some(SendOutcome::ChatBlocked)
        } else if one.item.expires_at <= Utc::now() {
            Some(SendOutcome::Expired)
        } else {
            match look_up(client, &one.to, deadline).await {
                Lookup::Somebody => None,
                Lookup::Nobody => Some(invalid("not_on_whatsapp")),
                Lookup::Late => Some(SendOutcome::ChatBlocked),
            }
        };
        let heard_before = one.outcome.borrow().clone();
        let refusal = match (refusal, heard_before) {
            (None, Progress::OnItsWay) if !link.takes_sends() => Some(SendOutcome::NotConnected),
            (refusal, Progress::OnItsWay) => refusal,
            // The word on an earlier try came late.
            (_, Progress::Taken(_)) => {
                written.push((one.at, one.outcome));
                continue;
            }
            (_, Progress::Over(outcome @ (SendOutcome::Acked { .. } | SendOutcome::Nacked { .. }))) => {
                stuck |= !is_through(&outcome);
                chat.outcomes.push((one.at, outcome));
                continue;
            }
            // The client is gone.
            (_, Progress::Over(_)) => Some(SendOutcome::NotConnected),
        };
        if let Some(outcome) = refusal {
            // What waits behind a message that will be tried again would overtake it.
            stuck |= matches!(outcome, SendOutcome::NotConnected | SendOutcome::ChatBlocked);
            chat.unwritten.push((one.item.wa_id, outcome.clone()));
            chat.outcomes.push((one.at, outcome));
            continue;
        }
        // A task of its own: if its caller's time is up it goes on, and the acknowledgement finds it.
        let (task_link, task_client) = (Arc::clone(link), Arc::clone(client));
        let (item, to, mut outcome) = (one.item, one.to, one.outcome);
        let word = outcome.clone();
        link.runtime.run(async move { write(&task_link, &task_client, item, to, &word).await });
        stuck = !may_go_on(&mut outcome, deadline).await;
        written.push((one.at, outcome));
    }
    for (at, outcome) in written {
        chat.outcomes.push((at, heard(outcome, deadline).await));
    }
    chat
}

/// Waits until WhatsApp has a message, or that is given up. Answers whether the next message of the chat may go.
async fn may_go_on(outcome: &mut Outcome, deadline: Instant) -> bool {
    match timeout_at(deadline, outcome.wait_for(|progress| *progress != Progress::OnItsWay)).await {
        Ok(Ok(progress)) => match &*progress {
            Progress::OnItsWay => false,
            Progress::Taken(_) => true,
            Progress::Over(outcome) => is_through(outcome),
        },
        Ok(Err(_)) | Err(_) => false,
    }
}

/// Whether the next message of the chat may go.
fn is_through(outcome: &SendOutcome) -> bool {
    match outcome {
        SendOutcome::Acked { .. } | SendOutcome::Expired | SendOutcome::Invalid { .. } => true,
        // Too many, or WhatsApp's own trouble: what follows at once would fare no better.
        SendOutcome::Nacked { code } => *code != 429 && *code < 500,
        SendOutcome::Pending
        | SendOutcome::UnknownHeld
        | SendOutcome::NotConnected
        | SendOutcome::ChatBlocked
        | SendOutcome::Failed { .. } => false,
    }
}

async fn heard(mut outcome: Outcome, deadline: Instant) -> SendOutcome {
    match timeout_at(deadline, outcome.wait_for(|progress| *progress != Progress::OnItsWay)).await {
        Ok(Ok(progress)) => match &*progress {
            Progress::Over(outcome) => outcome.clone(),
            Progress::Taken(at) => SendOutcome::Acked { at: *at },
            Progress::OnItsWay => SendOutcome::Pending,
        },
        Ok(Err(_)) | Err(_) => SendOutcome::Pending,
    }
}

/// Hands one message to the library. If that fails before anything was written, the try is withdrawn.
async fn write(link: &Link, client: &Client, item: SendItem, to: Jid, word: &Outcome) {
    // The word on an earlier try may have come since it was looked for.
    if *word.borrow() != Progress::OnItsWay {
        return;
    }
    let Content::Text { body } = item.content;
    let mut entry = Unfinished { link, wa_id: &item.wa_id, written: false };
    let socket = link.acks.socket();
    let options = SendOptions::default().with_message_id(&item.wa_id);
    let sent = client.send_message_with_options(to, wa::Message::text(body), options);
    match timeout(PATIENCE, sent).await {
        Ok(Ok(_)) => {
            link.acks.sent(&item.wa_id, socket);
            entry.written = true;
        }
        Ok(Err(error)) => {
            let unwritten = match error {
                SendError::NotLoggedIn | SendError::Client(ClientError::NotConnected) => SendOutcome::NotConnected,
                SendError::InvalidRequest(_) => invalid("recipient"),
                // The library asks for devices and keys before it writes, and nothing afterwards.
                SendError::Iq(_) => failed("lookup"),
                // The frame may be with the kernel.
                _ => return,
            };
            if let Err(error) = link.backend.journal_withdraw(&[&item.wa_id]).await {
                tracing::warn!(session = %link.backend.session_id(), %error, "an unwritten message was not withdrawn");
            }
            link.acks.finish(&item.wa_id, unwritten);
        }
        Err(_) => {}
    }
}

/// A message that is being written. However that ends, its chat doesn't wait for it for ever.
struct Unfinished<'a> {
    link: &'a Link,
    wa_id: &'a str,
    /// It is WhatsApp's word that ends it now.
    written: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.written {
            self.link.acks.give_up(self.wa_id);
        }
    }
}

/// Whom WhatsApp knows under a number.
enum Lookup {
    /// Somebody, as far as we know.
    Somebody,
    Nobody,
    /// The caller's time was up before WhatsApp answered.
    Late,
}

/// Asks of numbers that we know nothing of whether they are on WhatsApp; no answer doesn't count as no.
async fn look_up(client: &Client, to: &Jid, deadline: Instant) -> Lookup {
    if !to.is_pn() || !matches!(client.get_lid_pn_entry(to).await, Ok(None)) {
        return Lookup::Somebody;
    }
    let patience = Instant::now() + LOOKUP;
    match timeout_at(patience.min(deadline), client.contacts().is_on_whatsapp(std::slice::from_ref(to))).await {
        // WhatsApp may answer under another spelling of the number, or leave out what it doesn't know.
        Ok(Ok(answers)) if answers.iter().all(|answer| !answer.is_registered && answer.contact_error.is_none()) => {
            Lookup::Nobody
        }
        Ok(_) => Lookup::Somebody,
        Err(_) if deadline < patience => Lookup::Late,
        Err(_) => Lookup::Somebody,
    }
}
