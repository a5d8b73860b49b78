//! What the network shows of itself.

use std::collections::BTreeMap;

use serde::Serialize;

/// A phone.
#[derive(Debug, Clone, Serialize)]
pub struct PhoneView {
    /// The number, digits only.
    pub phone: String,
    /// The account's LID, with server.
    pub lid: String,
    /// The account's address by number.
    pub jid: String,
    /// Its linked devices.
    pub companions: Vec<CompanionView>,
}

/// A linked device.
#[derive(Debug, Clone, Serialize)]
pub struct CompanionView {
    /// Its address by number.
    pub jid: String,
    /// The device id within the account.
    pub device: u16,
    /// It is logged in.
    pub connected: bool,
    /// What waits for it or has not been acknowledged by it, all kinds of stanzas.
    pub queued: usize,
}

/// What a scan led to.
#[derive(Debug, Clone, Serialize)]
pub struct ScanResult {
    /// The new device's address by number.
    pub jid: String,
    /// The new device's address by LID.
    pub lid: String,
}

/// A connection that stands.
#[derive(Debug, Clone, Serialize)]
pub struct ConnectionView {
    /// Counts connections, from 1.
    pub id: u64,
    /// The device that is logged in over it, or is just being refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jid: Option<String>,
    /// `handshake`, `pairing`, `logged_in`, `active` or `refused`.
    pub state: String,
    /// The Noise pattern, `XX` or `IK`, once the handshake is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// When it was opened, unix milliseconds.
    pub since: i64,
}

/// A connection that has ended.
#[derive(Debug, Clone, Serialize)]
pub struct EndedView {
    /// Counts connections, from 1.
    pub id: u64,
    /// The device that was logged in over it, or was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jid: Option<String>,
    /// The Noise pattern, if the handshake was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// When it was opened, unix milliseconds.
    pub since: i64,
    /// When it ended, unix milliseconds.
    pub ended: i64,
    /// Why: one of a fixed set of texts.
    pub reason: String,
}

/// Counts for a glance.
#[derive(Debug, Clone, Serialize)]
pub struct Health {
    /// Always `ok`.
    pub status: &'static str,
    /// Phones.
    pub phones: usize,
    /// Standing connections.
    pub connections: usize,
    /// Queries of namespaces that are not simulated and were refused with 501, by namespace.
    pub unimplemented: BTreeMap<String, u64>,
}

/// An account with a passkey that has been linked.
#[derive(Debug, Clone, Serialize)]
pub struct PasskeyResult {
    /// The companion's address.
    pub jid: String,
    /// The code that the phone showed, without a dash.
    pub code: String,
    /// The assertion as the client relayed it.
    pub assertion: String,
}
