//! What the library's signals mean for a session, as a pure state machine.
//!
//! The table of causes is in the simulator's document ("Faults, each injected and observed"): replaced → ask first;
//! logged out, banned, outdated → an end with a reason; 429 at login → our own pause, since the library stops; a lost
//! socket, 503 and 515 → the library comes back by itself.

use std::time::Duration;

use chrono::{DateTime, Utc};
use shared::wire::{
    linking::{Passkey, QrCode},
    session::Observed,
};

use crate::backoff;

/// The longest pause before a session's client is built anew.
const LONGEST_REBUILD: Duration = Duration::from_secs(60);
/// The first and the longest pause after WhatsApp throttled a login.
const THROTTLED: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(900));

/// Something that happened to a session's client.
#[derive(Clone, PartialEq, Eq)]
pub enum Signal {
    /// A code waits to be scanned.
    QrShown(QrCode),
    /// All codes of this attempt are used up.
    QrExhausted,
    /// WhatsApp wants something of the owner's passkey before it links.
    PasskeyAsked(Passkey),
    /// Linking with a passkey came to nothing.
    PasskeyFailed,
    /// A phone linked us. WhatsApp now ends the stream (515) and the library logs in.
    Linked,
    /// Logged in and in sync.
    Connected,
    /// The socket is gone; the library dials again.
    Dropped,
    /// Unlinked. A stable word says why.
    LoggedOut(&'static str),
    /// Another connection of this device took our place; the library stops.
    Replaced,
    /// Banned, until when if WhatsApp says so; the library stops.
    Banned(Option<DateTime<Utc>>),
    /// Our client version is too old; the library stops.
    Outdated,
    /// WhatsApp refused the login with this code, and the library stops.
    Refused(u16),
    /// A write or the hook failed, or the library ended without a word: build anew from the store.
    Broken,
    /// Nothing has come from WhatsApp for longer than a living connection is silent.
    Silent,
    /// Something came again.
    Heard,
    /// Our own name was set.
    Renamed,
    /// Connected for a while without trouble.
    Settled,
}

/// What to do about a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: the library goes on.
    None,
    /// Abort the client without a flush, wait, build another from the store.
    Rebuild(Duration),
    /// Ask the control plane whether the session is still ours.
    Validate,
    /// The client is of no more use. The session rests until it is told something.
    End,
    /// As `End`, and its WhatsApp state is dead: erase it, so that a new start links anew.
    EndAndErase,
    /// Stop of our own accord.
    GiveUp(&'static str),
}

/// A session's state. Never goes back from an end; a new start makes a new machine.
pub struct Machine {
    observed: Observed,
    first_pause: Duration,
    was_connected: bool,
    silent: bool,
    failures: u32,
    throttles: u32,
    qr: Option<QrCode>,
    passkey: Option<Passkey>,
    qr_seq: i64,
}

impl Machine {
    /// A session that is about to dial. `first_pause` is the pause after its first failure.
    #[must_use]
    pub fn new(first_pause: Duration) -> Self {
        Self {
            observed: Observed::Starting,
            first_pause,
            was_connected: false,
            silent: false,
            failures: 0,
            throttles: 0,
            qr: None,
            passkey: None,
            qr_seq: 0,
        }
    }

    /// What the session is.
    #[must_use]
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// The code to scan, while it waits for that.
    #[must_use]
    pub fn qr(&self) -> Option<&QrCode> {
        self.qr.as_ref()
    }

    /// What WhatsApp asks of the owner now.
    #[must_use]
    pub fn passkey(&self) -> Option<&Passkey> {
        self.passkey.as_ref()
    }

    /// Counts the codes shown, while it waits for one to be scanned.
    #[must_use]
    pub fn qr_seq(&self) -> Option<i64> {
        self.qr.is_some().then_some(self.qr_seq)
    }

