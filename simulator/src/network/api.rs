//! The Rust API of the network; the HTTP API is a thin layer over it.

use std::sync::Arc;

use dashmap::Entry;
use wacore_binary::{Jid, Server};

use super::{
    AcceptedQuery, CompanionView, ConnectionView, EndedView, Health, Network, NetworkError, NewPhone, PasskeyResult,
    PasskeyScan, PhoneSettings, PhoneView, ReactionOrder, ScanResult, TextOrder, message_id,
};
use crate::accepted::{AcceptedEntry, AcceptedSummary};
use crate::directory::Account;
use crate::phone::{
    NewMessage, ReceivedMessage, ReceivedReceipt, SealedText, mark_read, signal_address, write_messages,
};
use crate::{lock, pairing};

/// The most messages one order may write.
const MAX_TEXTS: usize = 10_000;
/// The longest text, in bytes; WhatsApp's limit is 65,536 characters.
const MAX_TEXT: usize = 65_536;

impl Network {
    /// Creates a phone. A number that exists already is returned with the new settings.
    ///
    /// # Errors
    /// [`NetworkError::InvalidPhone`].
    pub async fn create_phone(&self, new: NewPhone) -> Result<PhoneView, NetworkError> {
        let account = match &new.phone {
            Some(phone) => self.create_account(phone.clone(), new.push_name.as_deref())?.0,
            None => loop {
                let (account, created) = self.create_account(
                    format!("1555{:07}", rand::random_range(0..10_000_000)),
                    new.push_name.as_deref(),
                )?;
                if created {
                    break account;
                }
            },
        };
        {
            let mut state = account.state();
            state.auto_read = new.auto_read;
            state.auto_reply = new.auto_reply.filter(|reply| !reply.is_empty());
        }
        Ok(phone_view(&account))
    }

    fn create_account(&self, phone: String, push_name: Option<&str>) -> Result<(Arc<Account>, bool), NetworkError> {
        if !(5..=15).contains(&phone.len())
            || !phone.bytes().all(|byte| byte.is_ascii_digit())
            || phone.starts_with('0')
        {
            return Err(NetworkError::InvalidPhone);
        }
        let number = self.inner.next_alias.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        match self.inner.accounts.entry(phone) {
            Entry::Occupied(existing) => Ok((Arc::clone(existing.get()), false)),
            Entry::Vacant(vacant) => {
                // LIDs are 15 digits and unrelated to the number.
                let lid = (100_000_000_000_000 + rand::random_range(0..1_000_000_000) * 100_000 + number % 100_000)
                    .to_string();
                let phone = vacant.key().clone();
                let push_name = push_name.map_or_else(|| format!("Phone {number}"), str::to_owned);
                let account = Account::create(phone, lid.clone(), format!("a{number}"), push_name)
                    .map_err(|_| NetworkError::Internal("making keys"))?;
                let account = Arc::new(account);
                self.inner.by_lid.insert(lid, Arc::clone(&account));
                vacant.insert(Arc::clone(&account));
                Ok((account, true))
            }
        }
    }

    /// All phones, by number.
    pub async fn phones(&self) -> Vec<PhoneView> {
        let mut phones: Vec<PhoneView> = self.all_accounts().iter().map(|account| phone_view(account)).collect();
        phones.sort_by(|one, other| one.phone.cmp(&other.phone));
        phones
    }

    /// Scans a QR text with a phone and waits until the companion is linked.
    ///
    /// # Errors
    /// If the phone or the QR is unknown, expired or malformed, or the companion refuses or is silent for 20 s.
    pub async fn scan(&self, phone: &str, qr: &str) -> Result<ScanResult, NetworkError> {
        let account = self.phone(phone)?;
        let device = pairing::scan(self, &account, qr).await?;
        Ok(ScanResult {
            jid: account.jid(Server::Pn, device).to_string(),
            lid: account.jid(Server::Lid, device).to_string(),
        })
    }

