//! The directory: which accounts exist, which devices each has, and the public keys it hands out for them.
//!
//! An account is a phone number and a LID. Device 0 is the phone, simulated in this process ([`crate::phone`]); every other
//! device is a companion, a real client that paired by QR. Device ids and key indexes are never used twice.
//!
//! Locks, in the order in which they may be taken: an account's handset, then at most one account's state (or keys, or
//! log) at a time. There is no lock over all accounts; the maps in [`crate::network`] are sharded.

mod announcement;
mod companion;
mod key_bundle;
mod prekeys;
mod usync;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, Weak};

use wacore_binary::{Jid, Server};
use wacore_libsignal::protocol::CurveError;
use waproto::buffa::Message as _;
use waproto::whatsapp::{ADVKeyIndexList, ADVSignedKeyIndexList};

use crate::accepted::AcceptedLog;
use crate::lock;
use crate::phone::{AppStateCollection, Handset, InboxItem, PrimaryKeys};
use crate::routing::MAILBOX_LIMIT;

pub(crate) use announcement::{DeviceChange, announce};
pub(crate) use companion::{Companion, Link};
pub(crate) use key_bundle::{KeyBundle, SignedKey};
pub(crate) use prekeys::{answer_encrypt, bundle_children};
pub(crate) use usync::answer_usync;

/// The account signature over a key index list is made over these bytes and the list's details
/// (`WAWebAdvSignatureConstants`, quoted in wacore 0.7.0 `adv.rs` for its siblings).
const KEY_INDEX_LIST_PREFIX: [u8; 2] = [6, 2];

/// One WhatsApp account: a phone with its companions.
pub(crate) struct Account {
    /// The phone number, digits only.
    pub(crate) phone: String,
    /// The user part of the account's LID.
    pub(crate) lid: String,
    /// What the account is called where a number must not be seen: in Signal addresses, which libraries log.
    pub(crate) alias: String,
    /// Identifies the account in device identities and key index lists.
    pub(crate) raw_id: u32,
    /// The phone's identity and pre-keys.
    pub(crate) primary: PrimaryKeys,
    state: Mutex<AccountState>,
    handset: Mutex<Handset>,
    accepted: Mutex<AcceptedLog>,
}

/// What changes about an account.
pub(crate) struct AccountState {
    /// The name shown to others.
    pub(crate) push_name: String,
    /// The phone marks what it receives as read at once.
    pub(crate) auto_read: bool,
    /// The phone answers every text with this one.
    pub(crate) auto_reply: Option<String>,
    /// The phone doesn't encrypt anew what another device could not open.
    pub(crate) ignores_retries: bool,
    /// The phone is switched off: what comes waits in its inbox.
    pub(crate) offline: bool,
    /// The linked devices by device id.
    pub(crate) companions: BTreeMap<u16, Companion>,
    /// The accounts that have asked for this one's devices, by alias: they hear of changes.
    pub(crate) watchers: BTreeMap<String, Weak<Account>>,
    next_device: u16,
    key_index_list: Vec<u8>,
    key_index_timestamp: u64,
    /// What has arrived for the phone and isn't processed yet.
    pub(crate) inbox: VecDeque<InboxItem>,
    /// A task is working on the inbox.
    pub(crate) inbox_busy: bool,
    /// The app state collections that the server keeps for the account.
    pub(crate) app_state: HashMap<String, AppStateCollection>,
}

impl Account {
    /// Creates the account with its phone: identity, signed pre-key and app state.
    pub(crate) fn create(phone: String, lid: String, alias: String, push_name: String) -> Result<Self, CurveError> {
        let primary = PrimaryKeys::generate()?;
        let handset = Handset::new();
        let app_state = handset.initial_app_state(&push_name);
        let account = Self {
            phone,
            lid,
            alias,
            raw_id: rand::random::<u32>() >> 1,
            primary,
            state: Mutex::new(AccountState {
                push_name,
                auto_read: false,
                auto_reply: None,
                ignores_retries: false,
                offline: false,
                companions: BTreeMap::new(),
                watchers: BTreeMap::new(),
                next_device: 1,
                key_index_list: Vec::new(),
                key_index_timestamp: 0,
                inbox: VecDeque::new(),
                inbox_busy: false,
                app_state,
            }),
            handset: Mutex::new(handset),
            accepted: Mutex::new(AcceptedLog::default()),
        };
        account.sign_key_index_list()?;
        Ok(account)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, AccountState> {
        lock(&self.state)
    }

    pub(crate) fn handset(&self) -> MutexGuard<'_, Handset> {
        lock(&self.handset)
    }

    pub(crate) fn accepted(&self) -> MutexGuard<'_, AcceptedLog> {
        lock(&self.accepted)
    }

    /// The address of one of the account's devices, in the LID namespace if `server` is one, else by phone number.
    pub(crate) fn jid(&self, server: Server, device: u16) -> Jid {
        if server.is_lid_family() {
            Jid::lid_device(self.lid.as_str(), device)
        } else {
            Jid::pn_device(self.phone.as_str(), device)
        }
    }

    /// The account's own address without a device.
    pub(crate) fn bare_jid(&self, server: Server) -> Jid {
        self.jid(server, 0)
    }

    /// Whether a message to the account would find a mailbox, or the phone's inbox, full.
    pub(crate) fn has_full_mailbox(&self) -> bool {
        let state = self.state();
        state.inbox.len() >= MAILBOX_LIMIT || state.companions.values().any(|companion| companion.mailbox.is_full())
    }

    /// Reserves the next device id; it doubles as the key index.
    pub(crate) fn reserve_device(&self) -> u16 {
        let mut state = self.state();
        let device = state.next_device;
        state.next_device = device.saturating_add(1);
        device
    }

    /// Adds or removes companions and signs the key index list anew. `change` says whether anything changed.
    pub(crate) fn change_companions<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<u16, Companion>) -> T,
    ) -> Result<T, CurveError> {
        let outcome = change(&mut self.state().companions);
        self.sign_key_index_list()?;
        Ok(outcome)
    }

    /// The signed key index list and its time (unix seconds), which clients demand of every account with companions.
    pub(crate) fn key_index_list(&self) -> (Vec<u8>, u64) {
        let state = self.state();
        (state.key_index_list.clone(), state.key_index_timestamp)
    }

    fn sign_key_index_list(&self) -> Result<(), CurveError> {
        let timestamp = crate::unix_seconds();
        let mut state = self.state();
        let details = waproto::codec::adv_key_index_list_to_vec(&ADVKeyIndexList {
            raw_id: Some(self.raw_id),
            timestamp: Some(timestamp),
            current_index: Some(u32::from(state.next_device) - 1),
            valid_indexes: state.companions.values().map(|companion| companion.key_index).collect(),
            ..Default::default()
        });
        let signature = self.primary.sign(&[KEY_INDEX_LIST_PREFIX.as_slice(), &details].concat())?;
        state.key_index_list = ADVSignedKeyIndexList {
            details: Some(details),
            account_signature: Some(signature.to_vec()),
            account_signature_key: Some(self.primary.identity_public().to_vec()),
        }
        .encode_to_vec();
        state.key_index_timestamp = timestamp;
        Ok(())
    }
}
