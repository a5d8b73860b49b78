//! A phone's Signal stores, in memory, and its pre-keys.
//!
//! One-time pre-keys are made when they are asked for, so that a thousand idle phones cost nothing. The library's store
//! traits are asynchronous; these stores never wait, and [`now`] holds them to it.

use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use wacore_binary::Node;
use wacore_libsignal::protocol::{
    CurveError, Direction, GenericSignedPreKey as _, IdentityChange, IdentityKey, IdentityKeyPair, IdentityKeyStore,
    KeyPair, PreKeyBundle, PreKeyId, PreKeyRecord, PreKeyStore, ProtocolAddress, SessionRecord, SessionStore,
    SignalProtocolError, SignedPreKeyId, SignedPreKeyRecord, SignedPreKeyStore, Timestamp,
};

use super::PhoneError;
use crate::directory::{SignedKey, bundle_children};
use crate::lock;

type Result<T> = std::result::Result<T, SignalProtocolError>;

const SIGNED_PRE_KEY: u32 = 1;

/// The result of a future that never waits.
pub(super) fn now<T>(future: impl Future<Output = T>) -> std::result::Result<T, PhoneError> {
    future.now_or_never().ok_or(PhoneError::NotReady)
}

/// The phone's identity, signed pre-key and the one-time pre-keys it has handed out.
pub(crate) struct PrimaryKeys {
    identity: IdentityKeyPair,
    registration_id: u32,
    signed: KeyPair,
    signature: [u8; 64],
    one_time: Mutex<OneTimeKeys>,
}

struct OneTimeKeys {
    next: u32,
    handed_out: HashMap<u32, KeyPair>,
}

impl PrimaryKeys {
    pub(crate) fn generate() -> std::result::Result<Self, CurveError> {
        let mut rng = rand::rng();
        let identity = IdentityKeyPair::generate(&mut rng);
        let signed = KeyPair::generate(&mut rng);
        let signature = identity.private_key().calculate_signature(&signed.public_key.serialize(), &mut rng)?;
        let registration_id = rand::random::<u32>() % 0x3fff + 1;
        Ok(Self {
            identity,
            registration_id,
            signed,
            signature,
            one_time: Mutex::new(OneTimeKeys { next: 1, handed_out: HashMap::new() }),
        })
    }

    /// XEdDSA with the account's identity key.
    pub(crate) fn sign(&self, message: &[u8]) -> std::result::Result<[u8; 64], CurveError> {
        self.identity.private_key().calculate_signature(message, &mut rand::rng())
    }

    /// Diffie-Hellman with the account's identity key.
    pub(crate) fn agree(
        &self,
        theirs: &wacore_libsignal::protocol::PublicKey,
    ) -> std::result::Result<Box<[u8]>, CurveError> {
        self.identity.private_key().calculate_agreement(theirs).map(|shared| shared.as_ref().into())
    }

    /// The account's identity key without type byte.
    pub(crate) fn identity_public(&self) -> &[u8] {
        self.identity.public_key().public_key_bytes()
    }

    /// The children of the bundle answer for device 0, with a fresh one-time key.
    pub(crate) fn hand_out_bundle(&self) -> Vec<Node> {
        let (id, key) = self.new_one_time_key();
        let signed = SignedKey { id: SIGNED_PRE_KEY, public: raw(&self.signed), signature: self.signature };
        let mut identity = [0; 32];
        identity.copy_from_slice(self.identity_public());
        bundle_children(self.registration_id, &identity, &signed, Some((id, raw(&key))))
    }

    /// The same for a phone that writes to this one.
    pub(super) fn take_bundle(&self) -> Result<PreKeyBundle> {
        let (id, key) = self.new_one_time_key();
        PreKeyBundle::new(
            self.registration_id,
            0.into(),
            Some((id.into(), key.public_key)),
            SIGNED_PRE_KEY.into(),
            self.signed.public_key,
            self.signature.to_vec(),
            *self.identity.identity_key(),
        )
    }

    fn new_one_time_key(&self) -> (u32, KeyPair) {
        let key = KeyPair::generate(&mut rand::rng());
        let mut one_time = lock(&self.one_time);
        let id = one_time.next;
        // Ids are three bytes on the wire.
        one_time.next = if id == 0x00ff_ffff { 1 } else { id + 1 };
        one_time.handed_out.insert(id, key.clone());
        (id, key)
    }