    /// Types a code into a phone and waits until the companion is linked.
    ///
    /// # Errors
    /// If the phone is unknown, nobody waits for a code of it, the code is wrong or expired, or the companion refuses or is silent
    /// for 20 s.
    pub async fn enter_code(&self, phone: &str, code: &str) -> Result<ScanResult, NetworkError> {
        let account = self.phone(phone)?;
        let device = pairing::code::enter(self, &account, code).await?;
        Ok(ScanResult {
            jid: account.jid(Server::Pn, device).to_string(),
            lid: account.jid(Server::Lid, device).to_string(),
        })
    }

    /// Scans a QR text with the phone of an account that is protected by a passkey, and follows until the companion is linked.
    ///
    /// # Errors
    /// As [`scan`](Self::scan); a step may take the passkey's owner 60 s.
    pub async fn scan_with_passkey(&self, phone: &str, order: &PasskeyScan) -> Result<PasskeyResult, NetworkError> {
        let account = self.phone(phone)?;
        let proven = pairing::passkey::demand(self, &account, &order.qr, &order.request_options).await?;
        Ok(PasskeyResult {
            jid: account.jid(Server::Pn, proven.device).to_string(),
            code: proven.code,
            assertion: proven.assertion,
        })
    }

    /// Writes texts from a phone to every device of the recipient; returns their ids. They are in the mailboxes then.
    ///
    /// # Errors
    /// If a phone is unknown or the order is out of bounds.
    pub async fn write(&self, phone: &str, order: TextOrder) -> Result<Vec<String>, NetworkError> {
        let author = self.phone(phone)?;
        let to = self.phone(&order.to)?;
        let count = order.count.unwrap_or(1);
        if count == 0 || count > MAX_TEXTS {
            return Err(NetworkError::Invalid("count must be 1 to 10000"));
        }
        if order.text.len() > MAX_TEXT {
            return Err(NetworkError::Invalid("the text is too long"));
        }
        if order.id.as_ref().is_some_and(|id| count > 1 || id.is_empty() || id.len() > 128) {
            return Err(NetworkError::Invalid("an id is 1 to 128 bytes and for a single text"));
        }
        if to.has_full_mailbox() || author.has_full_mailbox() {
            return Err(NetworkError::MailboxFull);
        }
        let texts: Vec<(String, String)> = match count {
            1 => vec![(order.id.unwrap_or_else(message_id), order.text)],
            _ => (1..=count).map(|number| (message_id(), format!("{} #{number}", order.text))).collect(),
        };
        let ids = texts.iter().map(|(id, _)| id.clone()).collect();
        let server = if order.by_lid { Server::Lid } else { Server::Pn };
        let messages = texts.into_iter().map(|(id, text)| NewMessage::text(id, text)).collect();
        write_messages(self, &author, &to, server, messages).map_err(|_| NetworkError::Internal("encrypting"))?;
        Ok(ids)
    }

    /// Lets a phone react to a message, in the namespace in which it has that message, or by number if it has it not. Answers the reaction's own id, when it is in all mailboxes.
    ///
    /// # Errors
    /// [`NetworkError`] if a phone isn't known, the order isn't valid, or a mailbox is full.
    pub async fn react(&self, phone: &str, order: ReactionOrder) -> Result<String, NetworkError> {
        let author = self.phone(phone)?;
        let to = self.phone(&order.to)?;
        if order.message.is_empty() || order.message.len() > 128 || order.emoji.len() > 64 {
            return Err(NetworkError::Invalid("an id is 1 to 128 bytes, a reaction at most 64"));
        }
        if to.has_full_mailbox() || author.has_full_mailbox() {
            return Err(NetworkError::MailboxFull);
        }
        let id = message_id();
        let server = author.handset().namespace_of(&to, &order.message).unwrap_or(Server::Pn);
        let chat = to.bare_jid(server);
        let reaction = NewMessage::reaction(id.clone(), &chat, order.message, order.own, order.emoji);
        write_messages(self, &author, &to, server, vec![reaction]).map_err(|_| NetworkError::Internal("encrypting"))?;
        Ok(id)
    }

