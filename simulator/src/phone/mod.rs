//! Simulated phones: device 0 of every account, really encrypting and really decrypting.
//!
//! A phone has a Signal identity, signed and one-time pre-keys, and a session with every device it writes to. What arrives
//! for it waits in the account's inbox; one task at a time works that off, opens each message, answers with a delivery
//! receipt and, if told to, with a read receipt and a reply. It remembers everything it opened, repeats included, and what
//! it wrote, so that a device that could not open a message gets it encrypted anew, by its author or by its own phone.
//!
//! Invariants: one handset lock at a time; nothing a phone knows reaches a log.

mod app_state;
mod inbox;
mod resend;
mod signal_store;
mod writing;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde::Serialize;
use wacore_binary::Server;
use wacore_libsignal::protocol::{
    CiphertextMessage, CurveError, PreKeyBundle, PreKeySignalMessage, ProtocolAddress, SignalMessage,
    SignalProtocolError, UsePQRatchet, message_decrypt, message_encrypt, process_prekey_bundle,
};
use waproto::whatsapp::Message;

use crate::directory::Account;
use app_state::AppStateKey;
use signal_store::{Identities, PreKeys, Sessions, now};

pub(crate) use app_state::{AppStateCollection, answer_app_state, share_app_state_key};
pub(crate) use inbox::{InboxItem, IncomingMessage, IncomingReceipt, SealedText, mark_read, process_inbox};
pub(crate) use signal_store::PrimaryKeys;
pub(crate) use writing::{NewMessage, write_messages};

/// How many opened messages a phone keeps, and how many receipts.
const REMEMBERED_RECEIVED: usize = 100_000;
/// How many written messages a phone can encrypt anew.
const REMEMBERED_SENT: usize = 20_000;

