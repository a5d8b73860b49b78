//! A session as the planes speak of it: what it should be (down), and what it is (up).
//!
//! The control plane chooses `generation`, rising by one with each placement. Whatever a worker says or is told about a
//! session carries it; a mismatch is answered 409 with the worker's own generation, and changes nothing.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::linking::{Passkey, QrCode};
use crate::{
    ids::{Incarnation, SessionId, TenantId},
    seal::DataKey,
};

/// Which WhatsApp a session speaks to. Fixed when the session is made, by the kind of key that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The real one.
    Whatsapp,
    /// The simulator.
    Sandbox,
}

impl Network {
    /// The name in JSON and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Whatsapp => "whatsapp",
            Self::Sandbox => "sandbox",
        }
    }
}

/// What the tenant wants of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// Keep its state, hold no connection.
    Stopped,
    /// Be connected; pair if it has no identity yet.
    Running,
    /// Remove the companion device from the account, then erase the WhatsApp state.
    LoggedOut,
    /// As `LoggedOut`; the control plane then forgets the session.
    Deleted,
}

/// `PUT /v1/sessions/{id}` on a worker: run this session as of this generation. Idempotent.
#[derive(Clone, Serialize, Deserialize)]
pub struct PutSession {
    /// The session.
    pub session_id: SessionId,
    /// The tenant that owns it.
    pub tenant_id: TenantId,
    /// Rises by one with each placement.
    pub generation: i64,
    /// Which outbox sequence this is: rises with each restore from a backup. Starts at 1.
    pub epoch: i64,
    /// Which network to speak to.
    pub network: Network,
    /// What the tenant wants.
    pub desired: Desired,
    /// Rises when the tenant asks for a restart.
    pub restart_seq: i64,
    /// The key that seals this session's WhatsApp state, outbox and journal: 32 bytes in base64.
    pub session_key: SecretText,
    /// Settings that change how the worker runs it.
    #[serde(default)]
    pub settings: SessionSettings,
}

impl fmt::Debug for PutSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutSession")
            .field("session_id", &self.session_id)
            .field("generation", &self.generation)
            .field("desired", &self.desired)
            .finish_non_exhaustive()
    }
}

/// Settings of a session that its worker acts on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionSettings {
    /// What to do with a send whose outcome isn't known after a crash.
    pub on_unknown: OnUnknown,
    /// The name that the linked device shows on the phone.
    pub device_name: String,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self { on_unknown: OnUnknown::Resend, device_name: "Switchboard".into() }
    }
}

/// What to do with a send whose outcome isn't known: the crash fell between WhatsApp's acceptance and our commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// Send again under the same WhatsApp id; recipients' clients drop repeats of an id.
    #[default]
    Resend,
    /// Leave it to the tenant.
    Hold,
}

/// Text that must not be printed: it has no `Debug` of its own, and is cleared when dropped.
#[derive(Clone, Serialize, Deserialize, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The secret itself, at the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&DataKey> for SecretText {
    fn from(key: &DataKey) -> Self {
        Self(key.to_base64())
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What a session is, as its worker sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Observed {
    /// Claimed; dialling for the first time.
    Starting,
    /// Waits for a phone to scan the QR code that `GET /v1/sessions/{id}` shows.
    Pairing,
    /// WhatsApp asks for a passkey.
    PasskeyRequired,
    /// Frames come in.
    Connected,
    /// Was connected, dials again.
    Reconnecting,
    /// The phone unlinked it, or WhatsApp did. Its state is of no more use.
    LoggedOut {
        /// A stable word.
        reason: String,
    },
    /// WhatsApp banned the account.
    Banned {
        /// When the ban ends, where WhatsApp says so.
        until: Option<DateTime<Utc>>,
    },
    /// Can't go on by itself.
    Failed {
        /// A stable word, such as `client_outdated` or `replaced`.
        reason: String,
    },
    /// Let go: nothing runs, the outbox is empty, the fence is free. `reason` is set when the worker stopped of its
    /// own accord, such as `pairing_timeout`.
    Stopped {
        /// A stable word.
        reason: Option<String>,
    },
    /// Logged out on the tenant's wish and erased.
    Erased {
        /// Whether WhatsApp confirmed that the companion device was removed.
        unlink_confirmed: bool,
    },
}

/// Who a linked session is on WhatsApp.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The device's own JID in the phone-number namespace.
    pub jid: String,
    /// The account's LID, where known.
    #[serde(default)]
    pub lid: Option<String>,
    /// The name that the account shows to others.
    #[serde(default)]
    pub push_name: Option<String>,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Account(…)")
    }
}

/// One session's state at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The session.
    pub session_id: SessionId,
    /// Under which placement.
    pub generation: i64,
    /// Orders the reports of one incarnation about one session.
    pub report_seq: i64,
    /// The `restart_seq` that has been acted on.
    pub restart_seq: i64,
    /// What it is.
    pub observed: Observed,
    /// When it became so.
    pub since: DateTime<Utc>,
    /// When the last frame came from WhatsApp.
    #[serde(default)]
    pub last_frame_at: Option<DateTime<Utc>>,
    /// Set once the session is linked.
    #[serde(default)]
    pub account: Option<Account>,
    /// When pairing is under way: rises with each new QR code. The code itself is fetched, not pushed.
    #[serde(default)]
    pub qr_seq: Option<i64>,
}

/// `POST /internal/v1/workers/{id}/reports`: the newest state of each session that changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reports {
    /// This run of the worker.
    pub incarnation: Incarnation,
    /// At most 500, one for each session.
    pub reports: Vec<Report>,
}

/// The answer to [`Reports`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReportsAccepted {
    /// Sessions that are not this worker's at the reported generation any more: let go of them.
    pub stale: Vec<SessionId>,
}

/// `GET /v1/sessions/{id}` on a worker.
#[derive(Clone, Serialize, Deserialize)]
pub struct SessionView {
    /// Its state.
    pub report: Report,
    /// The QR code to show now: what the phone scans, and until when it is good.
    #[serde(default)]
    pub qr: Option<QrCode>,
    /// What WhatsApp asks of the account's owner now, while the state is `passkey_required`.
    #[serde(default)]
    pub passkey: Option<Passkey>,
}

/// A worker's refusal because the generation isn't its own (409 `generation-mismatch`) carries the one it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationMismatch {
    /// The generation that the worker holds; absent if it holds none.
    pub generation: Option<i64>,
}
