//! Sealing: what lies at rest is encrypted with AES-256-GCM, and bound to its place.
//!
//! The control plane alone holds the master key. It wraps data keys: one for each session (its WhatsApp state,
//! outbox and journal) and one for each tenant (its other secrets). The associated data names the place of a
//! value, so a value copied to another row, table or tenant doesn't open.
//!
//! A sealed value is `version (1) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`. Nonces are random; the data key of a
//! session is to be replaced before it has sealed 2^32 values (NIST SP 800-38D §8.3), long before which
//! architecture asks for rotation at 2^30.

use std::fmt;

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use rand::Rng;
use zeroize::{Zeroize, ZeroizeOnDrop};

const VERSION: u8 = 1;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// Why a value could not be sealed or opened. Says nothing about the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Shorter than a header and a tag, or of an unknown version.
    #[error("sealed value is malformed")]
    Malformed,
    /// Another key, another place, or altered bytes.
    #[error("sealed value does not open with this key in this place")]
    Refused,
    /// A key that isn't 32 bytes of standard base64.
    #[error("a key is 32 bytes in base64")]
    BadKey,
}

/// A 256-bit key. It can't be printed, and its memory is cleared when it is dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DataKey([u8; 32]);

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}

impl DataKey {
    /// A new random key.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The key from its base64 form.
    ///
    /// # Errors
    /// [`SealError::BadKey`] unless it decodes to exactly 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, SealError> {
        let mut bytes = STANDARD.decode(text.trim()).map_err(|_| SealError::BadKey)?;
        let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| SealError::BadKey);
        bytes.zeroize();
        key.map(Self)
    }

    /// The key from its raw bytes.
    ///
    /// # Errors
    /// [`SealError::BadKey`] unless there are exactly 32.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, SealError> {
        <[u8; 32]>::try_from(bytes).map(Self).map_err(|_| SealError::BadKey)
    }

    /// Another key, for one purpose: HMAC-SHA256 of the purpose under this key.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let mut out = [0; 32];
        out.copy_from_slice(hmac::sign(&key, purpose.as_bytes()).as_ref());
        Self(out)
    }

    /// A keyed hash (HMAC-SHA256), for looking up what must not be stored in clear.
    #[must_use]
    pub fn keyed_hash(&self, value: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        let mut out = [0; 32];
        out.copy_from_slice(hmac::sign(&key, value).as_ref());
        out
    }

    /// The base64 form, for a key file or for handing a session's key to its worker.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// The raw bytes, for a keyed hash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Seals `plain` for one place.
    ///
    /// # Errors
    /// [`SealError::Refused`] if `plain` is longer than AES-GCM allows (64 GiB).
    pub fn seal(&self, place: &Place<'_>, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        rand::rng().fill_bytes(&mut nonce);
        let aad = place.associated_data();
        let sealed = Aes256Gcm::new(&self.0.into())
            .encrypt(&nonce.into(), Payload { msg: plain, aad: &aad })
            .map_err(|_| SealError::Refused)?;
        let mut out = Vec::with_capacity(1 + NONCE_LEN + sealed.len());
        out.push(VERSION);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Opens what [`seal`](Self::seal) made for the same place.
    ///
    /// # Errors
    /// [`SealError`] if it was made with another key, for another place, or was altered.
    pub fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        if sealed.len() < 1 + NONCE_LEN + TAG_LEN || sealed[0] != VERSION {
            return Err(SealError::Malformed);
        }
        let (nonce, body) = sealed[1..].split_at(NONCE_LEN);
        let nonce = <[u8; NONCE_LEN]>::try_from(nonce).map_err(|_| SealError::Malformed)?;
        let aad = place.associated_data();
        Aes256Gcm::new(&self.0.into())
            .decrypt(&nonce.into(), Payload { msg: body, aad: &aad })
            .map_err(|_| SealError::Refused)
    }
}

/// Where a sealed value lives. Every part is bound into the seal.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The tenant or the session that owns the value.
    pub owner: &'a str,
    /// The table.
    pub table: &'a str,
    /// The row, and the column if a table seals more than one.
    pub row: &'a str,
}

impl Place<'_> {
    /// Length-prefixed, so that no two places share an encoding.
    fn associated_data(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24 + self.owner.len() + self.table.len() + self.row.len());
        for part in [self.owner, self.table, self.row] {
            out.extend_from_slice(&(part.len() as u64).to_be_bytes());
            out.extend_from_slice(part.as_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: Place<'_> = Place { owner: "ses_1", table: "outbox", row: "7" };

    proptest! {
        #[test]
        fn what_is_sealed_opens_in_its_place_only(plain: Vec<u8>, owner in ".{0,8}", table in ".{0,8}", row in ".{0,8}") {
            let key = DataKey::generate();
            let sealed = key.seal(&HERE, &plain).unwrap();
            prop_assert_eq!(key.open(&HERE, &sealed), Ok(plain));
            let elsewhere = Place { owner: &owner, table: &table, row: &row };
            prop_assert_eq!(key.open(&elsewhere, &sealed), Err(SealError::Refused));
            prop_assert_eq!(DataKey::generate().open(&HERE, &sealed), Err(SealError::Refused));
        }

        #[test]
        fn an_altered_value_never_opens(plain: Vec<u8>, at: prop::sample::Index, bit in 0u8..8) {
            let key = DataKey::generate();
            let mut sealed = key.seal(&HERE, &plain).unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(key.open(&HERE, &sealed).is_err());
        }
    }

    #[test]
    fn neighbouring_parts_of_a_place_are_told_apart() {
        let key = DataKey::generate();
        let sealed = key.seal(&Place { owner: "ab", table: "c", row: "" }, b"x").unwrap();
        assert_eq!(key.open(&Place { owner: "a", table: "bc", row: "" }, &sealed), Err(SealError::Refused));
    }
}
