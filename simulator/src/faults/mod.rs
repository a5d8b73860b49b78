//! What can be made to go wrong, on command or by a seeded plan.
//!
//! On command ([`Fault`], [`LoginFailures`], [`Nacks`], [`Garble`]): one device's connection is broken, its next logins are
//! refused, its next messages are refused, or the next messages to it arrive so that they can't be decrypted. By a plan
//! ([`FaultPlan`]): a share of all stanzas is dropped, delayed or repeated, and sockets are cut, decided by a seed.
//!
//! The codes are those that wacore 0.7.0 tells apart: `ConnectFailureReason` for logins, `handle_stream_error` for streams.
//! Nothing here alters a ciphertext on its way but [`Garble`], which is what it is for.

mod plan;

use serde::{Deserialize, Serialize};
use wacore_binary::Node;
use wacore_binary::builder::NodeBuilder;

use crate::connection::{Goodbye, stream_error, stream_error_removed, stream_error_replaced};

pub(crate) use plan::{Decision, Dice, Direction, Plan};
pub use plan::{FaultPlan, PlanCounts};

/// What to do to a device's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// `<stream:error code=401>` with `<conflict type=device_removed>`, without unlinking.
    #[serde(rename = "stream_error_401")]
    StreamError401,
    /// `<stream:error code=402>`: banned for a time. Clients take the code for one they don't know.
    #[serde(rename = "stream_error_402")]
    StreamError402,
    /// `<stream:error code=403>`: the account is locked. As 402.
    #[serde(rename = "stream_error_403")]
    StreamError403,
    /// `<stream:error code=405>`: the client is too old. As 402.
    #[serde(rename = "stream_error_405")]
    StreamError405,
    /// `<stream:error>` with `<conflict type=replaced>`.
    Conflict,
    /// `<stream:error code=409>`: replaced, in the other form.
    #[serde(rename = "stream_error_409")]
    StreamError409,
    /// `<stream:error code=429>`: too many.
    #[serde(rename = "stream_error_429")]
    StreamError429,
    /// `<stream:error code=500>`: a fault of the server.
    #[serde(rename = "stream_error_500")]
    StreamError500,
    /// `<stream:error code=503>`: service unavailable.
    #[serde(rename = "stream_error_503")]
    StreamError503,
    /// `<stream:error code=515>`: restart.
    #[serde(rename = "stream_error_515")]
    StreamError515,
    /// `<stream:error code=516>`: device removed, without unlinking.
    #[serde(rename = "stream_error_516")]
    StreamError516,
    /// A close frame.
    Close,
    /// The TCP stream ends without a close frame.
    Eof,
    /// Accept what it sends, deliver nothing to it.
    Hold,
    /// Take what it sends over the connection of the moment and answer nothing, keep-alives included: a dead peer behind a live
    /// socket. The device's next connection is heard.
    Mute,
    /// Undo `hold` and `mute`.
    Release,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::StreamError401,
        Self::StreamError402,
        Self::StreamError403,
        Self::StreamError405,
        Self::Conflict,
        Self::StreamError409,
        Self::StreamError429,
        Self::StreamError500,
        Self::StreamError503,
        Self::StreamError515,
        Self::StreamError516,
        Self::Close,
        Self::Eof,
        Self::Hold,
        Self::Mute,
        Self::Release,
    ];

    /// How the connection ends: a last stanza, the reason's name, the manner. `None`: it goes on.
    pub(crate) fn ending(self) -> Option<(Option<Node>, &'static str, Goodbye)> {
        // What clients answer by closing is theirs to close; the rest WhatsApp closes itself.
        let closes = Goodbye::AfterClient;
        Some(match self {
            Self::StreamError401 => (Some(stream_error_removed()), "stream_error_401", closes),
            Self::StreamError402 => (Some(stream_error("402")), "stream_error_402", Goodbye::Close),
            Self::StreamError403 => (Some(stream_error("403")), "stream_error_403", Goodbye::Close),
            Self::StreamError405 => (Some(stream_error("405")), "stream_error_405", Goodbye::Close),
            Self::Conflict => (Some(stream_error_replaced()), "conflict", closes),
            Self::StreamError409 => (Some(stream_error("409")), "stream_error_409", closes),
            Self::StreamError429 => (Some(stream_error("429")), "stream_error_429", Goodbye::Close),
            Self::StreamError500 => (Some(stream_error("500")), "stream_error_500", Goodbye::Close),
            Self::StreamError503 => (Some(stream_error("503")), "stream_error_503", Goodbye::Close),
            Self::StreamError515 => (Some(stream_error("515")), "stream_error_515", closes),
            Self::StreamError516 => (Some(stream_error("516")), "stream_error_516", closes),
            Self::Close => (None, "close", Goodbye::Close),
            Self::Eof => (None, "eof", Goodbye::Drop),
            Self::Hold | Self::Mute | Self::Release => return None,
        })
    }
}

