//! What the network can be told, in Rust and as JSON.

use serde::Deserialize;

/// A phone to create. All fields are optional.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPhone {
    /// The number, digits only; a free one from 1555 0 on if absent.
    pub phone: Option<String>,
    /// The name shown to others.
    pub push_name: Option<String>,
    /// Mark as read what arrives.
    #[serde(default)]
    pub auto_read: bool,
    /// Answer every text from a companion device with this.
    pub auto_reply: Option<String>,
}

/// Changes to a phone; what is absent stays, and an empty `auto_reply` turns it off.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhoneSettings {
    /// Mark as read what arrives.
    pub auto_read: Option<bool>,
    /// Answer every text from a companion device with this.
    pub auto_reply: Option<String>,
    /// Don't encrypt anew what another device could not open, as a phone that is switched off doesn't.
    pub ignore_retries: Option<bool>,
    /// Switched off: it opens and receipts nothing that comes, until it is back.
    pub offline: Option<bool>,
}

/// A QR code to scan with the phone of an account that is protected by a passkey.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasskeyScan {
    /// The text in the QR code.
    pub qr: String,
    /// WebAuthn's request options, as JSON text, to be shown to the client verbatim.
    pub request_options: String,
}

/// Texts to write.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextOrder {
    /// The recipient's number.
    pub to: String,
    /// The text; with `count` above 1, " #n" is appended.
    pub text: String,
    /// The message id, for a single text; a random one if absent.
    pub id: Option<String>,
    /// How many to write, 1 if absent.
    pub count: Option<usize>,
    /// Address the recipient by LID instead of by number.
    #[serde(default)]
    pub by_lid: bool,
}

/// A reaction to write.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReactionOrder {
    /// The other side of the chat: its number.
    pub to: String,
    /// The id of the message that is reacted to.
    pub message: String,
    /// The phone wrote that message itself.
    #[serde(default)]
    pub own: bool,
    /// The reaction; empty takes it back.
    pub emoji: String,
}

/// Which accepted messages to show, newest last.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptedQuery {
    /// Only those of this device.
    pub sender: Option<String>,
    /// Only those with this id.
    pub id: Option<String>,
    /// At most this many, the newest; 1,000 if absent.
    pub limit: Option<usize>,
}
