//! What a session's status is: one pure function of what is wanted, what was seen, and who vouches for it.

use std::time::Duration;

use sea_orm::DeriveValueType;
use serde::{Deserialize, Serialize};
use shared::{
    time::Timestamp,
    wire::session::{Desired, Observed},
};
use utoipa::ToSchema;

use super::entity;
use crate::workers::{entity as worker, policy::SUSPECT_AFTER};

/// A frame from WhatsApp is that old at most while a session is shown as connected.
pub const FRAME_LIFE: Duration = Duration::from_secs(50);

/// The states that a session is shown in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Holds no connection, by its owner's wish or because pairing took too long (`pairing_timeout`).
    Stopped,
    /// On its way to a connection; `no_capacity`: no worker has room.
    Starting,
    /// Shows a QR code.
    Pairing,
    /// WhatsApp asks for a passkey.
    PasskeyRequired,
    /// A frame came from WhatsApp within the last 50 s.
    Connected,
    /// Was connected, and dials again.
    Reconnecting,
    /// Unlinked, by the phone or by its owner's wish. Start it to pair again.
    LoggedOut,
    /// WhatsApp banned the account; `until` says for how long, where known.
    Banned,
    /// Can't go on by itself; `reason` says why.
    Failed,
}

impl State {
    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Pairing => "pairing",
            Self::PasskeyRequired => "passkey_required",
            Self::Connected => "connected",
            Self::Reconnecting => "reconnecting",
            Self::LoggedOut => "logged_out",
            Self::Banned => "banned",
            Self::Failed => "failed",
        }
    }
}

/// A state, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, DeriveValueType)]
#[sea_orm(value_type = "String", from_str = "crate::db::from_json", to_str = "crate::db::to_json")]
pub struct Status {
    /// The state.
    pub status: State,
    /// A stable word, where the state alone doesn't say it.
    #[serde(default)]
    pub reason: Option<String>,
    /// Of a ban: when it ends.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

impl Status {
    /// A state that needs no reason.
    #[must_use]
    pub const fn of(status: State) -> Self {
        Self { status, reason: None, until: None }
    }

    fn because(status: State, reason: Option<&str>) -> Self {
        Self { status, reason: reason.map(ToOwned::to_owned), until: None }
    }
}

/// What the status is made from.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What is wanted.
    pub desired: Desired,
    /// Whether it is placed on a worker.
    pub placed: bool,
    /// Whether a store holds state of it.
    pub has_state: bool,
    /// See [`entity::Model::placement_note`].
    pub note: Option<&'a str>,
    /// What its worker last said.
    pub observed: Option<&'a Observed>,
    /// Whether it said so under the present generation.
    pub current: bool,
    /// Whether somebody vouches that frames come in: see [`fresh`].
    pub fresh: bool,
}

impl<'a> Facts<'a> {
    /// The facts about a row whose worker is `holder`.
    #[must_use]
    pub fn of(row: &'a entity::Model, holder: Option<&worker::Model>, now: Timestamp) -> Self {
        Self {
            desired: row.desired.into(),
            placed: row.worker_id.is_some(),
            has_state: row.store_id.is_some(),
            note: row.placement_note.as_deref(),
            observed: row.observed.as_ref().map(|observed| &observed.0),
            current: row.observed_generation == row.generation,
            fresh: fresh(row, holder, now),
        }
    }
}

/// Whether frames come in. A report carries the time of the last frame. A worker also reports as soon as a connected
/// session has been silent for too long, so while the run that reported `connected` is heard, its word stands.
#[must_use]
pub fn fresh(row: &entity::Model, holder: Option<&worker::Model>, now: Timestamp) -> bool {
    let frame = row.last_frame_at.is_some_and(|at| now.since(at) < FRAME_LIFE);
    let vouched = holder.is_some_and(|worker| {
        row.observed_incarnation.as_ref() == Some(&worker.incarnation) && now.since(worker.last_beat_at) < SUSPECT_AFTER
    });
    frame || vouched
}

/// The status to show.
#[must_use]
pub fn status(facts: Facts<'_>) -> Status {
    let seen = facts.observed.filter(|_| facts.current);
    let connected = facts.fresh && facts.placed && matches!(seen, Some(Observed::Connected));
    match facts.desired {
        Desired::Running => running(facts, seen, connected),
        // Until it has let go, it is shown as what it still is.
        _ if connected => Status::of(State::Connected),
        Desired::Stopped => match seen {
            Some(Observed::Stopped { reason }) => Status::because(State::Stopped, reason.as_deref()),
            _ => Status::of(State::Stopped),
        },
        Desired::Deleted if !facts.has_state => Status::because(State::LoggedOut, Some("deleted")),
        Desired::LoggedOut if !facts.has_state => Status::because(State::LoggedOut, facts.note.or(Some("requested"))),
        Desired::LoggedOut | Desired::Deleted => {
            Status::because(State::Starting, if facts.placed { Some("logging_out") } else { facts.note })
        }
    }
}