/// Refuse a device's logins.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginFailures {
    /// `reason` of the `<failure>`, 400 to 599. [`LoginFailures::CODES`] are the ones that clients tell apart.
    pub code: u16,
    /// How many logins; all until it is taken back if absent.
    pub times: Option<u32>,
    /// With 402: why the account is banned.
    pub ban_code: Option<u32>,
    /// With 402: for how many seconds.
    pub expire_seconds: Option<u64>,
}

impl LoginFailures {
    /// Unlinked, banned for a time, banned, outdated, refused, throttled, and the server's own troubles.
    pub const CODES: [u16; 8] = [401, 402, 403, 405, 409, 429, 500, 503];

    pub(crate) fn stanza(&self) -> Node {
        let mut failure = NodeBuilder::new("failure").attr("reason", self.code.to_string()).attr("location", "sim");
        if let Some(code) = self.ban_code {
            failure = failure.attr("code", code.to_string());
        }
        if let Some(seconds) = self.expire_seconds {
            failure = failure.attr("expire", seconds.to_string());
        }
        failure.build()
    }
}

/// Refuse a device's messages: they reach nobody.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nacks {
    /// `error` of the ack. [`Nacks::CODES`] are the ones that are known to mean something.
    pub error: u16,
    /// How many messages; all until it is taken back if absent.
    pub times: Option<u32>,
}

impl Nacks {
    /// Too many; time-locked for strangers; not for this account; no such chat; not possible; mailbox full.
    pub const CODES: [u16; 6] = [429, 463, 475, 404, 501, 503];
}

/// Make messages to a device undecryptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Garble {
    /// How many of the next ones, those sent again on request included.
    pub times: u32,
}

/// What is in force for one device.
#[derive(Debug, Default)]
pub(crate) struct DeviceFaults {
    pub(crate) login: Option<LoginFailures>,
    pub(crate) nacks: Option<Nacks>,
    pub(crate) garble: u32,
    /// The connection that is muted.
    pub(crate) muted: Option<u64>,
    /// The plan's throws for this device so far.
    pub(crate) dice: Dice,
}

impl DeviceFaults {
    /// The refusal of a login that comes now.
    pub(crate) fn refuse_login(&mut self) -> Option<Node> {
        let failure = self.login.as_ref()?.stanza();
        if let Some(times) = self.login.as_mut().and_then(|login| login.times.as_mut()) {
            *times -= 1;
            if *times == 0 {
                self.login = None;
            }
        }
        Some(failure)
    }

    /// The refusal of a message that comes now.
    pub(crate) fn refuse_message(&mut self) -> Option<u16> {
        let nacks = self.nacks.as_mut()?;
        let error = nacks.error;
        if let Some(times) = nacks.times.as_mut() {
            *times -= 1;
            if *times == 0 {
                self.nacks = None;
            }
        }
        Some(error)
    }

    /// Whether a message that is delivered now is to be made undecryptable.
    pub(crate) fn garbles(&mut self) -> bool {
        let garbles = self.garble > 0;
        self.garble = self.garble.saturating_sub(1);
        garbles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_faults_has_each_once() {
        // serde knows all variants, and says so.
        let told = serde_json::from_value::<Fault>("none".into()).expect_err("not a fault").to_string();
        let known: Vec<&str> = told.split('`').skip(3).step_by(2).collect();
        let listed: Vec<_> = Fault::ALL.map(|fault| serde_json::to_value(fault).expect("a name")).into();
        assert_eq!(listed, known);
    }
}
