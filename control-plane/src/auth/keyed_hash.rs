//! Hashes of tokens that only this installation can make.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shared::seal::DataKey;

/// HMAC-SHA256 with a key derived from the master key: a copy of the database is no use for trying tokens, and a lookup by
/// the hash's index tells nothing by its timing.
#[derive(Clone)]
pub struct KeyedHash(Hmac<Sha256>);

impl fmt::Debug for KeyedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyedHash(…)")
    }
}

impl KeyedHash {
    /// With a key of its own for each purpose ([`crate::master_key::MasterKey::derive`]).
    #[must_use]
    pub fn new(key: &DataKey) -> Self {
        // HMAC pads a short key with zeros to the block size (RFC 2104 §2); done here, it can't fail.
        let mut block = [0_u8; 64];
        block[..32].copy_from_slice(key.as_bytes());
        Self(Hmac::new(&block.into()))
    }

    /// The 32 bytes under which a token is stored.
    #[must_use]
    pub fn of(&self, token: &str) -> Vec<u8> {
        let mut mac = self.0.clone();
        mac.update(token.as_bytes());
        mac.finalize().into_bytes().to_vec()
    }

    /// Whether these bytes are [`of`](Self::of) this text; takes as long whatever they are.
    #[must_use]
    pub fn is_of(&self, text: &str, bytes: &[u8]) -> bool {
        let mut mac = self.0.clone();
        mac.update(text.as_bytes());
        mac.verify_slice(bytes).is_ok()
    }
}