    /// Takes a signal in.
    pub fn on(&mut self, signal: Signal) -> Effect {
        if self.is_over() {
            return Effect::None;
        }
        match signal {
            // WhatsApp goes on with its references while a passkey is asked for.
            Signal::QrShown(_) if self.passkey.is_some() => {}
            Signal::QrShown(code) => {
                self.qr_seq += 1;
                self.qr = Some(code);
                self.observed = Observed::Pairing;
            }
            Signal::QrExhausted => {
                self.end(Observed::Stopped { reason: Some("pairing_timeout".into()) });
                return Effect::GiveUp("pairing_timeout");
            }
            Signal::PasskeyAsked(asked) => {
                self.qr = None;
                self.passkey = Some(asked);
                self.observed = Observed::PasskeyRequired;
            }
            Signal::PasskeyFailed => {
                self.rest();
                self.failures += 1;
                return Effect::Rebuild(backoff::doubling(self.first_pause, LONGEST_REBUILD, self.failures));
            }
            Signal::Linked => {
                self.qr = None;
                self.passkey = None;
                self.observed = Observed::Starting;
            }
            Signal::Connected => {
                self.was_connected = true;
                self.silent = false;
                self.throttles = 0;
                self.qr = None;
                self.observed = Observed::Connected;
            }
            Signal::Dropped => self.rest(),
            Signal::LoggedOut(reason) => {
                self.end(Observed::LoggedOut { reason: reason.into() });
                return Effect::EndAndErase;
            }
            Signal::Replaced => {
                self.rest();
                return Effect::Validate;
            }
            Signal::Banned(until) => {
                self.end(Observed::Banned { until });
                return Effect::End;
            }
            Signal::Outdated => {
                self.end(Observed::Failed { reason: "client_outdated".into() });
                return Effect::End;
            }
            Signal::Refused(429) => {
                self.rest();
                self.throttles += 1;
                return Effect::Rebuild(backoff::doubling(THROTTLED.0, THROTTLED.1, self.throttles));
            }
            Signal::Refused(code) => {
                self.end(Observed::Failed { reason: format!("login_refused_{code}") });
                return Effect::End;
            }
            Signal::Broken => {
                self.rest();
                self.failures += 1;
                return Effect::Rebuild(backoff::doubling(self.first_pause, LONGEST_REBUILD, self.failures));
            }
            Signal::Silent => {
                if self.observed == Observed::Connected {
                    self.silent = true;
                    self.observed = Observed::Reconnecting;
                }
            }
            Signal::Heard => {
                if self.silent {
                    self.silent = false;
                    self.observed = Observed::Connected;
                }
            }
            Signal::Settled => self.failures = 0,
            Signal::Renamed => {}
        }
        Effect::None
    }

    /// Dials, or waits to.
    fn rest(&mut self) {
        self.silent = false;
        self.qr = None;
        self.passkey = None;
        self.observed = if self.was_connected { Observed::Reconnecting } else { Observed::Starting };
    }

    fn end(&mut self, observed: Observed) {
        self.silent = false;
        self.qr = None;
        self.passkey = None;
        self.observed = observed;
    }

