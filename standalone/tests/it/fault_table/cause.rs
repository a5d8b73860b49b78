//! The causes, and what each leads to. `docs/session-status.md` has a line for each that says the same, and what the control API
//! of the simulator can make go wrong is asked of the simulator itself: an order or a setting that nobody put down here fails.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use serde::de::DeserializeOwned;
use serde_json::json;
use simulator::{Fault, FaultPlan, Garble, LoginFailures, Nacks, PhoneSettings};

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    Stream(Fault),
    Login(u16),
    /// 402 without saying until when.
    LoginBanWithoutEnd,
    Nack(u16),
    Garbled,
    /// Garbled, and its author doesn't encrypt it anew.
    IgnoredRetry,
    /// The recipient's phone is switched off.
    PhoneOff,
    Unlinked,
    /// WhatsApp has another static key, and the connection breaks.
    RotatedKey,
}

/// What a session does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing changes: the connection goes on.
    Stays,
    /// It dials again within a moment, and nobody notices.
    Renews,
    /// It dials again by itself, and is connected.
    Returns,
    /// It holds no connection until it is started.
    Ends(&'static str, Option<&'static str>),
}

/// What other tests drive: the name in the document, the file and the test.
const ELSEWHERE: [(&str, &str, &str); 6] = {
    const RUN: (&str, &str) = ("standalone/tests/it/fault_run.rs", "hurt_stanzas_and_cut_sockets_lose_nothing");
    const TAKEN_OVER: (&str, &str) =
        ("simulator/tests/it/faults.rs", "a_second_login_of_the_same_device_replaces_the_first");
    [
        ("plan_drop", RUN.0, RUN.1),
        ("plan_delay", RUN.0, RUN.1),
        ("plan_duplicate", RUN.0, RUN.1),
        ("plan_cut", RUN.0, RUN.1),
        ("plan_late_acks", RUN.0, RUN.1),
        ("second_login", TAKEN_OVER.0, TAKEN_OVER.1),
    ]
};

impl Cause {
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = Fault::ALL.into_iter().map(Self::Stream).collect();
        all.extend(LoginFailures::CODES.map(Self::Login));
        all.push(Self::LoginBanWithoutEnd);
        all.extend(Nacks::CODES.map(Self::Nack));
        all.extend([Self::Garbled, Self::IgnoredRetry, Self::PhoneOff, Self::Unlinked, Self::RotatedKey]);
        all
    }

    /// As the document names it.
    pub fn name(self) -> String {
        match self {
            Self::Stream(fault) => serde_json::to_value(fault).unwrap().as_str().unwrap().to_owned(),
            Self::Login(code) => format!("login_{code}"),
            Self::LoginBanWithoutEnd => "login_402_without_end".into(),
            Self::Nack(code) => format!("nack_{code}"),
            Self::Garbled => "garbled".into(),
            Self::IgnoredRetry => "ignore_retries".into(),
            Self::PhoneOff => "phone_offline".into(),
            Self::Unlinked => "unlinked".into(),
            Self::RotatedKey => "rotate_static_key".into(),
        }
    }

    /// A code or fault without a line here doesn't compile, or fails.
    pub fn then(self) -> Then {
        match self {
            Self::Stream(fault) => match fault {
                Fault::StreamError401 | Fault::StreamError516 => Then::Ends("logged_out", Some("unlinked")),
                Fault::Conflict
                | Fault::StreamError402
                | Fault::StreamError403
                | Fault::StreamError405
                | Fault::StreamError409
                | Fault::StreamError429
                | Fault::StreamError500
                | Fault::StreamError503
                | Fault::Close
                | Fault::Eof
                | Fault::Mute => Then::Returns,
                Fault::StreamError515 => Then::Renews,
                Fault::Hold | Fault::Release => Then::Stays,
            },
            Self::Login(401) | Self::Unlinked => Then::Ends("logged_out", Some("unlinked")),
            Self::Login(402 | 403) | Self::LoginBanWithoutEnd => Then::Ends("banned", None),
            Self::Login(405) => Then::Ends("failed", Some("client_outdated")),
            Self::Login(409) => Then::Ends("failed", Some("login_refused_409")),
            Self::Login(429 | 500 | 503) | Self::RotatedKey => Then::Returns,
            Self::Login(code) => panic!("no line for a login that is refused with {code}"),
            Self::Nack(_) | Self::Garbled | Self::IgnoredRetry | Self::PhoneOff => Then::Stays,
        }
    }

    /// How many of its logins are refused before the outcome.
    pub fn refused_logins(self) -> usize {
        usize::from(matches!(self, Self::Login(_) | Self::LoginBanWithoutEnd))
    }

    /// How long it waits at least before the connection that lasts, and the document's words for that.
    pub fn pause(self) -> Option<(Duration, &'static str)> {
        let (shortest, words) = match self {
            // Of the worker, give or take a fifth.
            Self::Login(429) => (24_000, "after 30 s"),
            Self::Stream(Fault::Conflict | Fault::StreamError409) => (4_000, "after 5 s"),
            // Of the library, give or take a tenth.
            Self::Stream(Fault::StreamError429) => (7_200, "after 8 s"),
            Self::Stream(Fault::Mute) | Self::Login(_) | Self::LoginBanWithoutEnd => return None,
            _ if self.then() == Then::Returns => (900, "after 1 s"),
            _ => return None,
        };
        Some((Duration::from_millis(shortest), words))
    }

    /// Why a message that was refused failed.
    pub fn failure(self) -> Option<&'static str> {
        match self {
            Self::Nack(429) => Some("rate_limited"),
            Self::Nack(463) => Some("reach_out_time_lock"),
            Self::Nack(475) => Some("not_allowed_for_account"),
            Self::Nack(404) => Some("refused_404"),
            Self::Nack(501) => Some("refused_501"),
            Self::Nack(503) => Some("refused_503"),
            Self::Nack(code) => panic!("no line for a message that is refused with {code}"),
            _ => None,
        }
    }
}

