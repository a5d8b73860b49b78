//! The two tokens of a login.
//!
//! A refresh token is 256 random bits between the id of its login and a seal over both (HMAC-SHA256 with a key derived from the master
//! key). The random bits are what opens the door: they are looked up by their keyed hash. The seal only tells, of a token that isn't among
//! the rows, that it was ours and whose: rows of used tokens are deleted after seconds, and a login that is shown one of them ends all the
//! same. Nobody ends a login by its id, since nobody else makes a seal.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::Rng;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use shared::{
    identity::{IdentityError, PublicKey, SigningKey},
    ids::{LoginId, TenantId, UserId},
    time::Timestamp,
};

use super::KeyedHash;
use crate::config::TokensConfig;

/// How long the same successor of a refresh token is answered again.
pub(super) const REUSE_WINDOW: Duration = Duration::from_secs(10);

const REFRESH: &str = "sbr_";
/// 32 bytes in base64url.
const SECRET: usize = 43;
/// An id without its prefix.
const ID: usize = 26;

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

/// Signs an access token.
pub(super) fn access_token(
    key: &SigningKey,
    rules: &TokensConfig,
    user: &UserId,
    tenant: &TenantId,
    login: &LoginId,
    now: Timestamp,
) -> Result<String, IdentityError> {
    key.sign(&AccessClaims {
        iss: rules.issuer.clone(),
        aud: rules.audience.clone(),
        sub: user.clone(),
        tenant: tenant.clone(),
        login: login.clone(),
        iat: now.as_millis() / 1000,
        exp: now.plus(rules.access_ttl).as_millis() / 1000,
    })
}

/// What a token of ours says, if this key signed it and it hasn't expired.
pub(super) fn verify(key: &PublicKey, rules: &TokensConfig, token: &str) -> Option<AccessClaims> {
    key.verify(token, &rules.issuer, &rules.audience).ok()
}

/// A new refresh token of a login.
pub(super) fn refresh_token(seal: &KeyedHash, login: &LoginId) -> SecretString {
    let id = login.as_str().trim_start_matches(LoginId::PREFIX).trim_start_matches('_');
    let token = opaque(&format!("{REFRESH}{id}"));
    let sealed = URL_SAFE_NO_PAD.encode(seal.of(token.expose_secret()));
    format!("{}{sealed}", token.expose_secret()).into()
}

/// Whose refresh token this is, if it is one of ours. Those of versions before don't say it.
pub(super) fn login_of(seal: &KeyedHash, token: &str) -> Option<LoginId> {
    if token.len() != REFRESH.len() + ID + 2 * SECRET {
        return None;
    }
    let (said, sealed) = token.split_at_checked(REFRESH.len() + ID + SECRET)?;
    let id = said.strip_prefix(REFRESH)?.get(..ID)?;
    if !seal.is_of(said, &URL_SAFE_NO_PAD.decode(sealed).ok()?) {
        return None;
    }
    format!("{}_{id}", LoginId::PREFIX).parse().ok()
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::seal::DataKey;

    use super::*;

    #[test]
    fn a_refresh_token_names_its_login_and_only_ours_do() {
        let [ours, others] = [(); 2].map(|()| KeyedHash::new(&DataKey::generate()));
        let login = LoginId::new();
        let token = refresh_token(&ours, &login);
        assert_eq!(login_of(&ours, token.expose_secret()), Some(login.clone()));
        assert_eq!(login_of(&others, token.expose_secret()), None, "of another installation");
        assert_ne!(token.expose_secret(), refresh_token(&ours, &login).expose_secret());
        let of_another_login = token.expose_secret().replace(&login.as_str()[4..], &LoginId::new().as_str()[4..]);
        assert_eq!(login_of(&ours, &of_another_login), None);
        assert_eq!(login_of(&ours, opaque(REFRESH).expose_secret()), None, "of a version before");
    }

    proptest! {
        #[test]
        fn a_refresh_token_that_was_changed_anywhere_names_nobody(at in 0_usize..116, to in "[ -~]|é|日") {
            let seal = KeyedHash::new(&DataKey::generate());
            let token = refresh_token(&seal, &LoginId::new());
            let token = token.expose_secret();
            prop_assert_eq!(token.len(), 116);
            let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
            prop_assert_eq!(login_of(&seal, &changed).is_some(), changed == token);
        }

        #[test]
        fn what_is_no_token_names_nobody(text in ".{0,130}") {
            prop_assert_eq!(login_of(&KeyedHash::new(&DataKey::generate()), &text), None);
        }
    }
}