/// What can go wrong on a phone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PhoneError {
    /// Signal refused: no session, wrong key, altered, already opened.
    #[error("the Signal protocol refused the message")]
    Signal(#[from] SignalProtocolError),
    /// A key operation failed.
    #[error("a key operation failed")]
    Curve(#[from] CurveError),
    /// The opened bytes are not a message.
    #[error("the opened bytes are not a message")]
    NotAMessage,
    /// An in-memory store was not ready at once.
    #[error("an in-memory store had to wait")]
    NotReady,
}

/// A message a phone opened.
#[derive(Debug, Clone, Serialize)]
pub struct ReceivedMessage {
    /// The message's id.
    pub id: String,
    /// The sender's phone number.
    pub from: String,
    /// The device of the sender that wrote it.
    pub from_device: u16,
    /// The other side of the chat; differs from `from` when a companion of this phone wrote it.
    pub chat: String,
    /// Its text; empty for other kinds.
    pub text: String,
    /// When it was opened, unix milliseconds.
    pub at: i64,
    /// The phone has sent a read receipt for it.
    pub read: bool,
    #[serde(skip)]
    pub(crate) server: Server,
    /// All of it, encoded: for a companion that asks for the phone's copy.
    #[serde(skip)]
    content: Vec<u8>,
}

/// A receipt a phone got for a message.
#[derive(Debug, Clone, Serialize)]
pub struct ReceivedReceipt {
    /// The message's id.
    pub id: String,
    /// Who received it: phone number.
    pub from: String,
    /// The device that sent the receipt.
    pub from_device: u16,
    /// `delivered`, `inactive`, `read`, `played` or `retry`.
    pub kind: String,
    /// When it came, unix milliseconds.
    pub at: i64,
}

/// A message the phone wrote, kept for retries.
struct SentMessage {
    to: Arc<Account>,
    server: Server,
    message: Message,
    peer: bool,
    retries: HashMap<(String, u16), u8>,
}

/// The phone's private state.
pub(crate) struct Handset {
    sessions: Sessions,
    identities: HashMap<String, wacore_libsignal::protocol::IdentityKey>,
    received: VecDeque<ReceivedMessage>,
    receipts: VecDeque<ReceivedReceipt>,
    sent: HashMap<String, SentMessage>,
    sent_order: VecDeque<String>,
    app_state_key: AppStateKey,
}

impl Handset {
    pub(crate) fn new() -> Self {
        Self {
            sessions: Sessions::default(),
            identities: HashMap::new(),
            received: VecDeque::new(),
            receipts: VecDeque::new(),
            sent: HashMap::new(),
            sent_order: VecDeque::new(),
            app_state_key: AppStateKey::generate(),
        }
    }

    /// The app state that the phone puts on the server when the account is made.
    pub(crate) fn initial_app_state(&self, push_name: &str) -> HashMap<String, AppStateCollection> {
        app_state::initial(&self.app_state_key, push_name)
    }

    pub(crate) fn received(&self) -> impl DoubleEndedIterator<Item = &ReceivedMessage> {
        self.received.iter()
    }

    pub(crate) fn receipts(&self) -> impl DoubleEndedIterator<Item = &ReceivedReceipt> {
        self.receipts.iter()
    }

    /// The namespace of a message of the chat with an account, if the phone has opened or written it.
    pub(crate) fn namespace_of(&self, chat: &Account, id: &str) -> Option<Server> {
        let received = self.received.iter().rev().find(|message| message.id == id && message.chat == chat.phone);
        let sent = || self.sent.get(id).filter(|sent| !sent.peer && sent.to.phone == chat.phone);
        received.map(|message| message.server).or_else(|| sent().map(|sent| sent.server))
    }

    fn remember_received(&mut self, message: ReceivedMessage) {
        self.received.push_back(message);
        if self.received.len() > REMEMBERED_RECEIVED {
            self.received.pop_front();
        }
    }

    fn remember_receipt(&mut self, receipt: ReceivedReceipt) {
        self.receipts.push_back(receipt);
        if self.receipts.len() > REMEMBERED_RECEIVED {
            self.receipts.pop_front();
        }
    }

    fn remember_sent(&mut self, id: String, message: SentMessage) {
        if self.sent.insert(id.clone(), message).is_none() {
            self.sent_order.push_back(id);
        }
        if self.sent_order.len() > REMEMBERED_SENT
            && let Some(oldest) = self.sent_order.pop_front()
        {
            self.sent.remove(&oldest);
        }
    }

    /// Encrypts for one device; `bundle` is asked for keys when there is no session yet. `Ok(None)`: the device is gone.
    fn seal(
        &mut self,
        keys: &PrimaryKeys,
        address: &ProtocolAddress,
        bundle: impl FnOnce() -> Result<Option<PreKeyBundle>, SignalProtocolError>,
        plaintext: &[u8],
    ) -> Result<Option<SealedText>, PhoneError> {
        let mut identities = Identities { keys, known: &mut self.identities };
        if !self.sessions.contains(address) {
            let Some(bundle) = bundle()? else {
                return Ok(None);
            };
            let mut rng = rand::rng();
            now(process_prekey_bundle(
                address,
                &mut self.sessions,
                &mut identities,
                &bundle,
                &mut rng,
                UsePQRatchet::No,
            ))??;
        }
        let sealed = now(message_encrypt(plaintext, address, &mut self.sessions, &mut identities))??;
        let kind = match &sealed {
            CiphertextMessage::PreKeySignalMessage(_) => "pkmsg",
            _ => "msg",
        };
        Ok(Some(SealedText { kind: kind.to_owned(), ciphertext: sealed.serialize().to_vec() }))
    }

    /// Decrypts what one device sent and spends the one-time key it used.
    fn open(
        &mut self,
        keys: &PrimaryKeys,
        address: &ProtocolAddress,
        sealed: &SealedText,
    ) -> Result<Vec<u8>, PhoneError> {
        let opened = decrypt(&mut self.sessions, &mut self.identities, keys, address, sealed)?;
        if let Some(id) = opened.consumed_prekey_id {
            keys.spend(id.into());
        }
        Ok(opened.plaintext)
    }

    /// Tries to decrypt on a copy, so that nothing is spent or advanced.
    pub(crate) fn could_open(&self, keys: &PrimaryKeys, address: &ProtocolAddress, sealed: &SealedText) -> bool {
        decrypt(&mut self.sessions.clone(), &mut self.identities.clone(), keys, address, sealed).is_ok()
    }
}

fn decrypt(
    sessions: &mut Sessions,
    known: &mut HashMap<String, wacore_libsignal::protocol::IdentityKey>,
    keys: &PrimaryKeys,
    address: &ProtocolAddress,
    sealed: &SealedText,
) -> Result<wacore_libsignal::protocol::DecryptionResult, PhoneError> {
    let message = match sealed.kind.as_str() {
        "pkmsg" => CiphertextMessage::PreKeySignalMessage(PreKeySignalMessage::try_from(sealed.ciphertext.as_slice())?),
        _ => CiphertextMessage::SignalMessage(SignalMessage::try_from(sealed.ciphertext.as_slice())?),
    };
    let mut identities = Identities { keys, known };
    let mut pre_keys = PreKeys(keys);
    let signed = PreKeys(keys);
    let mut rng = rand::rng();
    Ok(now(message_decrypt(
        &message,
        address,
        sessions,
        &mut identities,
        &mut pre_keys,
        &signed,
        &mut rng,
        UsePQRatchet::No,
    ))??)
}

/// How a device is called in a phone's Signal store: by alias, because libraries log addresses.
pub(crate) fn signal_address(account: &Account, device: u16) -> ProtocolAddress {
    ProtocolAddress::new(&account.alias, u32::from(device).into())
}
