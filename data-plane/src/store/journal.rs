//! The send journal: what was tried, and what WhatsApp said of it.
//!
//! A message's row is `open` before its frame is handed to the transport, and `acked` or `nacked` in the same commit as
//! the outbox row that tells the control plane. So a command whose message was acknowledged sends nothing, whoever
//! repeats it and whichever process died in between. A row that is still open when its message comes again is a try
//! whose outcome nobody knows: it is sent again under the same id, or held, as the session's settings say.
//!
//! An acknowledgement moves a refused message forward too; a refusal never moves an acknowledged one back.
//!
//! Only ids, moments and a keyed hash of the chat are stored, so nothing here is sealed.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::{QueryResult, Value};
use shared::{
    ids::MessageId,
    wire::{outbox::OutboxEvent, send::MAX_BATCH, session::OnUnknown},
};

use super::{
    FencedBackend, Result, Store, StoreError,
    database::{column, id_column, moment, placeholders},
    outbox::Room,
    transaction::{FenceLock, Locked, bytes},
};

/// The most rows that one pruning deletes.
const MAX_PRUNED: i64 = 1_000;

/// As stored. Never change one.
const OPEN: i16 = 0;
const ACKED: i16 = 1;
const NACKED: i16 = 2;

/// A message about to be sent.
#[derive(Clone, Copy)]
pub struct JournalItem<'a> {
    /// Our id.
    pub message_id: &'a MessageId,
    /// The id on WhatsApp.
    pub wa_id: &'a str,
    /// The chat's JID: only a keyed hash of it is stored.
    pub chat: &'a str,
}

/// What the journal says of a message that is about to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalOpened {
    /// Never tried: send it.
    Opened {
        /// 1.
        tries: u32,
    },
    /// An earlier try's outcome isn't known, and the policy is to resend: send it.
    WasOpen {
        /// This try's number, from 2.
        tries: u32,
    },
    /// Don't send it: an earlier try's outcome isn't known and the policy is to hold, or the same id stands twice in the
    /// batch. Nothing was written.
    Held {
        /// How many tries there were.
        tries: u32,
    },
    /// WhatsApp took it: don't send it.
    AlreadyAcked {
        /// When.
        at: DateTime<Utc>,
    },
    /// WhatsApp refused it: don't send it.
    AlreadyNacked {
        /// WhatsApp's code.
        code: u16,
        /// When.
        at: DateTime<Utc>,
    },
}

/// WhatsApp's word on a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalWord {
    /// The message's id on WhatsApp.
    pub wa_id: String,
    /// WhatsApp's code, if it refused.
    pub error: Option<u16>,
    /// When.
    pub at: DateTime<Utc>,
}

/// What became of an acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalAck {
    /// Recorded, with an outbox row.
    Recorded {
        /// Our id.
        message_id: MessageId,
        /// Which try it answers.
        tries: u32,
    },
    /// One was recorded before, and stands; nothing was written.
    Already {
        /// WhatsApp's code, if it had refused.
        error: Option<u16>,
        /// When.
        at: DateTime<Utc>,
    },
    /// The journal has no such id: it isn't a message of ours.
    Unknown,
}

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalState {
    /// Perhaps written to the wire; no word yet.
    Open,
    /// WhatsApp took it.
    Acked {
        /// When.
        at: DateTime<Utc>,
    },
    /// WhatsApp refused it.
    Nacked {
        /// Its code.
        code: u16,
        /// When.
        at: DateTime<Utc>,
    },
}

/// A row of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// Our id.
    pub message_id: MessageId,
    /// Where it stands.
    pub state: JournalState,
    /// How many tries.
    pub tries: u32,
}

