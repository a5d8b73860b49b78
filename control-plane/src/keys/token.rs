//! How an API key looks: `sb_live_` or `sb_test_`, 32 random characters, and 6 that check them.

use rand::Rng;
use secrecy::{ExposeSecret, SecretString};
use shared::wire::session::Network;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM_LEN: usize = 32;
const CHECKSUM_LEN: usize = 6;
const PREFIX_LEN: usize = 8;

const fn prefix(network: Network) -> &'static str {
    match network {
        Network::Whatsapp => "sb_live_",
        Network::Sandbox => "sb_test_",
    }
}

/// A new key: 190 random bits.
pub(super) fn generate(network: Network) -> SecretString {
    let mut token = String::with_capacity(PREFIX_LEN + RANDOM_LEN + CHECKSUM_LEN);
    token.push_str(prefix(network));
    let mut rng = rand::rng();
    while token.len() < PREFIX_LEN + RANDOM_LEN {
        let mut bytes = [0_u8; RANDOM_LEN];
        rng.fill_bytes(&mut bytes);
        // 248 is the largest multiple of 62 in a byte: above it, characters would not be equally likely.
        for byte in bytes.into_iter().filter(|byte| *byte < 248).take(PREFIX_LEN + RANDOM_LEN - token.len()) {
            token.push(char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
        }
    }
    let checksum = checksum(&token);
    token.push_str(&checksum);
    token.into()
}

/// Which network a whole key is for; nothing if it isn't one.
pub(crate) fn network(token: &str) -> Option<Network> {
    [Network::Whatsapp, Network::Sandbox]
        .into_iter()
        .find(|network| is_one(token) && token.starts_with(prefix(*network)))
}

/// Whether this is a whole key, of either network. Says nothing about its being known.
pub(crate) fn is_one(token: &str) -> bool {
    token.is_ascii()
        && token.len() == PREFIX_LEN + RANDOM_LEN + CHECKSUM_LEN
        && [Network::Whatsapp, Network::Sandbox].iter().any(|network| token.starts_with(prefix(*network)))
        && checksum(&token[..PREFIX_LEN + RANDOM_LEN]) == token[PREFIX_LEN + RANDOM_LEN..]
}

/// What people tell their keys apart by.
pub(super) fn last_four(token: &SecretString) -> String {
    let text = token.expose_secret();
    text.get(text.len().saturating_sub(4)..).unwrap_or_default().to_owned()
}

/// CRC-32 of the rest in base 62, which always fits into six digits.
fn checksum(head: &str) -> String {
    let mut rest = crc32fast::hash(head.as_bytes());
    let mut digits = [b'0'; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(rest % 62) as usize];
        rest /= 62;
    }
    digits.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_with_one_other_character_is_not_a_key(live: bool, at in 0usize..46, other in 0usize..62) {
            let network = if live { Network::Whatsapp } else { Network::Sandbox };
            let token = generate(network);
            let token = token.expose_secret();
            prop_assert!(is_one(token));
            prop_assert!(token.starts_with(prefix(network)));
            let mut bytes = token.as_bytes().to_vec();
            let other = ALPHABET[other];
            prop_assume!(bytes[at] != other);
            bytes[at] = other;
            prop_assert!(!is_one(&String::from_utf8(bytes).unwrap()));
        }

        #[test]
        fn any_text_can_be_asked_about(text in ".{0,60}") {
            prop_assert!(!is_one(&text));
        }
    }
}
