//! Linking a session to an account: the QR code that is shown, a code that is typed, a passkey that is asked for.
//!
//! All of it can link a device to an account, so none of it can be printed.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::session::SecretText;

/// A QR code's content. It links a device to an account, so it can't be printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QrCode {
    /// The text in the code.
    pub text: String,
    /// When WhatsApp stops accepting it.
    pub expires_at: DateTime<Utc>,
}

/// `POST /v1/sessions/{id}/pairing-code` on a worker: link by a code that is typed into the phone. A code that is out already
/// is withdrawn.
#[derive(Clone, Serialize, Deserialize)]
pub struct PairingCodeOrder {
    /// The placement that is meant.
    pub generation: i64,
    /// The account's phone number: digits, with country code.
    pub phone: SecretText,
}

/// The answer to [`PairingCodeOrder`].
#[derive(Clone, Serialize, Deserialize)]
pub struct PairingCode {
    /// Eight characters.
    pub code: SecretText,
    /// When WhatsApp stops accepting it.
    pub expires_at: DateTime<Utc>,
}

/// What WhatsApp asks for before it links an account that is protected by a passkey.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "stage")]
pub enum Passkey {
    /// An assertion: WebAuthn's `PublicKeyCredentialRequestOptions`, verbatim, as JSON text.
    Assertion {
        /// What to hand to `navigator.credentials.get`.
        request_options: String,
    },
    /// The account's owner has to see this code on both sides and say that it is the same.
    Confirmation {
        /// Eight characters with a dash.
        code: String,
    },
}

/// `POST /v1/sessions/{id}/passkey` on a worker.
#[derive(Clone, Serialize, Deserialize)]
pub struct PasskeyOrder {
    /// The placement that is meant.
    pub generation: i64,
    /// The answer.
    pub answer: PasskeyAnswer,
}

/// The answer to a [`Passkey`].
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "stage")]
pub enum PasskeyAnswer {
    /// To [`Passkey::Assertion`].
    Assertion {
        /// The assertion as JSON text, in the form of WhatsApp Web.
        assertion: SecretText,
        /// The credential's raw id, in unpadded base64url.
        credential_id: SecretText,
    },
    /// To [`Passkey::Confirmation`]: the codes are the same.
    Confirmation,
}
