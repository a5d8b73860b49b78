//! Settings about how often callers may ask, and about Redis.

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;
use shared::config::{Origin, Read};

use super::{ConfigError, Values};
use crate::limits::policy::Rate;

const RATE: &str = "off, or requests in a minute and at once, such as 600:60";

shared::settings! {
    /// Rate limits
    pub struct RateLimitConfig {
        /// How often one API key or person may ask: `off`, or requests in a minute, evenly, and at once.
        RATE_LIMIT_KEY key: RateLimit = Origin::Default("1200:200"), RATE;
        /// All keys and people of a tenant together.
        RATE_LIMIT_TENANT tenant: RateLimit = Origin::Default("3000:500"), RATE;
        /// One address, of requests without credentials that hold.
        RATE_LIMIT_ADDRESS address: RateLimit = Origin::Default("300:60"), RATE;
    }
}

impl RateLimitConfig {
    /// Nothing is limited.
    pub const OFF: Self = Self { key: RateLimit(None), tenant: RateLimit(None), address: RateLimit(None) };
}

/// A rate, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit(pub Option<Rate>);

impl Read for RateLimit {
    fn read(text: &str) -> Option<Self> {
        if text == "off" { Some(Self(None)) } else { text.parse().ok().map(|rate| Self(Some(rate))) }
    }
}

shared::settings! {
    /// Redis
    pub struct RedisConfig {
        /// Redis, which replicas share for speed, with TLS as `rediss://`. All is right without it, only slower.
        REDIS_URL url: Option<SecretString> = Origin::Optional, "a URL such as redis://user:password@host:6379/0", usable;
        /// Certificates, in PEM, one of which must have signed the certificate of Redis. Those of the system, unless said otherwise.
        REDIS_TLS_CA tls_ca: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
        /// The certificate chain that is shown to Redis (mTLS), in PEM.
        REDIS_TLS_CERT tls_cert: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
        /// Its private key, in PEM.
        REDIS_TLS_KEY tls_key: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
        /// How long a request waits for an answer of Redis before it goes on without.
        REDIS_TIMEOUT timeout: Duration = Origin::Default("50ms"), "a time from 10ms to 10s",
            |text| {
                let allowed = Duration::from_millis(10)..=Duration::from_secs(10);
                Duration::read(text).filter(|time| allowed.contains(time))
            };
    }
}

fn usable(text: &str) -> Option<Option<SecretString>> {
    let url = ::redis::parse_redis_url(text)?;
    // The driver's way to say that anybody may be Redis. Nobody may.
    (url.fragment() != Some("insecure")).then(|| Some(text.into()))
}

/// What can't be seen from one setting alone.
pub(super) fn check(values: &Values) -> Result<(), ConfigError> {
    values.needs("REDIS_TLS_CERT", "REDIS_TLS_KEY")?;
    values.needs("REDIS_TLS_KEY", "REDIS_TLS_CERT")?;
    for name in ["REDIS_TLS_CA", "REDIS_TLS_CERT"] {
        if values.text(name).is_some() && !values.text("REDIS_URL").is_some_and(|url| url.starts_with("rediss://")) {
            return Err(ConfigError::Contradiction(format!(
                "{name} is set, which needs REDIS_URL to begin with rediss://"
            )));
        }
    }
    Ok(())
}