impl FencedBackend {
    /// Opens a try of each message, in one fenced commit, before any frame is written. Answers in order. At most
    /// [`MAX_BATCH`] items.
    ///
    /// # Errors
    /// [`StoreError::OutboxFull`] if WhatsApp's words on them might not find room there, and [`StoreError::BatchTooLarge`];
    /// any other error poisons.
    pub async fn journal_open(&self, items: &[JournalItem<'_>], on_unknown: OnUnknown) -> Result<Vec<JournalOpened>> {
        if items.len() > MAX_BATCH {
            return Err(StoreError::BatchTooLarge { most: MAX_BATCH });
        }
        if items.is_empty() {
            return Ok(Vec::new());
        }
        self.write("open the journal", async {
            let tx = self.begin(FenceLock::Alone).await?;
            self.check_room(&tx, 1, Room::Sends).await?;
            let opened = self.open_in(&tx, items, on_unknown).await?;
            self.commit(tx).await?;
            Ok(opened)
        })
        .await
    }

    async fn open_in(
        &self,
        tx: &Locked,
        items: &[JournalItem<'_>],
        on_unknown: OnUnknown,
    ) -> Result<Vec<JournalOpened>> {
        let mut known = find(tx, items.iter().map(|item| item.wa_id)).await?;
        let mut fresh: Vec<&JournalItem<'_>> = Vec::new();
        let mut again: Vec<&str> = Vec::new();
        let mut in_batch: HashMap<&str, u32> = HashMap::new();
        let mut opened = Vec::with_capacity(items.len());
        for item in items {
            opened.push(if let Some(tries) = in_batch.get(item.wa_id) {
                JournalOpened::Held { tries: *tries }
            } else if let Some(entry) = known.remove(item.wa_id) {
                match (entry.state, on_unknown) {
                    (JournalState::Acked { at }, _) => JournalOpened::AlreadyAcked { at },
                    (JournalState::Nacked { code, at }, _) => JournalOpened::AlreadyNacked { code, at },
                    (JournalState::Open, OnUnknown::Hold) => JournalOpened::Held { tries: entry.tries },
                    (JournalState::Open, OnUnknown::Resend) => {
                        let tries = entry.tries.saturating_add(1);
                        again.push(item.wa_id);
                        in_batch.insert(item.wa_id, tries);
                        JournalOpened::WasOpen { tries }
                    }
                }
            } else {
                fresh.push(item);
                in_batch.insert(item.wa_id, 1);
                JournalOpened::Opened { tries: 1 }
            });
        }
        self.insert_tries(tx, &fresh).await?;
        if !again.is_empty() {
            let sql = format!(
                "UPDATE journal SET tries = tries + 1, opened_at = {} WHERE session_id = $1 AND wa_id IN ({})",
                tx.engine().now_ms(),
                placeholders(2, again.len())
            );
            let values = [tx.session()].into_iter().chain(again.iter().map(|wa_id| (*wa_id).into()));
            tx.execute("reopen tries", sql, values).await?;
        }
        Ok(opened)
    }

    async fn insert_tries(&self, tx: &Locked, fresh: &[&JournalItem<'_>]) -> Result<()> {
        if fresh.is_empty() {
            return Ok(());
        }
        let mut values: Vec<Value> = vec![tx.session()];
        let mut tuples = Vec::with_capacity(fresh.len());
        for item in fresh {
            let own = placeholders(values.len() + 1, 3);
            tuples.push(format!("($1, {own}, {OPEN}, 1, {})", tx.engine().now_ms()));
            values.extend([item.wa_id.into(), item.message_id.as_str().into(), bytes(&self.keys().chat(item.chat))]);
        }
        let sql = format!(
            "INSERT INTO journal (session_id, wa_id, message_id, chat_hash, state, tries, opened_at) VALUES {}",
            tuples.join(", ")
        );
        tx.execute("open tries", sql, values).await?;
        Ok(())
    }

    /// Takes back the last try of messages whose frame was never handed to the transport: only the caller can know
    /// that. A message without an earlier try is forgotten; one with an earlier try stays open.
    ///
    /// # Errors
    /// Any error poisons, except [`StoreError::BatchTooLarge`].
    pub async fn journal_withdraw(&self, wa_ids: &[&str]) -> Result<()> {
        if wa_ids.len() > MAX_BATCH {
            return Err(StoreError::BatchTooLarge { most: MAX_BATCH });
        }
        if wa_ids.is_empty() {
            return Ok(());
        }
        self.write("withdraw tries", async {
            let tx = self.begin(FenceLock::Alone).await?;
            let open = format!("session_id = $1 AND state = {OPEN} AND wa_id IN ({})", placeholders(2, wa_ids.len()));
            let values = || [tx.session()].into_iter().chain(wa_ids.iter().map(|wa_id| (*wa_id).into()));
            tx.execute("withdraw tries", format!("UPDATE journal SET tries = tries - 1 WHERE {open}"), values())
                .await?;
            tx.execute("withdraw tries", format!("DELETE FROM journal WHERE tries < 1 AND {open}"), values()).await?;
            self.commit(tx).await
        })
        .await
    }

    /// Records WhatsApp's words, in order, each with its outbox row, and after them the rows of other events, in one fenced
    /// commit. Answers what became of each word. Idempotent: the same word a second time writes no second row.
    ///
    /// # Errors
    /// [`StoreError::OutboxFull`], with nothing recorded; any other error poisons.
    pub async fn journal_ack(&self, words: &[JournalWord], others: &[OutboxEvent]) -> Result<Vec<JournalAck>> {
        if words.is_empty() && others.is_empty() {
            return Ok(Vec::new());
        }
        self.write("record acknowledgements", async {
            let tx = self.begin(FenceLock::Alone).await?;
            let mut known = find(&tx, words.iter().map(|word| word.wa_id.as_str())).await?;
            let mut events = Vec::with_capacity(words.len() + others.len());
            let mut acks = Vec::with_capacity(words.len());
            for word in words {
                acks.push(self.ack_in(&tx, word, known.get_mut(&word.wa_id), &mut events).await?);
            }
            events.extend_from_slice(others);
            if !events.is_empty() {
                let room = if words.is_empty() { Room::Shared } else { Room::Words };
                self.append(&tx, &events, room).await?;
                self.commit(tx).await?;
            }
            Ok(acks)
        })
        .await
    }

    async fn ack_in(
        &self,
        tx: &Locked,
        JournalWord { wa_id, error, at }: &JournalWord,
        entry: Option<&mut JournalEntry>,
        events: &mut Vec<OutboxEvent>,
    ) -> Result<JournalAck> {
        let Some(entry) = entry else { return Ok(JournalAck::Unknown) };
        match (entry.state, error) {
            (JournalState::Open, _) | (JournalState::Nacked { .. }, None) => {}
            (JournalState::Acked { at }, _) => return Ok(JournalAck::Already { error: None, at }),
            (JournalState::Nacked { code, at }, _) => return Ok(JournalAck::Already { error: Some(code), at }),
        }
        entry.state = match *error {
            None => JournalState::Acked { at: *at },
            Some(code) => JournalState::Nacked { code, at: *at },
        };
        tx.execute(
            "record an acknowledgement",
            "UPDATE journal SET state = $3, error = $4, acked_at = $5 WHERE session_id = $1 AND wa_id = $2",
            [
                tx.session(),
                wa_id.as_str().into(),
                if error.is_some() { NACKED } else { ACKED }.into(),
                error.map(i32::from).into(),
                at.timestamp_millis().into(),
            ],
        )
        .await?;
        events.push(OutboxEvent::ServerAck {
            message_id: entry.message_id.clone(),
            wa_id: wa_id.clone(),
            error: *error,
            at: *at,
            tries: entry.tries,
        });
        Ok(JournalAck::Recorded { message_id: entry.message_id.clone(), tries: entry.tries })
    }

    /// Looks a message up by its id on WhatsApp.
    ///
    /// # Errors
    /// As the database.
    pub async fn journal_find(&self, wa_id: &str) -> Result<Option<JournalEntry>> {
        self.admit()?;
        let sql = format!("SELECT {COLUMNS} FROM journal WHERE session_id = $1 AND wa_id = $2");
        let values = [self.session_id().as_str().into(), wa_id.into()];
        let row = self.database().one("read the journal", sql, values).await?;
        Ok(row.as_ref().map(read).transpose()?.map(|(_, entry)| entry))
    }
}

impl Store {
    /// Deletes rows that were acknowledged, or refused, or last tried without a word, before `before`: seven days ago, far
    /// beyond any retry. 1,000 of both at most; answers how many went.
    ///
    /// # Errors
    /// As the database.
    pub async fn journal_prune(&self, before: DateTime<Utc>) -> Result<u64> {
        let mut gone = 0;
        for old in ["acked_at < $1", "acked_at IS NULL AND opened_at < $1"] {
            let sql = format!(
                "DELETE FROM journal WHERE (session_id, wa_id) IN ( \
                 SELECT session_id, wa_id FROM journal WHERE {old} LIMIT $2)"
            );
            let values = [before.timestamp_millis().into(), MAX_PRUNED.into()];
            gone += self.database().execute("prune the journal", sql, values).await?;
        }
        Ok(gone)
    }
}

const COLUMNS: &str = "wa_id, message_id, state, error, tries, acked_at";

async fn find<'a>(tx: &Locked, wa_ids: impl IntoIterator<Item = &'a str>) -> Result<HashMap<String, JournalEntry>> {
    let values: Vec<Value> = [tx.session()].into_iter().chain(wa_ids.into_iter().map(Value::from)).collect();
    if values.len() == 1 {
        return Ok(HashMap::new());
    }
    let list = placeholders(2, values.len() - 1);
    let sql = format!("SELECT {COLUMNS} FROM journal WHERE session_id = $1 AND wa_id IN ({list})");
    tx.rows("read the journal", sql, values).await?.iter().map(read).collect()
}

fn read(row: &QueryResult) -> Result<(String, JournalEntry)> {
    let damaged = || StoreError::Encoding("journal row");
    let at = || moment(column::<Option<i64>>(row, "acked_at")?.ok_or_else(damaged)?);
    let state = match column::<i16>(row, "state")? {
        OPEN => JournalState::Open,
        ACKED => JournalState::Acked { at: at()? },
        NACKED => {
            let code = column::<Option<i32>>(row, "error")?.and_then(|code| u16::try_from(code).ok());
            JournalState::Nacked { code: code.ok_or_else(damaged)?, at: at()? }
        }
        _ => return Err(damaged()),
    };
    let tries = u32::try_from(column::<i64>(row, "tries")?).map_err(|_| damaged())?;
    Ok((column(row, "wa_id")?, JournalEntry { message_id: id_column(row, "message_id")?, state, tries }))
}