fn running(facts: Facts<'_>, seen: Option<&Observed>, connected: bool) -> Status {
    if !facts.placed {
        return Status::because(State::Starting, facts.note);
    }
    match seen {
        Some(Observed::Starting | Observed::Stopped { .. } | Observed::Erased { .. }) => Status::of(State::Starting),
        Some(Observed::Connected) if connected => Status::of(State::Connected),
        Some(Observed::Connected | Observed::Reconnecting) => Status::of(State::Reconnecting),
        Some(Observed::Pairing) if facts.fresh => Status::of(State::Pairing),
        Some(Observed::PasskeyRequired) if facts.fresh => Status::of(State::PasskeyRequired),
        Some(Observed::Pairing | Observed::PasskeyRequired) => Status::of(State::Starting),
        Some(Observed::LoggedOut { reason }) => Status::because(State::LoggedOut, Some(reason)),
        Some(Observed::Banned { until }) => {
            Status { status: State::Banned, reason: None, until: until.map(Timestamp::from) }
        }
        Some(Observed::Failed { reason }) => Status::because(State::Failed, Some(reason)),
        // Placed anew, and not heard of since.
        None => match facts.observed {
            Some(Observed::Connected | Observed::Reconnecting) => Status::of(State::Reconnecting),
            _ => Status::of(State::Starting),
        },
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const NEW: Facts<'static> = Facts {
        desired: Desired::Running,
        placed: false,
        has_state: false,
        note: None,
        observed: None,
        current: false,
        fresh: false,
    };
    const PLACED: Facts<'static> = Facts { placed: true, has_state: true, current: true, fresh: true, ..NEW };

    fn word(facts: Facts<'_>) -> String {
        let Status { status, reason, until } = status(facts);
        let mut word = status.as_str().to_owned();
        if let Some(reason) = reason {
            word = format!("{word} {reason}");
        }
        if let Some(until) = until {
            word = format!("{word} {}", until.as_millis());
        }
        word
    }

    #[rstest]
    #[case::not_placed_yet(NEW, "starting")]
    #[case::nowhere_to_run(Facts { note: Some("no_capacity"), ..NEW }, "starting no_capacity")]
    #[case::placed_not_heard(Facts { current: false, ..PLACED }, "starting")]
    #[case::moved_while_connected(Facts { current: false, observed: Some(&Observed::Connected), ..PLACED }, "reconnecting")]
    #[case::claimed(Facts { observed: Some(&Observed::Starting), ..PLACED }, "starting")]
    #[case::shows_a_code(Facts { observed: Some(&Observed::Pairing), ..PLACED }, "pairing")]
    #[case::shows_a_code_unheard(Facts { observed: Some(&Observed::Pairing), fresh: false, ..PLACED }, "starting")]
    #[case::passkey(Facts { observed: Some(&Observed::PasskeyRequired), ..PLACED }, "passkey_required")]
    #[case::frames(Facts { observed: Some(&Observed::Connected), ..PLACED }, "connected")]
    #[case::no_frames(Facts { observed: Some(&Observed::Connected), fresh: false, ..PLACED }, "reconnecting")]
    #[case::an_older_generation_s_word(
        Facts { observed: Some(&Observed::Connected), current: false, ..PLACED }, "reconnecting")]
    #[case::dials(Facts { observed: Some(&Observed::Reconnecting), ..PLACED }, "reconnecting")]
    #[case::let_go_unasked(Facts { observed: Some(&Observed::Stopped { reason: None }), ..PLACED }, "starting")]
    #[case::stopped(
        Facts { desired: Desired::Stopped, placed: false, observed: Some(&Observed::Stopped { reason: None }), ..PLACED },
        "stopped")]
    #[case::stopping(Facts { desired: Desired::Stopped, observed: Some(&Observed::Connected), ..PLACED }, "connected")]
    #[case::stopping_unheard(
        Facts { desired: Desired::Stopped, observed: Some(&Observed::Connected), fresh: false, ..PLACED }, "stopped")]
    #[case::never_started(Facts { desired: Desired::Stopped, ..NEW }, "stopped")]
    #[case::logging_out(
        Facts { desired: Desired::LoggedOut, observed: Some(&Observed::Reconnecting), ..PLACED }, "starting logging_out")]
    #[case::logging_out_connected(
        Facts { desired: Desired::LoggedOut, observed: Some(&Observed::Connected), ..PLACED }, "connected")]
    #[case::logged_out(Facts { desired: Desired::LoggedOut, ..NEW }, "logged_out requested")]
    #[case::logged_out_unconfirmed(
        Facts { desired: Desired::LoggedOut, note: Some("unlink_unconfirmed"), ..NEW }, "logged_out unlink_unconfirmed")]
    #[case::deleted(Facts { desired: Desired::Deleted, ..NEW }, "logged_out deleted")]
    #[case::deleting(Facts { desired: Desired::Deleted, observed: Some(&Observed::Starting), ..PLACED }, "starting logging_out")]
    fn status_is_a_function_of_the_facts(#[case] facts: Facts<'static>, #[case] expected: &str) {
        assert_eq!(word(facts), expected);
    }

    #[test]
    fn ends_are_shown_with_their_reasons() {
        let with = |observed: &Observed| word(Facts { observed: Some(observed), fresh: false, ..PLACED });
        assert_eq!(with(&Observed::LoggedOut { reason: "device_removed".into() }), "logged_out device_removed");
        assert_eq!(with(&Observed::Failed { reason: "client_outdated".into() }), "failed client_outdated");
        assert_eq!(with(&Observed::Banned { until: None }), "banned");
        let until = Timestamp::from_millis(1_800_000_000_000).to_utc();
        assert_eq!(with(&Observed::Banned { until: Some(until) }), "banned 1800000000000");
        let timeout = Observed::Stopped { reason: Some("pairing_timeout".into()) };
        let stopped = Facts { desired: Desired::Stopped, placed: false, observed: Some(&timeout), ..PLACED };
        assert_eq!(word(stopped), "stopped pairing_timeout");
    }

    #[test]
    fn nothing_is_connected_without_a_worker_that_vouches_for_it() {
        let facts = Facts { observed: Some(&Observed::Connected), ..PLACED };
        for facts in
            [Facts { fresh: false, ..facts }, Facts { current: false, ..facts }, Facts { placed: false, ..facts }]
        {
            for desired in [Desired::Running, Desired::Stopped, Desired::LoggedOut, Desired::Deleted] {
                assert_ne!(status(Facts { desired, ..facts }).status, State::Connected);
            }
        }
    }
}
