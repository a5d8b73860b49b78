//! Names that are ours although nobody knows them: `JWT_SECRET` is meant for us, and would do nothing.
//!
//! Most of a process's environment is other programs' business, so a name that isn't a setting is passed over, unless it is a slip
//! ([`super::layers`]) or of one of these families. A family is in the list if its prefix is that of settings of ours, names what
//! somebody who runs Switchboard would look for, and is set by nobody unasked.
//!
//! **Not in the list**, although settings of ours begin so:
//! - `DATABASE_`, `REDIS_`, `LOG_`, `PUBLIC_`: hosting platforms add their own beside those that we read (`DATABASE_PRIVATE_URL`,
//!   `REDIS_TLS_URL`, `LOG_CHANNEL`).
//! - `AWS_`: set on every machine and in every container of AWS, and read by other tools of it.
//! - `INTERNAL_`, `API_`, `METRICS_`, `TRUSTED_`, `MASTER_`, `HEADER_`, `REQUEST_`, `CONNECTION_`, `LOGIN_`: words of everybody's.
//! - `WHATSAPP_`: what the programs that use this gateway call theirs, and a file of settings is often given to both.
//!
//! A program judges the families that it has settings of: one file of variables may be given to all programs. Where a family belongs
//! to several of them, the names of the others are listed here; a test of `standalone`, which knows all programs, holds that together.

use super::{Group, layers::known};

struct Family {
    prefix: &'static str,
    /// Settings of programs other than those that declare the rest.
    also: &'static [&'static str],
    /// What somebody who looked for something else should know.
    hint: &'static str,
}

const fn family(prefix: &'static str) -> Family {
    Family { prefix, also: &[], hint: "" }
}

const FAMILIES: &[Family] = &[
    Family { hint: "tokens are signed with keys that the control plane makes and keeps itself", ..family("JWT_") },
    family("RATE_LIMIT_"),
    Family { hint: "server, port, user and password stand in the URL", ..family("SMTP_") },
    family("MAIL_"),
    family("EMAIL_"),
    family("WEBHOOK_"),
    family("OUTBOUND_"),
    family("CORS_"),
    family("TLS_"),
    family("INTERNAL_TLS_"),
    Family { hint: "keys of S3 are the settings with AWS_", ..family("OBJECT_STORE_") },
    Family {
        also: &[
            "WORKER_ID",
            "WORKER_LISTEN",
            "WORKER_ENDPOINT",
            "WORKER_CAPACITY",
            "WORKER_ZONE",
            "WORKER_POOL",
            "WORKER_KEY_FILE",
            "WORKER_JOIN_TOKEN",
            "WORKER_ENDPOINT_CIDRS",
        ],
        ..family("WORKER_")
    },
    family("CONTROL_PLANE_"),
    family("DATA_PLANE_"),
    family("SWITCHBOARD_"),
];

/// How their names begin.
pub(super) fn prefixes() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.prefix)
}

/// Why a name that isn't a setting is one of ours all the same: what there is in its family. Nothing if it is somebody else's.
pub(super) fn of_ours(groups: &[Group], name: &str) -> Option<String> {
    let of = |family: &&Family| name.starts_with(family.prefix) && !family.also.contains(&name);
    let family = FAMILIES.iter().find(of)?;
    let settings = groups.iter().flat_map(|group| group.settings).map(|setting| setting.name);
    let mut names: Vec<_> = settings.filter(|name| name.starts_with(family.prefix)).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() || known(groups, name) {
        return None;
    }
    let hint = if family.hint.is_empty() { String::new() } else { format!("; {}", family.hint) };
    let there = if names.len() == 1 { "is" } else { "are" };
    Some(format!("of {} there {there} {}{hint}", family.prefix, listed(&names)))
}

fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Group, Setting, Values, setting::Shown};

    const fn named(name: &'static str) -> Setting {
        Setting { name, about: "", expected: "", default: Shown::Unset, secret: false }
    }

    const GROUP: Group = Group {
        about: &["Some of the families"],
        settings: &[
            named("JWT_ISSUER"),
            named("JWT_AUDIENCE"),
            named("SMTP_URL"),
            named("WORKER_JOIN_TOKEN"),
            named("DATABASE_URL"),
        ],
    };

    fn told(name: &str, text: &str) -> Option<String> {
        let given = [(name.to_owned(), text.to_owned())];
        Values::layered(given, &[GROUP]).err().map(|error| error.to_string())
    }

    #[test]
    fn an_unknown_name_of_a_family_of_ours_stops_the_start_and_says_what_there_is() {
        assert_eq!(
            told("JWT_SECRET", "sentinel").unwrap(),
            "JWT_SECRET in the environment is not a setting: of JWT_ there are JWT_AUDIENCE and JWT_ISSUER; tokens are signed with \
             keys that the control plane makes and keeps itself"
        );
        let smtp = told("SMTP_PASSWORD", "sentinel").unwrap();
        assert!(smtp.contains("of SMTP_ there is SMTP_URL; ") && !smtp.contains("sentinel"), "{smtp}");
        assert!(told("SMTP_PORT", "587").unwrap().contains("SMTP_URL"), "no service's");
        assert!(told("WORKER_TIMEOUT", "5s").unwrap().contains("WORKER_JOIN_TOKEN"));
        assert!(told("JWT_ISUER", "a").unwrap().ends_with("(did you mean JWT_ISSUER?)"), "a slip is told as one");
        assert_eq!(told("JWT_SECRET", " "), None, "an empty value counts as unset");
    }

    #[test]
    fn what_others_set_is_passed_over() {
        for (name, text) in [
            // Kubernetes, of a service named so, and links of Docker.
            ("WORKER_PORT", "tcp://10.0.0.1:7300"),
            ("WORKER_PORT_7300_TCP", "tcp://10.0.0.1:7300"),
            ("WORKER_PORT_7300_TCP_ADDR", "10.0.0.1"),
            ("WORKER_SERVICE_HOST", "10.0.0.1"),
            ("WORKER_SERVICE_PORT_HTTP", "7300"),
            ("SMTP_PORT", "tcp://10.0.0.1:25"),
            ("SMTP_NAME", "/switchboard/smtp"),
            ("SMTP_ENV_PATH", "/bin"),
            // Another program's, in a file of settings for all.
            ("WORKER_CAPACITY", "1"),
            ("WEBHOOK_URL", "https://example.com"),
            ("RATE_LIMIT_MAX", "1"),
            // Hosting platforms'.
            ("DATABASE_PRIVATE_URL", "a"),
            ("JWT", "a"),
            ("MY_JWT_SECRET", "a"),
            ("PATH", "a"),
        ] {
            assert_eq!(told(name, text), None, "{name}");
        }
    }
}
