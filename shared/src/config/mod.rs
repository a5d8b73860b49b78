//! Settings: declared once, read once at start, explained from the same place.
//!
//! A setting is one entry of a [`settings!`](crate::settings) block: its name, its field, its type, its default, what it may
//! be and what it means. From that come the struct that the program works with, the check of its value, its line in
//! `docs/configuration.md` and its line in `.env.example`. Nothing else has to be edited to add one.
//!
//! **Where values come from**, the later above the earlier: the default of the declaration; what a program presets for the
//! parts that it embeds; the file that `CONFIG_FILE` names, in TOML; the environment. An empty value counts as unset. In the
//! file a setting has the same name, in small letters if one likes, and may be split into tables at any `_`:
//! `rate_limit_auth = "off"` is `[rate_limit]` with `auth = "off"`. Lists are lists.
//!
//! **What stops the start**: a value that is missing or can't be read, settings that contradict each other, a name in the
//! file that the program doesn't know (so each program has a file of its own), and a variable of the environment that is almost the
//! name of a setting, or begins as only our settings do (`families` lists them). Other variables are other programs' business. The sentence names the setting and what it must be, never its value: every
//! value may be a secret in the wrong place.

mod document;
mod families;
mod layers;
mod setting;

pub use document::{Chapter, env_example, markdown};
pub use layers::{Source, Values};
pub use setting::{Group, Origin, Read, Setting};

use crate::telemetry::LogFormat;

/// Why settings can't be used. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A setting is missing or can't be read.
    #[error("{variable} must be set to {expected}")]
    Value {
        /// The setting.
        variable: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A name that isn't a setting.
    #[error("{name} in {place} is not a setting{}", hint(*.meant, .family.as_deref()))]
    Unknown {
        /// As it was written.
        name: String,
        /// Where.
        place: Source,
        /// The setting that was meant, by the look of it.
        meant: Option<&'static str>,
        /// The settings whose names begin alike, in words.
        family: Option<String>,
    },
    /// Settings that can't both be meant.
    #[error("{0}")]
    Contradiction(String),
    /// The file of `CONFIG_FILE`.
    #[error("CONFIG_FILE: {0}")]
    File(String),
}

fn hint(meant: Option<&str>, family: Option<&str>) -> String {
    match (meant, family) {
        (Some(name), _) => format!(" (did you mean {name}?)"),
        (None, Some(family)) => format!(": {family}"),
        (None, None) => String::new(),
    }
}

impl ConfigError {
    /// The setting that it is about, if it is about one value.
    #[must_use]
    pub const fn variable(&self) -> Option<&'static str> {
        match self {
            Self::Value { variable, .. } => Some(variable),
            _ => None,
        }
    }
}

crate::settings! {
    /// Logging
    ///
    /// To standard error, or to a file. No secret, phone number, JID or message text is ever logged, at any level.
    pub struct LogConfig {
        /// A level (`error`, `warn`, `info`, `debug`, `trace`), or a filter such as `info,control_plane=debug`. The access log
        /// has the target `access`: `info,access=off` is without it.
        LOG_LEVEL level: String = Origin::Default("info"), "a level such as info, or a filter such as info,access=off",
            |text| crate::telemetry::is_filter(text).then(|| text.to_owned());
        /// The shape of log lines: `text` for people, `json` for machines, one object a line.
        LOG_FORMAT format: LogFormat = Origin::Default("text"), "text or json";
        /// Write log lines to this file instead of standard error; a date is appended to its name when it is rotated.
        LOG_FILE_PATH file: Option<std::path::PathBuf> = Origin::Optional, "the path of a file";
        /// When a new log file is begun: `hourly`, `daily` or `never`, in UTC.
        LOG_FILE_ROTATION rotation: crate::telemetry::Rotate = Origin::Default("daily"), "hourly, daily or never";
        /// How many log files are kept; older ones are deleted.
        LOG_FILE_KEEP keep: usize = Origin::Default("14"), "a number of files from 1 to 10000",
            |text| text.parse().ok().filter(|count| (1..=10_000).contains(count));
    }
}
