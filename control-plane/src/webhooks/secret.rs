//! The secrets that deliveries are signed with, and the signature.
//!
//! [Standard Webhooks](https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md): a
//! secret is `whsec_` and 24 to 64 random bytes in base64; the signature is HMAC-SHA256 of `id.timestamp.body`, and during a
//! rotation there is one for each secret, separated by a space.

use base64::{Engine, engine::general_purpose::STANDARD};
use rand::Rng;
use secrecy::SecretString;
use shared::{
    ids::WebhookId,
    seal::{DataKey, Place, SealError},
    time::Timestamp,
};
use standardwebhooks::Webhook as Signer;
use zeroize::Zeroizing;

use super::entity::webhook;
use crate::auth::TenantScope;

const BYTES: usize = 32;

/// A secret, in clear. Can't be printed.
pub(super) struct Secret(Zeroizing<[u8; BYTES]>);

/// Which of an endpoint's secrets: part of where it is sealed.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Current,
    Previous,
}

/// A delivery could not be signed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SignError {
    /// A secret doesn't open, or has the wrong length.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The body isn't UTF-8.
    #[error("the body can't be signed")]
    Body,
}

impl Secret {
    pub(super) fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; BYTES]);
        rand::rng().fill_bytes(bytes.as_mut_slice());
        Self(bytes)
    }

    /// One that its owner chose; nothing if it isn't one of ours.
    pub(super) fn of(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text.strip_prefix("whsec_")?).ok()?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }

    /// Whether it is the one of an endpoint.
    pub(super) fn is_of(&self, key: &DataKey, scope: &TenantScope, row: &webhook::Model) -> Result<bool, SealError> {
        Ok(open(key, scope, &row.id, Slot::Current, &row.sealed_secret)?.as_slice() == self.0.as_slice())
    }

    /// As its owner needs it.
    pub(super) fn shown(&self) -> SecretString {
        SecretString::from(format!("whsec_{}", STANDARD.encode(self.0.as_slice())))
    }

    pub(super) fn seal(&self, key: &DataKey, scope: &TenantScope, id: &WebhookId) -> Result<Vec<u8>, SealError> {
        seal(key, scope, id, Slot::Current, self.0.as_slice())
    }
}

/// Moves the present secret to where the previous one lies.
pub(super) fn retire(key: &DataKey, scope: &TenantScope, row: &webhook::Model) -> Result<Vec<u8>, SealError> {
    let secret = open(key, scope, &row.id, Slot::Current, &row.sealed_secret)?;
    seal(key, scope, &row.id, Slot::Previous, &secret)
}

/// The header `webhook-signature` of a body: with every secret that is valid now.
pub(super) fn signature(
    key: &DataKey,
    scope: &TenantScope,
    row: &webhook::Model,
    message_id: &str,
    at: Timestamp,
    body: &[u8],
) -> Result<String, SignError> {
    let mut secrets = vec![open(key, scope, &row.id, Slot::Current, &row.sealed_secret)?];
    if let (Some(sealed), Some(until)) = (&row.sealed_previous_secret, row.previous_secret_until)
        && at < until
    {
        secrets.push(open(key, scope, &row.id, Slot::Previous, sealed)?);
    }
    let seconds = at.as_millis() / 1000;
    let signatures = secrets.iter().map(|secret| {
        Signer::from_bytes(secret.to_vec())
            .and_then(|signer| signer.sign(message_id, seconds, body))
            .map_err(|_| SignError::Body)
    });
    Ok(signatures.collect::<Result<Vec<_>, _>>()?.join(" "))
}

fn seal(key: &DataKey, scope: &TenantScope, id: &WebhookId, slot: Slot, secret: &[u8]) -> Result<Vec<u8>, SealError> {
    key.seal(&Place { owner: scope.id().as_str(), table: "webhooks", row: &row(id, slot) }, secret)
}

fn open(
    key: &DataKey,
    scope: &TenantScope,
    id: &WebhookId,
    slot: Slot,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let place = Place { owner: scope.id().as_str(), table: "webhooks", row: &row(id, slot) };
    key.open(&place, sealed).map(Zeroizing::new)
}

fn row(id: &WebhookId, slot: Slot) -> String {
    let column = match slot {
        Slot::Current => "secret",
        Slot::Previous => "previous_secret",
    };
    format!("{id}:{column}")
}