    /// Forgets a one-time key that has been used.
    pub(super) fn spend(&self, id: u32) {
        lock(&self.one_time).handed_out.remove(&id);
    }
}

fn raw(key: &KeyPair) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(key.public_key.public_key_bytes());
    bytes
}

/// Sessions by address.
#[derive(Default, Clone)]
pub(super) struct Sessions(HashMap<String, SessionRecord>);

impl Sessions {
    /// Whether there is a session to write in.
    pub(super) fn contains(&self, address: &ProtocolAddress) -> bool {
        self.0.get(address.as_str()).is_some_and(|record| record.session_state().is_some())
    }

    /// Writes in a new session from now on. What the other side still sends in the old one can be opened.
    pub(super) fn renew(&mut self, address: &ProtocolAddress) -> Result<()> {
        self.0.get_mut(address.as_str()).map_or(Ok(()), SessionRecord::archive_current_state)
    }
}

#[async_trait]
impl SessionStore for Sessions {
    async fn load_session(&self, address: &ProtocolAddress) -> Result<Option<SessionRecord>> {
        Ok(self.0.get(address.as_str()).cloned())
    }

    async fn has_session(&self, address: &ProtocolAddress) -> Result<bool> {
        Ok(self.contains(address))
    }

    async fn store_session(&mut self, address: &ProtocolAddress, record: SessionRecord) -> Result<()> {
        self.0.insert(address.as_str().to_owned(), record);
        Ok(())
    }
}

/// The phone's own identity and those it has met. A device id is never used twice, so identities don't change.
pub(super) struct Identities<'a> {
    pub(super) keys: &'a PrimaryKeys,
    pub(super) known: &'a mut HashMap<String, IdentityKey>,
}

#[async_trait]
impl IdentityKeyStore for Identities<'_> {
    async fn get_identity_key_pair(&self) -> Result<IdentityKeyPair> {
        Ok(self.keys.identity.clone())
    }

    async fn get_local_registration_id(&self) -> Result<u32> {
        Ok(self.keys.registration_id)
    }

    async fn save_identity(&mut self, address: &ProtocolAddress, identity: &IdentityKey) -> Result<IdentityChange> {
        let before = self.known.insert(address.as_str().to_owned(), *identity);
        Ok(IdentityChange::from_changed(before.is_some_and(|before| before != *identity)))
    }

    async fn is_trusted_identity(
        &self,
        address: &ProtocolAddress,
        identity: &IdentityKey,
        _direction: Direction,
    ) -> Result<bool> {
        Ok(self.known.get(address.as_str()).is_none_or(|known| known == identity))
    }

    async fn get_identity(&self, address: &ProtocolAddress) -> Result<Option<IdentityKey>> {
        Ok(self.known.get(address.as_str()).copied())
    }
}

/// The pre-keys as the library wants to read them. It never removes one: [`PrimaryKeys::spend`] does, after decryption.
pub(super) struct PreKeys<'a>(pub(super) &'a PrimaryKeys);

#[async_trait]
impl PreKeyStore for PreKeys<'_> {
    async fn get_pre_key(&self, id: PreKeyId) -> Result<PreKeyRecord> {
        lock(&self.0.one_time)
            .handed_out
            .get(&id.into())
            .map(|key| PreKeyRecord::new(id, key))
            .ok_or(SignalProtocolError::InvalidPreKeyId)
    }

    async fn save_pre_key(&mut self, id: PreKeyId, record: &PreKeyRecord) -> Result<()> {
        let key = record.key_pair()?;
        lock(&self.0.one_time).handed_out.insert(id.into(), key);
        Ok(())
    }

    async fn remove_pre_key(&mut self, id: PreKeyId) -> Result<()> {
        self.0.spend(id.into());
        Ok(())
    }
}

#[async_trait]
impl SignedPreKeyStore for PreKeys<'_> {
    async fn get_signed_pre_key(&self, id: SignedPreKeyId) -> Result<SignedPreKeyRecord> {
        if u32::from(id) != SIGNED_PRE_KEY {
            return Err(SignalProtocolError::InvalidSignedPreKeyId);
        }
        let keys = self.0;
        Ok(SignedPreKeyRecord::new(id, Timestamp::from_epoch_millis(0), &keys.signed, &keys.signature))
    }

    async fn save_signed_pre_key(&mut self, _id: SignedPreKeyId, _record: &SignedPreKeyRecord) -> Result<()> {
        // A phone keeps the one it was made with.
        Err(SignalProtocolError::InvalidSignedPreKeyId)
    }
}
