//! Settings about people: how they sign up and log in, and how mail reaches them.

use std::net::SocketAddr;

use secrecy::SecretString;
use shared::config::{Origin, Read};
use url::Url;

use super::{ADDRESS, ConfigError, Values, http};

shared::settings! {
    /// People
    pub struct AuthConfig {
        /// Whether attempts to log in, sign up and reset passwords are limited, by address and by account. `off` is for tests.
        RATE_LIMIT_AUTH throttle: bool = Origin::Default("on"), "on or off";
        /// `required` makes an account only once its address is shown to be the person's own, and then no answer tells whether an
        /// address has an account. `optional` makes it at once and says if the address is taken.
        EMAIL_VERIFICATION verify_email_first: bool = Origin::Derived(
            "`required` with `SMTP_URL`, else `optional`",
            |values| Ok(values.text("SMTP_URL").is_some()),
        ), "required or optional", |text| match text {
            "required" => Some(true),
            "optional" => Some(false),
            _ => None,
        };
    }
}

const FROM: &str = "a sender such as Switchboard <switchboard@example.com>";
const PUBLIC: &str = "a URL such as https://switchboard.example.com";

shared::settings! {
    /// Mail
    pub struct MailConfig {
        /// `smtps://user:password@host` (TLS), `smtp://user:password@host?tls=required` (STARTTLS) or `smtp://host` (in clear).
        /// Without it nothing is sent: links are written to the log, once, under the target `control_plane::mail`, for
        /// development.
        SMTP_URL smtp_url: Option<SecretString> = Origin::Optional, "a URL such as smtps://user:password@smtp.example.com",
            |text| {
                let url = Url::parse(text).ok().filter(Url::has_host)?;
                matches!(url.scheme(), "smtp" | "smtps").then(|| Some(text.into()))
            };
        /// The sender of mails.
        MAIL_FROM from: String = Origin::Derived("`Switchboard <switchboard@localhost>`; must be set with `SMTP_URL`", |values| {
            if values.text("SMTP_URL").is_some() {
                return Err(ConfigError::Value { variable: "MAIL_FROM", expected: FROM });
            }
            Ok("Switchboard <switchboard@localhost>".to_owned())
        }), FROM, |text| text.parse::<lettre::message::Mailbox>().ok().map(|_| text.to_owned());
        /// Where people reach this installation, for links in mails. If it is https, browsers are told to come back by https only.
        PUBLIC_URL public_url: Url = Origin::Derived("`http://` (`https://` with `TLS_CERT`) and `LISTEN`", where_it_listens),
            PUBLIC, |text| Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    }
}

fn where_it_listens(values: &Values) -> Result<Url, ConfigError> {
    let listen: SocketAddr = values.get("LISTEN", http::listen_origin(), ADDRESS, Read::read)?;
    let scheme = if http::has_tls(values) { "https" } else { "http" };
    Url::parse(&format!("{scheme}://{listen}"))
        .map_err(|_| ConfigError::Value { variable: "PUBLIC_URL", expected: PUBLIC })
}
