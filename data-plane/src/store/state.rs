//! What a row of `wa_state` is, and how its key and value are hidden.
//!
//! Most keys are JIDs or contain one, so a row is found by a keyed hash of them: HMAC-SHA256 under a key that is derived
//! from the session's data key. Two sessions that talk to the same person share no value anywhere in the table. Where a
//! key must be read back it lies inside the sealed value. Next to the sealed value only what a query compares stands in
//! the clear: prekey numbers, an uploaded flag, moments.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shared::{
    ids::SessionId,
    seal::{DataKey, Place},
};

use super::Result;

/// The table's name, which every seal is bound to.
const TABLE: &str = "wa_state";

/// What a row holds. The numbers are stored: never change or reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i16)]
pub enum Kind {
    /// Key: address. Group: its user part.
    Identity = 1,
    /// Key: address. Group: its user part.
    Session = 2,
    /// Key: number. Stamp: the number. Flag: uploaded.
    Prekey = 3,
    /// Key: number. Stamp: the number.
    SignedPrekey = 4,
    /// Key: address.
    SenderKey = 5,
    /// Key: key id.
    SyncKey = 6,
    /// One row: the key id of the newest sync key.
    LatestSyncKey = 7,
    /// Key: collection.
    AppStateVersion = 8,
    /// Key: collection, index MAC. Group: collection.
    MutationMac = 9,
    /// Key: group, device. Group: the group. Member: the device.
    SenderKeyDevice = 10,
    /// Key: LID. Group: phone number. Stamp: when it was updated.
    LidMapping = 11,
    /// Key: address, message.
    BaseKey = 12,
    /// Key: user.
    DeviceList = 13,
    /// Key: group.
    GroupMetadata = 14,
    /// Key: JID. Stamp: the token's time, none without a token. Stamp 2: when ours was sent.
    TcToken = 15,
    /// Key: chat, message. Stamp: when it was stored, in seconds.
    SentMessage = 16,
    /// Key: chat, sender, message. Stamp: when it was stored, in seconds.
    PendingInbound = 17,
    /// Key: chat, sender, message. Stamp: when it expires, in seconds (0: never). Stamp 2: the parent message's time.
    MessageSecret = 18,
    /// One row: the device's identity.
    Device = 19,
}

impl Kind {
    /// As stored.
    pub const fn code(self) -> i16 {
        self as i16
    }
}

/// A keyed hash that stands for a key.
pub type KeyHash = [u8; 32];

/// A session's secrets, as its rows need them.
pub struct StateKeys {
    session_id: SessionId,
    data_key: DataKey,
    /// With the derived key already absorbed.
    hash: Hmac<Sha256>,
}

impl StateKeys {
    /// Derives the hash key.
    pub fn new(session_id: SessionId, data_key: DataKey) -> Self {
        let derived = hmac(data_key.as_bytes()).chain_update(b"wa_state key hash 1").finalize().into_bytes();
        Self { session_id, data_key, hash: hmac(&derived) }
    }

    /// Stands for a key of some parts. `kind` and the lengths are hashed too, so no two keys share an encoding.
    pub fn hash(&self, kind: Kind, parts: &[&[u8]]) -> KeyHash {
        self.hash_as(kind.code(), parts)
    }

    /// As [`hash`](Self::hash), for the group that rows are found by.
    pub fn group(&self, kind: Kind, group: &[u8]) -> KeyHash {
        self.hash_as(100 + kind.code(), &[group])
    }

    /// As [`hash`](Self::hash), for the member of a group.
    pub fn member(&self, kind: Kind, member: &[u8]) -> KeyHash {
        self.hash_as(200 + kind.code(), &[member])
    }

    /// Stands for a chat in the journal.
    pub fn chat(&self, jid: &str) -> KeyHash {
        self.hash_as(1_000, &[jid.as_bytes()])
    }

    fn hash_as(&self, domain: i16, parts: &[&[u8]]) -> KeyHash {
        let mut hash = self.hash.clone();
        hash.update(&domain.to_be_bytes());
        for part in parts {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into_bytes().into()
    }

    /// Seals a value for its row.
    pub fn seal(&self, kind: Kind, key: &KeyHash, plain: &[u8]) -> Result<Vec<u8>> {
        let row = row_name(kind, key);
        Ok(self.data_key.seal(&Place { owner: self.session_id.as_str(), table: TABLE, row: &row }, plain)?)
    }

    /// Opens a value of its row.
    pub fn open(&self, kind: Kind, key: &KeyHash, sealed: &[u8]) -> Result<Vec<u8>> {
        let row = row_name(kind, key);
        Ok(self.data_key.open(&Place { owner: self.session_id.as_str(), table: TABLE, row: &row }, sealed)?)
    }

    /// For the outbox, whose seal has a place of its own.
    pub fn data_key(&self) -> &DataKey {
        &self.data_key
    }

    /// Whose.
    pub fn session_id(&self) -> &SessionId {
        &self.session_id
    }
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"))
}

fn row_name(kind: Kind, key: &KeyHash) -> String {
    let mut name = String::with_capacity(68);
    // Writing to a String can't fail.
    let _ = write!(name, "{}/", kind.code());
    for byte in key {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// A row to be stored.
pub struct Row {
    pub kind: Kind,
    pub key: KeyHash,
    pub group: Option<KeyHash>,
    pub member: Option<KeyHash>,
    pub stamp: Option<i64>,
    pub stamp2: Option<i64>,
    pub flag: Option<bool>,
    pub sealed: Vec<u8>,
}

impl StateKeys {
    /// A row of a kind that is only ever looked up by its key.
    pub fn row(&self, kind: Kind, parts: &[&[u8]], plain: &[u8]) -> Result<Row> {
        let key = self.hash(kind, parts);
        let sealed = self.seal(kind, &key, plain)?;
        Ok(Row { kind, key, group: None, member: None, stamp: None, stamp2: None, flag: None, sealed })
    }
}

impl Row {
    pub fn group(mut self, group: KeyHash) -> Self {
        self.group = Some(group);
        self
    }

    pub fn member(mut self, member: KeyHash) -> Self {
        self.member = Some(member);
        self
    }

    pub fn stamp(mut self, stamp: impl Into<Option<i64>>) -> Self {
        self.stamp = stamp.into();
        self
    }

    pub fn stamp2(mut self, stamp: impl Into<Option<i64>>) -> Self {
        self.stamp2 = stamp.into();
        self
    }

    pub fn flag(mut self, flag: bool) -> Self {
        self.flag = Some(flag);
        self
    }
}