    /// Whether the session came to an end that it doesn't leave by itself.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(
            self.observed,
            Observed::LoggedOut { .. }
                | Observed::Banned { .. }
                | Observed::Failed { .. }
                | Observed::Stopped { .. }
                | Observed::Erased { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const FIRST: Duration = Duration::from_secs(1);

    fn code() -> QrCode {
        QrCode { text: "code".into(), expires_at: DateTime::default() }
    }

    fn connected() -> Machine {
        let mut machine = Machine::new(FIRST);
        assert_eq!(machine.on(Signal::Connected), Effect::None);
        machine
    }

    fn failed(reason: &str) -> Observed {
        Observed::Failed { reason: reason.into() }
    }

    #[rstest]
    #[case::lost(Signal::Dropped, Observed::Reconnecting, Effect::None)]
    #[case::unlinked(Signal::LoggedOut("device_removed"), Observed::LoggedOut { reason: "device_removed".into() }, Effect::EndAndErase)]
    #[case::replaced(Signal::Replaced, Observed::Reconnecting, Effect::Validate)]
    #[case::banned(Signal::Banned(None), Observed::Banned { until: None }, Effect::End)]
    #[case::outdated(Signal::Outdated, failed("client_outdated"), Effect::End)]
    #[case::throttled(Signal::Refused(429), Observed::Reconnecting, Effect::Rebuild(Duration::from_secs(30)))]
    #[case::refused(Signal::Refused(409), failed("login_refused_409"), Effect::End)]
    #[case::broken(Signal::Broken, Observed::Reconnecting, Effect::Rebuild(FIRST))]
    #[case::silent(Signal::Silent, Observed::Reconnecting, Effect::None)]
    #[case::heard(Signal::Heard, Observed::Connected, Effect::None)]
    fn a_connected_session(#[case] signal: Signal, #[case] becomes: Observed, #[case] effect: Effect) {
        let mut machine = connected();
        assert_eq!(machine.on(signal), effect);
        assert_eq!(machine.observed(), &becomes);
    }

    #[test]
    fn pairing_shows_each_code_and_then_connects() {
        let mut machine = Machine::new(FIRST);
        for seq in 1..=3 {
            assert_eq!(machine.on(Signal::QrShown(code())), Effect::None);
            assert_eq!((machine.observed(), machine.qr_seq()), (&Observed::Pairing, Some(seq)));
        }
        machine.on(Signal::Linked);
        assert_eq!((machine.observed(), machine.qr_seq()), (&Observed::Starting, None), "515 is silent");
        assert!(machine.qr().is_none());
        machine.on(Signal::Connected);
        assert_eq!(machine.observed(), &Observed::Connected);
    }

    #[test]
    fn a_passkey_is_asked_for_until_the_phone_links_or_it_comes_to_nothing() {
        let asked = || Passkey::Assertion { request_options: "{}".into() };
        let confirm = || Passkey::Confirmation { code: "ABCD-1234".into() };
        let mut machine = Machine::new(FIRST);
        machine.on(Signal::QrShown(code()));
        machine.on(Signal::PasskeyAsked(asked()));
        machine.on(Signal::QrShown(code()));
        assert_eq!(machine.observed(), &Observed::PasskeyRequired);
        assert!(machine.passkey() == Some(&asked()) && machine.qr().is_none());
        machine.on(Signal::PasskeyAsked(confirm()));
        assert!(machine.passkey() == Some(&confirm()));
        machine.on(Signal::Linked);
        assert!(machine.passkey().is_none());
        assert_eq!(machine.observed(), &Observed::Starting);

        let mut machine = Machine::new(FIRST);
        machine.on(Signal::PasskeyAsked(asked()));
        assert_eq!(machine.on(Signal::PasskeyFailed), Effect::Rebuild(FIRST));
        assert!(machine.passkey().is_none());
    }

    #[test]
    fn unscanned_codes_end_in_a_stop_of_our_own_accord() {
        let mut machine = Machine::new(FIRST);
        machine.on(Signal::QrShown(code()));
        assert_eq!(machine.on(Signal::QrExhausted), Effect::GiveUp("pairing_timeout"));
        assert_eq!(machine.observed(), &Observed::Stopped { reason: Some("pairing_timeout".into()) });
    }

    #[test]
    fn nothing_follows_an_end() {
        let mut machine = connected();
        machine.on(Signal::LoggedOut("unlinked"));
        for late in [Signal::LoggedOut("again"), Signal::Connected, Signal::Broken, Signal::Heard, Signal::Dropped] {
            assert_eq!(machine.on(late), Effect::None);
            assert_eq!(machine.observed(), &Observed::LoggedOut { reason: "unlinked".into() });
        }
    }

    #[test]
    fn a_lost_socket_after_silence_isn_t_healed_by_a_late_frame() {
        let mut machine = connected();
        machine.on(Signal::Silent);
        machine.on(Signal::Dropped);
        machine.on(Signal::Heard);
        assert_eq!(machine.observed(), &Observed::Reconnecting);
    }

    #[test]
    fn rebuilds_slow_down_until_a_quiet_time() {
        let mut machine = connected();
        let pauses: Vec<_> = (0..8)
            .map(|_| match machine.on(Signal::Broken) {
                Effect::Rebuild(pause) => pause.as_secs(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        machine.on(Signal::Connected);
        assert_eq!(
            machine.on(Signal::Broken),
            Effect::Rebuild(Duration::from_secs(60)),
            "connecting alone heals nothing"
        );
        machine.on(Signal::Settled);
        assert_eq!(machine.on(Signal::Broken), Effect::Rebuild(FIRST));
    }
}
