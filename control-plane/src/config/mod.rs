//! Settings of the control plane, one struct for each concern, read once at start.
//!
//! Values come from the environment. An empty value counts as unset; a value that can't be read stops the start with a
//! sentence that names the variable and never its content.

mod environment;
mod limits;
mod people;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

pub use environment::{ConfigError, Environment};
use ipnet::IpNet;
pub use limits::{RateLimitConfig, RedisConfig};
pub use people::{AuthConfig, MailConfig};
use secrecy::{ExposeSecret, SecretString};
use shared::{seal::DataKey, telemetry::LogFormat};

/// Everything that a control-plane process can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where tenants' programs connect.
    pub http: HttpConfig,
    /// Where workers connect.
    pub internal: InternalConfig,
    /// The database.
    pub database: DatabaseConfig,
    /// Secrets of the installation.
    pub secrets: SecretsConfig,
    /// Calls to URLs that tenants choose.
    pub outbound: OutboundConfig,
    /// Signing up and logging in.
    pub auth: AuthConfig,
    /// Mail to people.
    pub mail: MailConfig,
    /// How often callers may ask.
    pub rate_limits: RateLimitConfig,
    /// What replicas share for speed.
    pub redis: RedisConfig,
}

impl Config {
    /// Reads all of it.
    ///
    /// # Errors
    /// [`ConfigError`], which names the first variable that is missing or can't be read.
    pub fn from_env(env: &Environment) -> Result<Self, ConfigError> {
        let http = HttpConfig::from_env(env)?;
        let mail = MailConfig::from_env(env, http.listen)?;
        Ok(Self {
            auth: AuthConfig::from_env(env, mail.smtp_url.is_some())?,
            mail,
            http,
            internal: InternalConfig::from_env(env)?,
            database: DatabaseConfig::from_env(env)?,
            secrets: SecretsConfig::from_env(env)?,
            outbound: OutboundConfig::from_env(env)?,
            rate_limits: RateLimitConfig::from_env(env)?,
            redis: RedisConfig::from_env(env)?,
        })
    }
}

/// The public listener.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// `LISTEN`, or `0.0.0.0:$PORT`. Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// `BODY_LIMIT_BYTES`: the largest request body. Default 1 MiB.
    pub body_limit: usize,
    /// `TRUSTED_PROXIES`: networks whose `X-Forwarded-For` is believed. Default: none.
    pub trusted_proxies: Vec<IpNet>,
}

impl HttpConfig {
    fn from_env(env: &Environment) -> Result<Self, ConfigError> {
        let listen = match (env.parsed("LISTEN", ADDRESS)?, env.parsed::<u16>("PORT", "a port number")?) {
            (Some(listen), _) => listen,
            (None, Some(port)) => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            (None, None) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
        };
        let body_limit = env.parsed("BODY_LIMIT_BYTES", "a number of bytes")?.unwrap_or(1 << 20);
        let trusted_proxies = env.list("TRUSTED_PROXIES", CIDRS)?.unwrap_or_default();
        Ok(Self { listen, body_limit, trusted_proxies })
    }
}

/// The listener for workers.
#[derive(Debug, Clone)]
pub struct InternalConfig {
    /// `INTERNAL_LISTEN`. Default `127.0.0.1:8081`.
    pub listen: SocketAddr,
    /// `WORKER_JOIN_TOKEN`: what a worker shows once, when it joins for the first time.
    pub join_token: SecretString,
    /// `WORKER_ENDPOINT_CIDRS`: where workers' endpoints may lie. Default: loopback.
    pub worker_endpoint_cidrs: Vec<IpNet>,
}

impl InternalConfig {
    fn from_env(env: &Environment) -> Result<Self, ConfigError> {
        let listen = env
            .parsed("INTERNAL_LISTEN", ADDRESS)?
            .unwrap_or_else(|| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081));
        let join_token = env.secret("WORKER_JOIN_TOKEN", "a secret of 16 characters or more")?;
        if join_token.expose_secret().len() < 16 {
            return Err(ConfigError { variable: "WORKER_JOIN_TOKEN", expected: "a secret of 16 characters or more" });
        }
        let worker_endpoint_cidrs = match env.list("WORKER_ENDPOINT_CIDRS", CIDRS)? {
            Some(nets) => nets,
            None => loopback(),
        };
        Ok(Self { listen, join_token, worker_endpoint_cidrs })
    }
}

