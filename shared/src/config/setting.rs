//! How a setting is declared.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

use super::{ConfigError, Values};
use crate::{ids::WorkerId, networks, telemetry::Rotate};

/// One setting, as the documentation shows it.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name in the environment.
    pub name: &'static str,
    /// What it means.
    pub about: &'static str,
    /// What it must be.
    pub expected: &'static str,
    /// What it is if nobody sets it.
    pub default: Shown,
    /// Whether its value must not be seen.
    pub secret: bool,
}

/// A default, as the documentation shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// It has to be set.
    Required,
    /// It is off.
    Unset,
    /// This text.
    Text(&'static str),
    /// It follows from other settings, in these words.
    Words(&'static str),
}

/// Settings of one concern: what a [`settings!`](crate::settings) block declares.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// The first paragraph of the block's documentation is its title.
    pub about: &'static [&'static str],
    /// The settings.
    pub settings: &'static [Setting],
}

impl Group {
    /// Its title.
    #[must_use]
    pub fn title(&self) -> &'static str {
        self.about.first().map(|line| line.trim()).unwrap_or_default()
    }

    /// What stands below its title.
    #[must_use]
    pub fn text(&self) -> String {
        self.about.iter().skip(1).map(|line| line.trim()).collect::<Vec<_>>().join(" ").trim().to_owned()
    }
}

/// Where a value comes from that nobody set.
#[derive(Clone, Copy)]
pub enum Origin<T> {
    /// Nowhere: it has to be set.
    Required,
    /// It is `None` then.
    Optional,
    /// This text, read like any other.
    Default(&'static str),
    /// It follows from other settings; in words, and how.
    Derived(&'static str, fn(&Values) -> Result<T, ConfigError>),
}

impl<T> Origin<T> {
    /// For the documentation.
    #[must_use]
    pub const fn shown(&self) -> Shown {
        match self {
            Self::Required => Shown::Required,
            Self::Optional => Shown::Unset,
            Self::Default(text) => Shown::Text(text),
            Self::Derived(words, _) => Shown::Words(words),
        }
    }
}

/// A type that a setting can have.
pub trait Read: Sized {
    /// Whether its value must not be seen.
    const SECRET: bool = false;

    /// Reads it; nothing if that isn't possible.
    fn read(text: &str) -> Option<Self>;

    /// What it is if nobody set it, for types that have such a value.
    #[must_use]
    fn unset() -> Option<Self> {
        None
    }
}

macro_rules! read_as_from_str {
    ($($type:ty),+ $(,)?) => {$(
        impl Read for $type {
            fn read(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )+};
}
read_as_from_str!(u16, u32, u64, usize, NonZeroU32, SocketAddr, Url, PathBuf, String, WorkerId, Rotate);

impl Read for IpNet {
    fn read(text: &str) -> Option<Self> {
        text.parse().ok().map(networks::canonical)
    }
}

impl Read for bool {
    fn read(text: &str) -> Option<Self> {
        match text {
            "on" | "true" => Some(true),
            "off" | "false" => Some(false),
            _ => None,
        }
    }
}

impl Read for SecretString {
    const SECRET: bool = true;

    fn read(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

/// A number with a unit: `500ms`, `30s`, `5m`, `1h`; seconds without one.
impl Read for Duration {
    fn read(text: &str) -> Option<Self> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u32 = digits.parse().ok()?;
        match &text[digits.len()..] {
            "ms" => Some(Self::from_millis(number.into())),
            "" | "s" => Some(Self::from_secs(number.into())),
            "m" => Some(Self::from_secs(60 * u64::from(number))),
            "h" => Some(Self::from_secs(3600 * u64::from(number))),
            _ => None,
        }
    }
}

/// A version: three numbers with dots between them.
impl Read for (u32, u32, u32) {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(str::parse);
        let (Some(Ok(a)), Some(Ok(b)), Some(Ok(c)), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        Some((a, b, c))
    }
}

impl Read for crate::telemetry::LogFormat {
    fn read(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl<T: Read> Read for Option<T> {
    const SECRET: bool = T::SECRET;

    fn read(text: &str) -> Option<Self> {
        T::read(text).map(Some)
    }

    fn unset() -> Option<Self> {
        Some(None)
    }
}

/// A list with commas.
impl<T: Read> Read for Vec<T> {
    const SECRET: bool = T::SECRET;

    fn read(text: &str) -> Option<Self> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(T::read).collect()
    }

    fn unset() -> Option<Self> {
        Some(Self::new())
    }
}

/// Declares the settings of one concern: `NAME field: Type = origin, "what it must be";`, with its documentation above and,
/// after another comma, how to read it where [`Read`] isn't enough. The struct's documentation begins with the title of
/// its section.
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $variable:ident $field:ident : $type:ty = $origin:expr, $expected:expr $(, $read:expr)?;
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone)]
        pub struct $name {
            $(
                #[doc = concat!("`", stringify!($variable), "`:")]
                $(#[doc = $doc])+
                pub $field: $type,
            )+
        }

        impl $name {
            /// What can be set.
            pub const GROUP: $crate::config::Group = $crate::config::Group {
                about: &[$($about),+],
                settings: &[$({
                    const ORIGIN: $crate::config::Origin<$type> = $origin;
                    $crate::config::Setting {
                        name: stringify!($variable),
                        about: concat!($($doc),+),
                        expected: $expected,
                        default: ORIGIN.shown(),
                        secret: <$type as $crate::config::Read>::SECRET,
                    }
                }),+],
            };

            /// Reads them.
            ///
            /// # Errors
            /// The first that is missing or can't be read.
            pub fn read(values: &$crate::config::Values) -> Result<Self, $crate::config::ConfigError> {
                $(
                    let read: fn(&str) -> Option<$type> =
                        $crate::settings!(@read $type $(, $read)?);
                    let $field = values.get(stringify!($variable), $origin, $expected, read)?;
                )+
                Ok(Self { $($field),+ })
            }
        }
    };
    (@read $type:ty, $read:expr) => { $read };
    (@read $type:ty) => { <$type as $crate::config::Read>::read };
}