/// The document's lines by their causes.
fn document() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("docs/session-status.md")).unwrap();
    let rows = text.lines().filter_map(|line| Some((line.strip_prefix("| `")?.split_once('`')?.0.to_owned(), line)));
    rows.map(|(cause, line)| (cause, line.to_owned())).collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn line_of(document: &[(String, String)], cause: &str) -> String {
    let lines: Vec<_> = document.iter().filter(|(name, _)| name == cause).map(|(_, line)| line).collect();
    assert_eq!(lines.len(), 1, "lines of {cause} in docs/session-status.md");
    lines[0].clone()
}

#[test]
fn the_document_has_a_line_for_each_cause_that_says_the_same() {
    let document = document();
    for cause in Cause::all() {
        let line = line_of(&document, &cause.name());
        let mut words = match cause.then() {
            Then::Stays => vec!["stays `connected`".to_owned(), "keeps the connection".to_owned()],
            Then::Renews => vec!["stays `connected`".to_owned(), "dials again at once".to_owned()],
            Then::Returns => ["`reconnecting`", "`connected`", "dials again"].map(str::to_owned).to_vec(),
            Then::Ends(status, reason) => {
                let said = std::iter::once(status).chain(reason).map(|word| format!("`{word}`"));
                said.chain(["doesn't dial".to_owned()]).collect()
            }
        };
        words.extend(cause.failure().map(|reason| format!("`{reason}`")));
        words.extend(cause.pause().map(|(_, words)| words.to_owned()));
        for word in words {
            assert!(line.contains(&word), "{}: {word} is missing in {line}", cause.name());
        }
    }
    for (cause, file, test) in ELSEWHERE {
        let line = line_of(&document, cause);
        let told = format!("`{file}`");
        assert!(line.contains(&told), "{cause}: {told} is missing in {line}");
        let source = std::fs::read_to_string(root().join(file)).unwrap();
        assert!(source.contains(&format!("async fn {test}(")), "{file} has no test {test}");
    }
    let listed: BTreeSet<String> = document.into_iter().map(|(cause, _)| cause).collect();
    assert_eq!(listed, known(), "the document has lines of its own");
}

/// Every cause that is driven, here or elsewhere.
fn known() -> BTreeSet<String> {
    let elsewhere = ELSEWHERE.iter().map(|(cause, ..)| (*cause).to_owned());
    Cause::all().into_iter().map(Cause::name).chain(elsewhere).collect()
}

#[test]
fn whatever_the_control_api_can_make_go_wrong_has_a_line() {
    let known = known();
    let mut reached = BTreeSet::from(["second_login".to_owned()]);
    for route in simulator::fault_routes() {
        let lines = lines_of(route);
        assert!(!lines.is_empty(), "{route}");
        for line in lines {
            assert!(known.contains(&line), "{route}: no line for {line}");
            reached.insert(line);
        }
    }
    assert_eq!(reached, known, "there is a cause that nothing can bring about");
}

/// The lines about what a route of the control API can make go wrong. One that is new, or has a new setting, fails.
fn lines_of(route: &str) -> Vec<String> {
    let line = |name: &str| vec![name.to_owned()];
    let unknown =
        |setting: &str| -> Vec<String> { panic!("{route} takes {setting}, and no line says what comes of it") };
    match route {
        "/devices/{jid}/fault" => accepted::<Fault>(json!("?")),
        "/devices/{jid}/login-failures" => settings::<LoginFailures>(|setting| match setting {
            "code" => LoginFailures::CODES.map(|code| format!("login_{code}")).to_vec(),
            "ban_code" | "expire_seconds" => line("login_402_without_end"),
            "times" => Vec::new(),
            other => unknown(other),
        }),
        "/devices/{jid}/nacks" => settings::<Nacks>(|setting| match setting {
            "error" => Nacks::CODES.map(|code| format!("nack_{code}")).to_vec(),
            "times" => Vec::new(),
            other => unknown(other),
        }),
        "/devices/{jid}/garble" => settings::<Garble>(|setting| match setting {
            "times" => line("garbled"),
            other => unknown(other),
        }),
        "/fault-plan" => settings::<FaultPlan>(|setting| match setting {
            "drop" | "delay" | "duplicate" | "cut" | "late_acks" => vec![format!("plan_{setting}")],
            "seed" | "longest_delay_ms" | "ack_lateness_ms" => Vec::new(),
            other => unknown(other),
        }),
        "/phones/{phone}" => settings::<PhoneSettings>(|setting| match setting {
            "ignore_retries" => line("ignore_retries"),
            "offline" => line("phone_offline"),
            // What people do.
            "auto_read" | "auto_reply" => Vec::new(),
            other => unknown(other),
        }),
        "/phones/{phone}/companions/{device}" => line("unlinked"),
        "/rotate-static-key" => line("rotate_static_key"),
        other => panic!("{other} makes something go wrong, and no line says what"),
    }
}

fn settings<T: DeserializeOwned>(lines: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    accepted::<T>(json!({ "?": 0 })).iter().flat_map(|setting| lines(setting)).collect()
}

/// The settings, or the words, that an order may consist of: serde says them when it is given another one.
fn accepted<T: DeserializeOwned>(other: serde_json::Value) -> Vec<String> {
    let refusal = serde_json::from_value::<T>(other).err().expect("nothing knows this").to_string();
    assert!(refusal.contains("`?`, expected"), "{refusal}");
    refusal.split('`').skip(3).step_by(2).map(str::to_owned).collect()
}