    /// What a phone has opened, oldest first, repeats included; the newest `limit` of them.
    ///
    /// # Errors
    /// [`NetworkError::UnknownPhone`].
    pub async fn messages(
        &self,
        phone: &str,
        from: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<ReceivedMessage>, NetworkError> {
        let account = self.phone(phone)?;
        let handset = account.handset();
        let newest = handset
            .received()
            .rev()
            .filter(|message| from.is_none_or(|from| message.from == from))
            .take(limit.unwrap_or(usize::MAX));
        let mut messages: Vec<ReceivedMessage> = newest.cloned().collect();
        messages.reverse();
        Ok(messages)
    }

    /// The receipts a phone has got, for its own messages and for those of its companions, oldest first.
    ///
    /// # Errors
    /// [`NetworkError::UnknownPhone`].
    pub async fn receipts(
        &self,
        phone: &str,
        id: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<ReceivedReceipt>, NetworkError> {
        let account = self.phone(phone)?;
        let handset = account.handset();
        let newest = handset
            .receipts()
            .rev()
            .filter(|receipt| id.is_none_or(|id| receipt.id == id))
            .take(limit.unwrap_or(usize::MAX));
        let mut receipts: Vec<ReceivedReceipt> = newest.cloned().collect();
        receipts.reverse();
        Ok(receipts)
    }

    /// Sends a read receipt for messages of one sender.
    ///
    /// # Errors
    /// If a phone is unknown or there are no ids.
    pub async fn read(&self, phone: &str, from: &str, ids: &[String]) -> Result<(), NetworkError> {
        let account = self.phone(phone)?;
        let sender = self.phone(from)?;
        if ids.is_empty() || ids.len() > 256 {
            return Err(NetworkError::Invalid("1 to 256 ids"));
        }
        mark_read(self, &account, &sender, ids);
        Ok(())
    }

    /// Changes how a phone behaves.
    ///
    /// # Errors
    /// [`NetworkError::UnknownPhone`].
    pub async fn configure(&self, phone: &str, settings: PhoneSettings) -> Result<PhoneView, NetworkError> {
        let account = self.phone(phone)?;
        {
            let mut state = account.state();
            if let Some(auto_read) = settings.auto_read {
                state.auto_read = auto_read;
            }
            if let Some(ignore) = settings.ignore_retries {
                state.ignores_retries = ignore;
            }
            if let Some(offline) = settings.offline {
                state.offline = offline;
            }
            if let Some(reply) = settings.auto_reply {
                state.auto_reply = Some(reply).filter(|reply| !reply.is_empty());
            }
        }
        self.work_off_inbox(&account);
        Ok(phone_view(&account))
    }

    /// Unlinks a companion: it is told `401 device_removed` and can't log in again.
    ///
    /// # Errors
    /// If the phone or the device is unknown.
    pub async fn unlink(&self, phone: &str, device: u16) -> Result<(), NetworkError> {
        let account = self.phone(phone)?;
        if let Some(link) = self.forget_device(&account, device)? {
            self.end_removed(&link);
        }
        Ok(())
    }

    /// Accepted message stanzas, oldest first; the newest `limit` of them.
    pub async fn accepted(&self, query: &AcceptedQuery) -> Vec<AcceptedEntry> {
        let mut entries = Vec::new();
        for account in self.all_accounts() {
            let log = account.accepted();
            entries.extend(log.entries().map(|message| message.view()).filter(|entry| {
                query.sender.as_ref().is_none_or(|sender| *sender == entry.device)
                    && query.id.as_ref().is_none_or(|id| *id == entry.id)
            }));
        }
        entries.sort_by_key(|entry| entry.at);
        let skip = entries.len().saturating_sub(query.limit.unwrap_or(1_000));
        entries.drain(..skip);
        entries
    }

    /// How many were accepted, and how many of them were repeats. Peer messages are not counted.
    pub async fn accepted_summary(&self) -> AcceptedSummary {
        let mut summary = AcceptedSummary::default();
        for account in self.all_accounts() {
            account.accepted().add_to(&mut summary);
        }
        summary
    }

    /// Message stanzas that a companion has not acknowledged yet.
    ///
    /// # Errors
    /// [`NetworkError::UnknownDevice`].
    pub async fn unacknowledged(&self, jid: &str) -> Result<usize, NetworkError> {
        let (account, device) = self.device(jid)?;
        let state = account.state();
        state.companions.get(&device).map(|companion| companion.mailbox.counts()[0]).ok_or(NetworkError::UnknownDevice)
    }

    /// The connections that stand.
    pub async fn connections(&self) -> Vec<ConnectionView> {
        let mut connections: Vec<ConnectionView> = self
            .inner
            .connections
            .iter()
            .map(|record| {
                let shown = record.shown();
                ConnectionView {
                    id: record.id,
                    jid: shown.jid,
                    state: shown.state.to_owned(),
                    pattern: shown.pattern.map(str::to_owned),
                    since: record.since,
                }
            })
            .collect();
        connections.sort_by_key(|connection| connection.since);
        connections
    }

    /// The connections that have ended, oldest first; the newest `limit` of them.
    pub async fn ended(&self, limit: Option<usize>) -> Vec<EndedView> {
        let ended = lock(&self.inner.ended);
        let skip = ended.len().saturating_sub(limit.unwrap_or(usize::MAX));
        ended.iter().skip(skip).cloned().collect()
    }

    /// The public key that the certificate chain begins with.
    #[must_use]
    pub fn root_public_key(&self) -> [u8; 32] {
        *self.authority().root_public()
    }

    /// Counts for a glance.
    pub async fn health(&self) -> Health {
        Health {
            status: "ok",
            phones: self.inner.accounts.len(),
            connections: self.inner.connections.len(),
            unimplemented: self.inner.unimplemented.iter().map(|entry| (entry.key().clone(), *entry.value())).collect(),
        }
    }

    /// Whether a phone could open a part of an accepted message, tried on a copy of its sessions so that nothing is spent.
    /// For proofs that a ciphertext opens only where it was sent.
    ///
    /// # Errors
    /// If the phone or the sending device is unknown.
    pub async fn could_open(
        &self,
        phone: &str,
        sender: &str,
        kind: &str,
        ciphertext: &[u8],
    ) -> Result<bool, NetworkError> {
        let account = self.phone(phone)?;
        let (author, device) = self.device(sender)?;
        let sealed = SealedText { kind: kind.to_owned(), ciphertext: ciphertext.to_vec() };
        Ok(account.handset().could_open(&account.primary, &signal_address(&author, device), &sealed))
    }

    fn phone(&self, phone: &str) -> Result<Arc<Account>, NetworkError> {
        self.account(phone).ok_or(NetworkError::UnknownPhone)
    }

    pub(super) fn device(&self, jid: &str) -> Result<(Arc<Account>, u16), NetworkError> {
        let jid: Jid = jid.parse().map_err(|_| NetworkError::UnknownDevice)?;
        self.resolve(&jid).map(|account| (account, jid.device)).ok_or(NetworkError::UnknownDevice)
    }

    fn all_accounts(&self) -> Vec<Arc<Account>> {
        self.inner.accounts.iter().map(|account| Arc::clone(&account)).collect()
    }
}

fn phone_view(account: &Account) -> PhoneView {
    let state = account.state();
    PhoneView {
        phone: account.phone.clone(),
        lid: account.bare_jid(Server::Lid).to_string(),
        jid: account.bare_jid(Server::Pn).to_string(),
        companions: state
            .companions
            .values()
            .map(|companion| CompanionView {
                jid: account.jid(Server::Pn, companion.device).to_string(),
                device: companion.device,
                connected: companion.link.is_some(),
                queued: companion.mailbox.counts().iter().sum(),
            })
            .collect(),
    }
}
