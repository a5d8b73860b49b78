//! How the planes prove who they are to each other: EdDSA JWTs that live 60 seconds.
//!
//! Each worker and the control plane own an Ed25519 key pair. A token names its signer (`iss`), the one peer it is
//! for (`aud`) and, from a worker, the incarnation that speaks (`inc`). Leeway is 30 s on either side. The same key
//! type signs the access tokens of people; those have claims of their own, and another audience.

use std::fmt;

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::ids::{Incarnation, WorkerId};

/// The name of the control plane as signer and as audience.
pub const CONTROL_PLANE: &str = "control-plane";
/// How long a token between the planes lives, in seconds.
pub const PEER_TOKEN_SECONDS: i64 = 60;
/// How far the two clocks may differ, in seconds.
pub const LEEWAY_SECONDS: u64 = 30;

/// Why a key or a token was refused.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The key pair could not be made or read.
    #[error("Ed25519 key is not usable")]
    Key,
    /// Expired, forged, for somebody else, or not a token.
    #[error("token refused")]
    Token,
}

/// An Ed25519 key pair that signs tokens. Its private half can't be printed.
#[derive(Clone)]
pub struct SigningKey {
    kid: String,
    public: String,
    pkcs8: Zeroizing<Vec<u8>>,
    encoding: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new random key pair.
    ///
    /// # Errors
    /// [`IdentityError::Key`] if the system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IdentityError::Key)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// The key pair from its PKCS#8 form.
    ///
    /// # Errors
    /// [`IdentityError::Key`] if it isn't an Ed25519 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::from_pkcs8(der).map_err(|_| IdentityError::Key)?;
        let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        Ok(Self {
            kid: public.chars().take(16).collect(),
            public,
            pkcs8: Zeroizing::new(der.to_vec()),
            encoding: EncodingKey::from_ed_der(der),
        })
    }

    /// The PKCS#8 form, to be stored sealed or in a file only its owner can read.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public half as others know it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey { kty: "OKP".into(), crv: "Ed25519".into(), kid: self.kid.clone(), x: self.public.clone() }
    }

    /// Signs any claims.
    ///
    /// # Errors
    /// [`IdentityError::Token`] if the claims can't be written as JSON.
    pub fn sign<C: Serialize>(&self, claims: &C) -> Result<String, IdentityError> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.clone());
        encode(&header, claims, &self.encoding).map_err(|_| IdentityError::Token)
    }

    /// A token of the control plane for one worker.
    ///
    /// # Errors
    /// As [`sign`](Self::sign).
    pub fn token_for_worker(&self, worker: &WorkerId, now: DateTime<Utc>) -> Result<String, IdentityError> {
        self.peer_token(CONTROL_PLANE, worker.as_str(), None, now)
    }

    /// A token of one run of a worker for the control plane.
    ///
    /// # Errors
    /// As [`sign`](Self::sign).
    pub fn token_for_control_plane(
        &self,
        worker: &WorkerId,
        incarnation: &Incarnation,
        now: DateTime<Utc>,
    ) -> Result<String, IdentityError> {
        self.peer_token(worker.as_str(), CONTROL_PLANE, Some(incarnation.clone()), now)
    }

    fn peer_token(
        &self,
        iss: &str,
        aud: &str,
        inc: Option<Incarnation>,
        now: DateTime<Utc>,
    ) -> Result<String, IdentityError> {
        let iat = now.timestamp();
        self.sign(&PeerClaims { iss: iss.into(), aud: aud.into(), iat, exp: iat + PEER_TOKEN_SECONDS, inc })
    }
}

/// What a token between the planes says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerClaims {
    /// `control-plane`, or the worker's id.
    pub iss: String,
    /// The peer it is for.
    pub aud: String,
    /// Seconds since 1970.
    pub iat: i64,
    /// Seconds since 1970.
    pub exp: i64,
    /// The run of the worker that speaks; absent from the control plane's tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inc: Option<Incarnation>,
}

/// A public Ed25519 key as a JSON Web Key (RFC 8037).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublicKey {
    /// Always `OKP`.
    pub kty: String,
    /// Always `Ed25519`.
    pub crv: String,
    /// Tells this key from the signer's others.
    pub kid: String,
    /// The key, in unpadded base64url.
    pub x: String,
}

impl PublicKey {
    /// Checks signature, expiry, audience and issuer, and gives the claims.
    ///
    /// # Errors
    /// [`IdentityError::Token`], whatever is wrong: a caller learns nothing from the difference.
    pub fn verify<C: DeserializeOwned>(&self, token: &str, iss: &str, aud: &str) -> Result<C, IdentityError> {
        let key = DecodingKey::from_ed_components(&self.x).map_err(|_| IdentityError::Key)?;
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.leeway = LEEWAY_SECONDS;
        rules.set_audience(&[aud]);
        rules.set_issuer(&[iss]);
        rules.set_required_spec_claims(&["exp", "aud", "iss"]);
        decode::<C>(token, &key, &rules).map(|data| data.claims).map_err(|_| IdentityError::Token)
    }
}

/// The public keys of one signer (RFC 7517).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeySet {
    /// The newest first.
    pub keys: Vec<PublicKey>,
}

impl KeySet {
    /// The key that a token says it was signed with.
    #[must_use]
    pub fn key_of(&self, token: &str) -> Option<&PublicKey> {
        let kid = jsonwebtoken::decode_header(token).ok()?.kid?;
        self.keys.iter().find(|key| key.kid == kid)
    }
}

/// The worker that a token says it comes from, unverified: only to find the key to verify it with.
#[must_use]
pub fn claimed_issuer(token: &str) -> Option<String> {
    jsonwebtoken::dangerous::insecure_decode::<PeerClaims>(token).ok().map(|data| data.claims.iss)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_token_is_good_for_its_peer_only_and_for_a_minute() {
        let key = SigningKey::generate().unwrap();
        let worker: WorkerId = "w1".parse().unwrap();
        let now = Utc::now();
        let token = key.token_for_worker(&worker, now).unwrap();
        let public = key.public();
        assert!(public.verify::<PeerClaims>(&token, CONTROL_PLANE, "w1").is_ok());
        assert!(public.verify::<PeerClaims>(&token, CONTROL_PLANE, "w2").is_err(), "another audience");
        assert!(public.verify::<PeerClaims>(&token, "w1", "w1").is_err(), "another issuer");
        let stranger = SigningKey::generate().unwrap().public();
        assert!(stranger.verify::<PeerClaims>(&token, CONTROL_PLANE, "w1").is_err(), "another key");
        let old = key.token_for_worker(&worker, now - TimeDelta::seconds(91)).unwrap();
        assert!(public.verify::<PeerClaims>(&old, CONTROL_PLANE, "w1").is_err(), "expired beyond the leeway");
    }

    #[test]
    fn a_key_pair_survives_its_stored_form() {
        let key = SigningKey::generate().unwrap();
        let again = SigningKey::from_pkcs8(key.pkcs8()).unwrap();
        assert_eq!(key.public(), again.public());
        assert!(!format!("{key:?}").contains(&key.public));
    }
}
