//! Settings about people: how they sign up and log in, and how mail reaches them.

use std::net::SocketAddr;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{ConfigError, Environment};

/// Signing up and logging in.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// `RATE_LIMIT_AUTH`: whether attempts to log in, sign up and reset are limited, by address and by account. `on` (the
    /// default) or `off`, which is for tests.
    pub throttle: bool,
    /// `EMAIL_VERIFICATION`: `required` makes an account only once its address is shown to be the person's own, and then no
    /// answer tells whether an address has an account. `optional` makes it at once and says if the address is taken.
    /// Default: `required` with `SMTP_URL`, `optional` without.
    pub verify_email_first: bool,
}

impl AuthConfig {
    pub(super) fn from_env(env: &Environment, has_smtp: bool) -> Result<Self, ConfigError> {
        let throttle = match env.text("RATE_LIMIT_AUTH") {
            None | Some("on") => true,
            Some("off") => false,
            Some(_) => return Err(ConfigError { variable: "RATE_LIMIT_AUTH", expected: "on or off" }),
        };
        let verify_email_first = match env.text("EMAIL_VERIFICATION") {
            None => has_smtp,
            Some("required") => true,
            Some("optional") => false,
            Some(_) => return Err(ConfigError { variable: "EMAIL_VERIFICATION", expected: "required or optional" }),
        };
        Ok(Self { throttle, verify_email_first })
    }
}

/// Mail to people.
#[derive(Debug, Clone)]
pub struct MailConfig {
    /// `SMTP_URL`: `smtps://user:password@host` (TLS), `smtp://user:password@host?tls=required` (STARTTLS) or `smtp://host` (in
    /// clear). Without it nothing is sent: links are written to the log, once, under the target `control_plane::mail`.
    pub smtp_url: Option<SecretString>,
    /// `MAIL_FROM`: the sender. Default `Switchboard <switchboard@localhost>`; must be set with `SMTP_URL`.
    pub from: String,
    /// `PUBLIC_URL`: where people reach this installation, for links in mails. Default: `http://` and `LISTEN`.
    pub public_url: Url,
}

impl MailConfig {
    pub(super) fn from_env(env: &Environment, listen: SocketAddr) -> Result<Self, ConfigError> {
        const SMTP: &str = "a URL such as smtps://user:password@smtp.example.com";
        const FROM: &str = "a sender such as Switchboard <switchboard@example.com>";
        const PUBLIC: &str = "a URL such as https://switchboard.example.com";
        let smtp_url = env.text("SMTP_URL").map(SecretString::from);
        if let Some(url) = &smtp_url {
            let read = Url::parse(url.expose_secret()).ok().filter(Url::has_host);
            if !read.is_some_and(|url| matches!(url.scheme(), "smtp" | "smtps")) {
                return Err(ConfigError { variable: "SMTP_URL", expected: SMTP });
            }
        }
        let from = match (env.text("MAIL_FROM"), &smtp_url) {
            (Some(from), _) => from.to_owned(),
            (None, Some(_)) => return Err(ConfigError { variable: "MAIL_FROM", expected: FROM }),
            (None, None) => "Switchboard <switchboard@localhost>".to_owned(),
        };
        if from.parse::<lettre::message::Mailbox>().is_err() {
            return Err(ConfigError { variable: "MAIL_FROM", expected: FROM });
        }
        let unreadable = ConfigError { variable: "PUBLIC_URL", expected: PUBLIC };
        let public_url: Url = match env.parsed("PUBLIC_URL", PUBLIC)? {
            Some(url) => url,
            None => Url::parse(&format!("http://{listen}")).map_err(|_| unreadable.clone())?,
        };
        if !matches!(public_url.scheme(), "http" | "https") || !public_url.has_host() {
            return Err(unreadable);
        }
        Ok(Self { smtp_url, from, public_url })
    }
}
