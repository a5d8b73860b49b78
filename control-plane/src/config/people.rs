//! Settings about people: how they sign up and log in, and how mail reaches them.

use std::{net::SocketAddr, time::Duration};

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
        /// address has an account. `optional` makes it at once and says if the address is taken: it is for development, and can't
        /// be set beside `SMTP_URL`.
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

shared::settings! {
    /// Tokens of people
    ///
    /// What a login gets. Access tokens are JWTs, signed with keys that the control plane makes and keeps itself (`control-plane
    /// rotate-keys` makes another): no key is set. Set the same in every replica. With another issuer or audience the access tokens
    /// that are about are refused, and clients fetch others with their refresh tokens.
    pub struct TokensConfig {
        /// Who signs access tokens: their claim `iss`. Tokens of another issuer are refused.
        JWT_ISSUER issuer: String = Origin::Default("switchboard"), NAMED, named;
        /// Whom they are for: their claim `aud`. Tokens for another audience are refused.
        JWT_AUDIENCE audience: String = Origin::Default("switchboard-api"), NAMED, named;
        /// How long an access token lives.
        JWT_ACCESS_TTL access_ttl: Duration = Origin::Default("15m"), "a time from 1m to 24h",
            |text| Read::read(text).filter(|ttl| (MINUTE..=24 * 60 * MINUTE).contains(ttl));
        /// How long a login lives, however often its refresh token is exchanged; then one logs in again. Logins that are there keep
        /// the end that they have.
        JWT_REFRESH_TTL refresh_ttl: Duration = Origin::Default("720h"), "a time from 1h to 8760h",
            |text| Read::read(text).filter(|ttl| (60 * MINUTE..=8760 * 60 * MINUTE).contains(ttl));
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const NAMED: &str = "a name of 1 to 200 printable ASCII characters without spaces, and a URL if it has a colon";

/// A `StringOrURI` (RFC 7519 §2).
fn named(text: &str) -> Option<String> {
    let plain = text.len() <= 200 && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    (plain && (!text.contains(':') || Url::parse(text).is_ok())).then(|| text.to_owned())
}

/// What contradicts each other.
pub(super) fn check(values: &Values, auth: &AuthConfig, tokens: &TokensConfig) -> Result<(), ConfigError> {
    if values.text("SMTP_URL").is_some() && !auth.verify_email_first {
        return Err(ConfigError::Contradiction(
            "EMAIL_VERIFICATION=optional is for development, without SMTP_URL: an installation that sends mail verifies addresses \
             first, so that signing up tells nobody whether an address has an account"
                .into(),
        ));
    }
    if tokens.refresh_ttl < tokens.access_ttl {
        return Err(ConfigError::Contradiction(
            "JWT_REFRESH_TTL is shorter than JWT_ACCESS_TTL: an access token would outlive its login".into(),
        ));
    }
    Ok(())
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
            PUBLIC, |text| Url::parse(text).ok().filter(|url| {
                // What is linked to is put behind it.
                let rest = url.query().or(url.fragment()).or(url.password());
                matches!(url.scheme(), "http" | "https") && url.has_host() && rest.is_none() && url.username().is_empty()
            });
    }
}

fn where_it_listens(values: &Values) -> Result<Url, ConfigError> {
    let listen: SocketAddr = values.get("LISTEN", http::listen_origin(), ADDRESS, Read::read)?;
    let scheme = if http::has_tls(values) { "https" } else { "http" };
    Url::parse(&format!("{scheme}://{listen}"))
        .map_err(|_| ConfigError::Value { variable: "PUBLIC_URL", expected: PUBLIC })
}
