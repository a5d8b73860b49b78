//! Settings of the control plane, one struct for each concern, read once at start ([`shared::config`] says how).

mod http;
mod limits;
mod objects;
mod people;

pub use http::{HttpConfig, InternalConfig};
use ipnet::IpNet;
pub use limits::{RateLimit, RateLimitConfig, RedisConfig};
pub use objects::ObjectsConfig;
pub use people::{AuthConfig, MailConfig, TokensConfig};
use secrecy::{ExposeSecret, SecretString};
pub use shared::config::{ConfigError, LogConfig, Values};
use shared::{
    config::{Group, Origin, Read},
    seal::DataKey,
};
use url::Url;

use crate::{keys, webhooks};

macro_rules! config {
    ($($(#[$doc:meta])+ $field:ident: $type:ty,)+) => {
        /// Everything that a control-plane process can be told, but how it logs ([`LogConfig`]).
        #[derive(Debug, Clone)]
        pub struct Config { $($(#[$doc])+ pub $field: $type,)+ }

        impl Config {
            /// What can be set.
            pub const GROUPS: &'static [Group] = &[$(<$type>::GROUP,)+ LogConfig::GROUP];

            /// Reads all of it.
            ///
            /// # Errors
            /// [`ConfigError`], which names the first setting that is missing, can't be read or contradicts another.
            pub fn read(values: &Values) -> Result<Self, ConfigError> {
                let config = Self { $($field: <$type>::read(values)?,)+ };
                http::check(values)?;
                people::check(values, &config.auth, &config.tokens)?;
                limits::check(values)?;
                objects::check(&config.objects)?;
                values.needs("WEBHOOK_URL", "API_KEY")?;
                values.needs("WEBHOOK_SECRET", "WEBHOOK_URL")?;
                Ok(config)
            }
        }
    };
}

config! {
    /// Where tenants' programs connect.
    http: HttpConfig,
    /// Where workers connect.
    internal: InternalConfig,
    /// The database.
    database: DatabaseConfig,
    /// Secrets of the installation.
    secrets: SecretsConfig,
    /// Calls to URLs that tenants choose.
    outbound: OutboundConfig,
    /// Signing up and logging in.
    auth: AuthConfig,
    /// The tokens of a login.
    tokens: TokensConfig,
    /// Mail to people.
    mail: MailConfig,
    /// Files that are too large for the database.
    objects: ObjectsConfig,
    /// The tenant of `API_KEY`.
    bootstrap: BootstrapConfig,
    /// How often callers may ask.
    rate_limits: RateLimitConfig,
    /// What replicas share for speed.
    redis: RedisConfig,
}

impl Config {
    /// What is set in this process's environment and file.
    ///
    /// # Errors
    /// [`ConfigError`] for what isn't a setting.
    pub fn values() -> Result<Values, ConfigError> {
        Values::of_process(Self::GROUPS)
    }
}

shared::settings! {
    /// Database
    pub struct DatabaseConfig {
        /// The control plane's database: `sqlite://file?mode=rwc` or `postgres://user:password@host/database`.
        DATABASE_URL url: SecretString = Origin::Required,
            "a URL such as sqlite://switchboard.db or postgres://user@host/database",
            |text| {
                let known = ["sqlite:", "postgres:", "postgresql:"].iter().any(|scheme| text.starts_with(scheme));
                known.then(|| text.into())
            };
        /// How many connections a process holds at most.
        DATABASE_POOL_SIZE pool_size: u32 = Origin::Default("20"), "a number of connections from 2 to 1000",
            |text| text.parse().ok().filter(|size| (2..=1000).contains(size));
    }
}

shared::settings! {
    /// Secrets
    pub struct SecretsConfig {
        /// Seals every secret at rest. Make one with `openssl rand -base64 32`, and keep a copy: without it the database is worth
        /// nothing.
        MASTER_KEY master_key: SecretString = Origin::Required, "32 bytes in base64 (openssl rand -base64 32)",
            |text| DataKey::from_base64(text).ok().map(|_| text.into());
    }
}

shared::settings! {
    /// Calls to tenants' URLs
    pub struct OutboundConfig {
        /// Networks that webhooks may reach although they aren't public.
        OUTBOUND_ALLOW_CIDRS allow_cidrs: Vec<IpNet> = Origin::Default(""), CIDRS;
        /// Ports that they may reach besides 80 and 443.
        OUTBOUND_ALLOW_PORTS allow_ports: Vec<u16> = Origin::Default("8080,8443"), "port numbers, with commas between them",
            |text| Vec::read(text).filter(|ports: &Vec<u16>| !ports.contains(&0));
    }
}

shared::settings! {
    /// An account from settings
    ///
    /// For small installations: a tenant named `default` without people, used with this key. Another key takes the place of the one
    /// before.
    pub struct BootstrapConfig {
        /// The tenant's API key, which may do everything that keys may. Make one with `control-plane new-api-key`.
        API_KEY api_key: Option<SecretString> = Origin::Optional, "a key that control-plane new-api-key printed",
            |text| keys::token::is_one(text).then(|| Some(text.into()));
        /// Where the tenant's events are posted, all of them. Each start sets it anew.
        WEBHOOK_URL webhook_url: Option<Url> = Origin::Optional, "a URL such as https://example.com/hook",
            |text| Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host()).map(Some);
        /// What they are signed with (Standard Webhooks). Make one with `echo whsec_$(openssl rand -base64 32)`. Without it one is
        /// made and kept sealed, and `POST /api/v1/webhooks/{id}/rotate-secret` with `API_KEY` makes another and shows it, once (`GET
        /// /api/v1/webhooks` gives the id); restarts leave that as it is.
        WEBHOOK_SECRET webhook_secret: Option<SecretString> = Origin::Optional, "whsec_ and 32 bytes in base64",
            |text| webhooks::service::is_secret(text).then(|| Some(text.into()));
    }
}

/// The master key of these settings.
///
/// # Errors
/// [`ConfigError`] if it isn't one.
pub(crate) fn master_key(secrets: &SecretsConfig) -> Result<DataKey, ConfigError> {
    DataKey::from_base64(secrets.master_key.expose_secret()).map_err(|_| ConfigError::Value {
        variable: "MASTER_KEY",
        expected: "32 bytes in base64 (openssl rand -base64 32)",
    })
}

const ADDRESS: &str = "an address and a port such as 127.0.0.1:8080";
const CIDRS: &str = "networks such as 10.0.0.0/8, with commas between them";

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn read(changes: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let mut variables = HashMap::from([
            ("DATABASE_URL", "sqlite://a.db"),
            ("MASTER_KEY", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="),
            ("WORKER_JOIN_TOKEN", "sixteen-or-more-characters"),
        ]);
        variables.extend(changes.iter().copied());
        let variables = variables.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned()));
        Config::read(&Values::layered(variables, Config::GROUPS)?)
    }

    #[test]
    fn the_defaults_listen_on_loopback_only() {
        let config = read(&[]).unwrap();
        assert!(config.http.listen.ip().is_loopback());
        assert!(config.internal.listen.ip().is_loopback());
        assert!(config.outbound.allow_cidrs.is_empty());
        assert_eq!(config.outbound.allow_ports, [8080, 8443]);
        assert!(config.http.shutdown_delay.is_zero());
        assert_eq!(config.mail.public_url.as_str(), "http://127.0.0.1:8080/");
    }

    #[test]
    fn an_empty_value_counts_as_unset() {
        assert_eq!(read(&[("LISTEN", " "), ("PORT", "9090")]).unwrap().http.listen.to_string(), "0.0.0.0:9090");
        assert_eq!(read(&[("MASTER_KEY", "")]).unwrap_err().variable(), Some("MASTER_KEY"));
    }

    #[test]
    fn with_mail_an_address_has_to_be_verified_first_unless_said_otherwise() {
        assert!(!read(&[]).unwrap().auth.verify_email_first);
        assert_eq!(read(&[("SMTP_URL", "smtp://localhost:25")]).unwrap_err().variable(), Some("MAIL_FROM"));
        let mail = [("SMTP_URL", "smtp://localhost:25"), ("MAIL_FROM", "a@example.com")];
        assert!(read(&mail).unwrap().auth.verify_email_first);
        assert!(read(&[("EMAIL_VERIFICATION", "required")]).unwrap().auth.verify_email_first, "also in development");
        let [url, from] = mail;
        let told = read(&[url, from, ("EMAIL_VERIFICATION", "optional")]).unwrap_err().to_string();
        assert!(told.contains("EMAIL_VERIFICATION=optional") && told.contains("SMTP_URL"), "{told}");
    }

    #[test]
    fn tokens_are_as_their_settings_say() {
        let tokens = read(&[]).unwrap().tokens;
        assert_eq!((tokens.issuer.as_str(), tokens.audience.as_str()), ("switchboard", "switchboard-api"));
        let day = std::time::Duration::from_secs(24 * 3600);
        assert_eq!((tokens.access_ttl, tokens.refresh_ttl), (day / 96, day * 30));
        let tokens = read(&[
            ("JWT_ISSUER", "https://id.example.com/"),
            ("JWT_AUDIENCE", "ours"),
            ("JWT_ACCESS_TTL", "24h"),
            ("JWT_REFRESH_TTL", "24h"),
        ]);
        let tokens = tokens.unwrap().tokens;
        assert_eq!((tokens.issuer.as_str(), tokens.audience.as_str()), ("https://id.example.com/", "ours"));
        assert_eq!((tokens.access_ttl, tokens.refresh_ttl), (day, day));
        let told = read(&[("JWT_SECRET", "sentinel")]).unwrap_err().to_string();
        for part in ["JWT_SECRET", "JWT_ISSUER and JWT_REFRESH_TTL", "keys that the control plane makes"] {
            assert!(told.contains(part) && !told.contains("sentinel"), "{told}");
        }
        let told = read(&[("RATE_LIMIT_MAX", "1")]).unwrap_err().to_string();
        assert!(told.contains("RATE_LIMIT_ADDRESS, RATE_LIMIT_AUTH, RATE_LIMIT_KEY and RATE_LIMIT_TENANT"), "{told}");
    }

    #[test]
    fn a_key_and_a_url_are_enough_for_an_account() {
        let key = keys::new_key(shared::wire::session::Network::Sandbox);
        let bootstrap =
            read(&[("API_KEY", key.expose_secret()), ("WEBHOOK_URL", "https://a.example")]).unwrap().bootstrap;
        assert!(bootstrap.webhook_url.is_some() && bootstrap.webhook_secret.is_none());
    }

    #[test]
    fn settings_that_contradict_each_other_stop_the_start() {
        for contradiction in [
            &[("LISTEN", "127.0.0.1:8080"), ("PORT", "9090")][..],
            &[("TLS_CERT", "a.pem")],
            &[("TLS_KEY", "a.pem")],
            &[("TLS_CLIENT_CA", "a.pem")],
            &[("INTERNAL_TLS_CERT", "a.pem")],
            &[("INTERNAL_TLS_CLIENT_CA", "a.pem")],
            &[("CORS_ORIGIN", "https://a.example,*")],
            &[("REDIS_TLS_CA", "a.pem")],
            &[("REDIS_TLS_CA", "a.pem"), ("REDIS_URL", "redis://localhost")],
            &[("REDIS_TLS_CERT", "a.pem"), ("REDIS_URL", "rediss://localhost")],
            &[("REDIS_TLS_KEY", "a.pem"), ("REDIS_URL", "rediss://localhost")],
            &[("WEBHOOK_URL", "https://a.example")],
            &[("AWS_ENDPOINT", "http://127.0.0.1:9000"), ("OBJECT_STORE_URL", "s3://bucket")],
            &[("JWT_REFRESH_TTL", "2h"), ("JWT_ACCESS_TTL", "3h")],
            &[("EMAIL_VERIFICATION", "optional"), ("SMTP_URL", "smtp://localhost"), ("MAIL_FROM", "a@example.com")],
            &[("WEBHOOK_SECRET", "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")],
        ] {
            let error = read(contradiction).unwrap_err();
            assert!(error.to_string().contains(contradiction[0].0), "{error}");
        }
        read(&[("LISTEN", "127.0.0.1:9090"), ("PORT", "9090")]).unwrap();
        read(&[("TLS_CERT", "a.pem"), ("TLS_KEY", "b.pem"), ("TLS_CLIENT_CA", "c.pem")]).unwrap();
    }

    #[test]
    fn a_setting_that_is_almost_one_of_ours_stops_the_start() {
        let error = read(&[("DATABSE_POOL_SIZE", "sentinel")]).unwrap_err().to_string();
        assert!(error.contains("did you mean DATABASE_POOL_SIZE?") && !error.contains("sentinel"), "{error}");
    }

    #[test]
    fn a_bad_value_is_told_by_its_variable_and_never_shown() {
        for (variable, value) in [
            ("LISTEN", "sentinel"),
            ("PORT", "sentinel"),
            ("DATABASE_URL", "mysql://user:sentinel@host"),
            ("MASTER_KEY", "sentinel"),
            ("WORKER_JOIN_TOKEN", "sentinel"),
            ("WORKER_ENDPOINT_CIDRS", "10.0.0.0/8, sentinel"),
            ("INTERNAL_ALLOW_CIDRS", "10.0.0.0/8, sentinel"),
            ("OUTBOUND_ALLOW_PORTS", "80, sentinel"),
            ("BODY_LIMIT_BYTES", "-1"),
            ("HEADER_LIMIT_BYTES", "1"),
            ("REQUEST_TIMEOUT", "sentinel"),
            ("HEADER_TIMEOUT", "0s"),
            ("SHUTDOWN_DELAY", "sentinel"),
            ("SHUTDOWN_DELAY", "11m"),
            ("CORS_ORIGIN", "https://a.example/sentinel"),
            ("CORS_ORIGIN", "https://*.sentinel.example"),
            ("DATABASE_POOL_SIZE", "1"),
            ("TRUSTED_PROXIES", "sentinel"),
            ("RATE_LIMIT_AUTH", "sentinel"),
            ("EMAIL_VERIFICATION", "sentinel"),
            ("JWT_ISSUER", "senti nel"),
            ("JWT_ISSUER", "://sentinel"),
            ("JWT_AUDIENCE", "sentin\u{e9}l"),
            ("JWT_ACCESS_TTL", "59s"),
            ("JWT_ACCESS_TTL", "25h"),
            ("JWT_REFRESH_TTL", "59m"),
            ("JWT_REFRESH_TTL", "8761h"),
            ("SMTP_URL", "http://user:sentinel@host"),
            ("MAIL_FROM", "sentinel"),
            ("PUBLIC_URL", "ftp://sentinel"),
            ("PUBLIC_URL", "https://a.example/?sentinel"),
            ("PUBLIC_URL", "https://a.example/#sentinel"),
            ("PUBLIC_URL", "https://sentinel@a.example/"),
            ("OUTBOUND_ALLOW_PORTS", "0"),
            ("REDIS_URL", "sentinel"),
            ("REDIS_URL", "rediss://user:sentinel@host/#insecure"),
            ("REDIS_TIMEOUT", "1ms"),
            ("API_KEY", "sb_live_sentinel"),
            ("WEBHOOK_URL", "sentinel"),
            ("WEBHOOK_SECRET", "whsec_sentinel"),
        ] {
            let error = read(&[(variable, value)]).unwrap_err();
            assert_eq!(error.variable(), Some(variable));
            let told = format!("{error} {error:?}");
            assert!(told.contains(variable) && !told.contains("sentinel"), "{told}");
        }
    }
}
