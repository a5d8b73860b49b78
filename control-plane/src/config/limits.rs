//! Settings about how often callers may ask, and about Redis.

use secrecy::SecretString;
use shared::config::{Origin, Read};

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
        REDIS_URL url: Option<SecretString> = Origin::Optional, "a URL such as redis://user:password@host:6379/0",
            |text| ::redis::parse_redis_url(text).map(|_| Some(text.into()));
    }
}