fn loopback() -> Vec<IpNet> {
    ["127.0.0.0/8", "::1/128"].iter().filter_map(|net| net.parse().ok()).collect()
}

/// The database.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// `DATABASE_URL`: `sqlite://file` or `postgres://…`.
    pub url: SecretString,
    /// `DATABASE_POOL_SIZE`. Default 20.
    pub pool_size: u32,
}

impl DatabaseConfig {
    fn from_env(env: &Environment) -> Result<Self, ConfigError> {
        const EXPECTED: &str = "a URL such as sqlite://switchboard.db or postgres://user@host/database";
        let url = env.secret("DATABASE_URL", EXPECTED)?;
        if !["sqlite:", "postgres:", "postgresql:"].iter().any(|scheme| url.expose_secret().starts_with(scheme)) {
            return Err(ConfigError { variable: "DATABASE_URL", expected: EXPECTED });
        }
        let pool_size: u32 = env.parsed("DATABASE_POOL_SIZE", "a number of connections from 2 to 1000")?.unwrap_or(20);
        if !(2..=1000).contains(&pool_size) {
            let expected = "a number of connections from 2 to 1000";
            return Err(ConfigError { variable: "DATABASE_POOL_SIZE", expected });
        }
        Ok(Self { url, pool_size })
    }
}

/// Secrets of the installation.
#[derive(Debug, Clone)]
pub struct SecretsConfig {
    /// `MASTER_KEY`: 32 bytes in base64.
    pub master_key: SecretString,
}

impl SecretsConfig {
    fn from_env(env: &Environment) -> Result<Self, ConfigError> {
        const EXPECTED: &str = "32 bytes in base64 (openssl rand -base64 32)";
        let master_key = env.secret("MASTER_KEY", EXPECTED)?;
        DataKey::from_base64(master_key.expose_secret())
            .map_err(|_| ConfigError { variable: "MASTER_KEY", expected: EXPECTED })?;
        Ok(Self { master_key })
    }
}

/// Calls to URLs that tenants choose.
#[derive(Debug, Clone)]
pub struct OutboundConfig {
    /// `OUTBOUND_ALLOW_CIDRS`: addresses that are allowed although they aren't public. Default: none.
    pub allow_cidrs: Vec<IpNet>,
    /// `OUTBOUND_ALLOW_PORTS`: ports allowed besides 80 and 443. Default: 8080, 8443.
    pub allow_ports: Vec<u16>,
}

impl OutboundConfig {
    fn from_env(env: &Environment) -> Result<Self, ConfigError> {
        Ok(Self {
            allow_cidrs: env.list("OUTBOUND_ALLOW_CIDRS", CIDRS)?.unwrap_or_default(),
            allow_ports: env
                .list("OUTBOUND_ALLOW_PORTS", "port numbers, with commas between them")?
                .unwrap_or_else(|| vec![8080, 8443]),
        })
    }
}

/// How the process logs. Apart from [`Config`], since logging begins before anything else can fail.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// `LOG_LEVEL`: a level, or a filter such as `info,control_plane=debug`. Default `info`.
    pub level: String,
    /// `LOG_FORMAT`: `text` or `json`. Default `text`.
    pub format: LogFormat,
}

impl LogConfig {
    /// Reads it.
    ///
    /// # Errors
    /// [`ConfigError`] if `LOG_FORMAT` is something else.
    pub fn from_env(env: &Environment) -> Result<Self, ConfigError> {
        let format = match env.text("LOG_FORMAT") {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(_) => return Err(ConfigError { variable: "LOG_FORMAT", expected: "text or json" }),
        };
        Ok(Self { level: env.text("LOG_LEVEL").unwrap_or("info").to_owned(), format })
    }
}

const ADDRESS: &str = "an address and a port such as 127.0.0.1:8080";
const CIDRS: &str = "networks such as 10.0.0.0/8, with commas between them";
