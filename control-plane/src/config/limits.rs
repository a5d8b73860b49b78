//! Settings about how often callers may ask, and about Redis.

use secrecy::SecretString;

use super::{ConfigError, Environment};
use crate::limits::policy::Rate;

/// How often callers may ask. Each is `off`, or requests in a minute and at once, such as `600:60`.
#[derive(Debug, Clone, Copy)]
pub struct RateLimitConfig {
    /// `RATE_LIMIT_KEY`: one API key or person. Default `1200:200`.
    pub key: Option<Rate>,
    /// `RATE_LIMIT_TENANT`: all keys and people of a tenant together. Default `3000:500`.
    pub tenant: Option<Rate>,
    /// `RATE_LIMIT_ADDRESS`: one address, of requests without credentials that hold. Default `300:60`.
    pub address: Option<Rate>,
}

impl RateLimitConfig {
    /// Nothing is limited.
    pub const OFF: Self = Self { key: None, tenant: None, address: None };

    pub(super) fn from_env(env: &Environment) -> Result<Self, ConfigError> {
        Ok(Self {
            key: rate(env, "RATE_LIMIT_KEY", Rate { per_minute: 1200, burst: 200 })?,
            tenant: rate(env, "RATE_LIMIT_TENANT", Rate { per_minute: 3000, burst: 500 })?,
            address: rate(env, "RATE_LIMIT_ADDRESS", Rate { per_minute: 300, burst: 60 })?,
        })
    }
}

fn rate(env: &Environment, variable: &'static str, default: Rate) -> Result<Option<Rate>, ConfigError> {
    match env.text(variable) {
        Some("off") => Ok(None),
        _ => Ok(Some(
            env.parsed(variable, "off, or requests in a minute and at once, such as 600:60")?.unwrap_or(default),
        )),
    }
}

/// Redis, which replicas share for speed.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// `REDIS_URL`: `redis://user:password@host:6379/0`, or `rediss://` with TLS. Default: none, and all is right without it, only
    /// slower.
    pub url: Option<SecretString>,
}

impl RedisConfig {
    pub(super) fn from_env(env: &Environment) -> Result<Self, ConfigError> {
        const EXPECTED: &str = "a URL such as redis://user:password@host:6379/0";
        let url = env.text("REDIS_URL");
        if url.is_some_and(|url| ::redis::parse_redis_url(url).is_none()) {
            return Err(ConfigError { variable: "REDIS_URL", expected: EXPECTED });
        }
        Ok(Self { url: url.map(SecretString::from) })
    }
}
