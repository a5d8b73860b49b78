//! What can be checked of a passkey's assertion without its public key: that it answers what was asked, with a credential that
//! was allowed. The signature isn't: there is no authenticator here, and no passkey was ever registered.
//!
//! Options and assertion are WebAuthn's (`PublicKeyCredentialRequestOptionsJSON` and `AuthenticationResponseJSON`, section 5.1 of
//! Level 3); `authenticatorData` begins with the SHA-256 of the relying party's id and a byte of flags (section 6.1).

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The shortest `authenticatorData`: the hash, the flags, a counter.
const AUTHENTICATOR_DATA: usize = 37;
/// The flag that says that somebody was there.
const USER_PRESENT: u8 = 1;

/// What the server has asked for.
pub(super) struct Asked {
    challenge: Vec<u8>,
    /// The relying party, if it is named.
    rp_id: Option<String>,
    /// The ids of the credentials that may answer; any if there are none.
    allowed: Vec<Vec<u8>>,
}

impl Asked {
    /// Reads request options; `None` if they aren't any.
    pub(super) fn parse(request_options: &str) -> Option<Self> {
        let options: Value = serde_json::from_str(request_options).ok()?;
        let allowed = match &options["allowCredentials"] {
            Value::Null => Vec::new(),
            credentials => credentials.as_array()?.iter().map(|one| bytes(&one["id"])).collect::<Option<_>>()?,
        };
        let rp_id = options["rpId"].as_str().map(str::to_owned);
        Some(Self { challenge: bytes(&options["challenge"])?, rp_id, allowed })
    }

    /// Whether an assertion, and the credential id that came beside it, answer it.
    pub(super) fn is_answered_by(&self, assertion: &str, credential_id: &[u8]) -> bool {
        self.check(assertion, credential_id).is_some()
    }

    fn check(&self, assertion: &str, credential_id: &[u8]) -> Option<()> {
        let holds = |condition: bool| condition.then_some(());
        let assertion: Value = serde_json::from_str(assertion).ok()?;
        holds(assertion["type"] == "public-key")?;
        holds(bytes(&assertion["id"])? == credential_id && bytes(&assertion["rawId"])? == credential_id)?;
        holds(self.allowed.is_empty() || self.allowed.iter().any(|allowed| allowed == credential_id))?;
        let response = &assertion["response"];
        let client_data: Value = serde_json::from_slice(&bytes(&response["clientDataJSON"])?).ok()?;
        holds(client_data["type"] == "webauthn.get")?;
        holds(bytes(&client_data["challenge"])? == self.challenge)?;
        let data = bytes(&response["authenticatorData"])?;
        holds(data.len() >= AUTHENTICATOR_DATA && data[32] & USER_PRESENT != 0)?;
        holds(self.rp_id.as_ref().is_none_or(|id| Sha256::digest(id)[..] == data[..32]))?;
        holds(!bytes(&response["signature"])?.is_empty())
    }
}

/// Unpadded base64url, as WebAuthn's JSON has it.
fn bytes(text: &Value) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text.as_str()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn encoded(bytes: impl AsRef<[u8]>) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    fn asked() -> Asked {
        let options = json!({ "challenge": encoded("challenge"), "rpId": "example.org",
            "allowCredentials": [{ "type": "public-key", "id": encoded("first") }, { "type": "public-key", "id": encoded("mine") }] });
        Asked::parse(&options.to_string()).expect("options")
    }

    fn answer() -> Value {
        let client_data =
            json!({ "type": "webauthn.get", "challenge": encoded("challenge"), "origin": "https://example.org" });
        let data = [&Sha256::digest("example.org")[..], &[USER_PRESENT, 0, 0, 0, 1]].concat();
        json!({ "id": encoded("mine"), "rawId": encoded("mine"), "type": "public-key", "response": {
            "clientDataJSON": encoded(client_data.to_string()), "authenticatorData": encoded(data), "signature": encoded("s"),
        }})
    }

    #[test]
    fn what_answers_the_challenge_with_an_allowed_credential_is_taken() {
        assert!(asked().is_answered_by(&answer().to_string(), b"mine"));
        let any = Asked { allowed: Vec::new(), rp_id: None, ..asked() };
        assert!(any.is_answered_by(&answer().to_string(), b"mine"));
    }

    #[test]
    fn an_answer_to_something_else_is_not() {
        let client_data =
            |kind: &str, challenge: &str| encoded(json!({ "type": kind, "challenge": encoded(challenge) }).to_string());
        let data = |party: &str, flags: u8| encoded([&Sha256::digest(party)[..], &[flags, 0, 0, 0, 1]].concat());
        for (pointer, wrong) in [
            ("/type", "password".to_owned()),
            ("/id", encoded("first")),
            ("/rawId", encoded("first")),
            ("/response/clientDataJSON", client_data("webauthn.get", "another")),
            ("/response/clientDataJSON", client_data("webauthn.create", "challenge")),
            ("/response/clientDataJSON", encoded("nonsense")),
            ("/response/authenticatorData", data("example.com", USER_PRESENT)),
            ("/response/authenticatorData", data("example.org", 0)),
            ("/response/authenticatorData", encoded(&Sha256::digest("example.org")[..])),
            ("/response/signature", String::new()),
            ("/response/signature", "not base64url!".to_owned()),
        ] {
            let mut answer = answer();
            *answer.pointer_mut(pointer).expect("a field") = wrong.into();
            assert!(!asked().is_answered_by(&answer.to_string(), b"mine"), "{pointer}");
        }
        assert!(!asked().is_answered_by(&answer().to_string(), b"first"), "the id beside it");
        let stranger = answer().to_string().replace(&encoded("mine"), &encoded("other"));
        assert!(!asked().is_answered_by(&stranger, b"other"), "not allowed");
        assert!(!asked().is_answered_by("nonsense", b"mine"));
    }

    #[test]
    fn options_without_a_challenge_are_none() {
        for wrong in ["nonsense", "{}", r#"{"challenge":1}"#, r#"{"challenge":"YQ","allowCredentials":[{"id":"?"}]}"#] {
            assert!(Asked::parse(wrong).is_none(), "{wrong}");
        }
    }
}
