//! The two tokens of a login.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::Rng;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use shared::{
    identity::{IdentityError, PublicKey, SigningKey},
    ids::{LoginId, TenantId, UserId},
    time::Timestamp,
};

/// How long an access token lives.
pub(super) const ACCESS_TTL: Duration = Duration::from_secs(15 * 60);
/// How long a login lives without logging in again.
pub(super) const LOGIN_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the same successor of a refresh token is answered again.
pub(super) const REUSE_WINDOW: Duration = Duration::from_secs(10);

const ISSUER: &str = "switchboard";
const AUDIENCE: &str = "switchboard-api";

/// What an access token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct AccessClaims {
    iss: String,
    aud: String,
    /// Who.
    pub(super) sub: UserId,
    /// For which tenant.
    pub(super) tenant: TenantId,
    /// By which login.
    pub(super) login: LoginId,
    iat: i64,
    exp: i64,
}

/// Signs an access token of 15 minutes.
pub(super) fn access_token(
    key: &SigningKey,
    user: &UserId,
    tenant: &TenantId,
    login: &LoginId,
    now: Timestamp,
) -> Result<String, IdentityError> {
    key.sign(&AccessClaims {
        iss: ISSUER.into(),
        aud: AUDIENCE.into(),
        sub: user.clone(),
        tenant: tenant.clone(),
        login: login.clone(),
        iat: now.as_millis() / 1000,
        exp: now.plus(ACCESS_TTL).as_millis() / 1000,
    })
}

/// What a token of ours says, if this key signed it and it hasn't expired.
pub(super) fn verify(key: &PublicKey, token: &str) -> Option<AccessClaims> {
    key.verify(token, ISSUER, AUDIENCE).ok()
}

/// A new opaque token: a prefix that tells what it is, and 256 random bits.
pub(crate) fn opaque(prefix: &str) -> SecretString {
    let mut bytes = [0_u8; 32];
    rand::rng().fill_bytes(&mut bytes);
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes)).into()
}

/// The hash of a token as the name of its row.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
