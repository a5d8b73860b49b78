//! What an operator sets, and what follows from it.
//!
//! Every setting has a name in the environment and a flag of the same meaning. [`Settings`] is what is typed;
//! [`Config`] is what was checked, and what a test or the all-in-one program fills in by hand. Which network a worker
//! speaks to is not a setting: it is decided by which binary runs.

use std::{
    fs, io,
    io::Write,
    net::SocketAddr,
    num::NonZeroU32,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::SecretString;
use shared::{
    identity::{IdentityError, SigningKey},
    ids::WorkerId,
    telemetry::LogFormat,
    wire::session::Network,
};
use url::Url;

/// The most sessions that a worker may be told to take.
pub const MAX_CAPACITY: u32 = 20_000;

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The key file can't be read, or made.
    #[error("WORKER_KEY_FILE can't be read or made: {0}")]
    KeyFile(#[from] io::Error),
    /// The key file holds something else.
    #[error("WORKER_KEY_FILE doesn't hold an Ed25519 key in PKCS#8: {0}")]
    Key(#[from] IdentityError),
}

/// What an operator types.
#[derive(Args)]
pub struct Settings {
    /// This worker's name: 1 to 50 characters of a-z, 0-9 and "-", after normalising.
    #[arg(long, env = "WORKER_ID")]
    worker_id: WorkerId,
    /// Where this worker's API listens.
    #[arg(long, env = "WORKER_LISTEN", default_value = "0.0.0.0:7300")]
    listen: SocketAddr,
    /// Where the control plane reaches this worker's API. Default: http:// and the listening address.
    #[arg(long, env = "WORKER_ENDPOINT")]
    endpoint: Option<Url>,
    /// How many sessions this worker takes.
    #[arg(long, env = "WORKER_CAPACITY", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CAPACITY)))]
    capacity: u32,
    /// Availability zone, for spreading.
    #[arg(long, env = "WORKER_ZONE")]
    zone: Option<String>,
    /// Pool, for plans that own workers.
    #[arg(long, env = "WORKER_POOL")]
    pool: Option<String>,
    /// The control plane's internal listener, such as http://control-plane:7200.
    #[arg(long, env = "CONTROL_PLANE_URL")]
    control_plane: Url,
    /// The token that a worker's first join needs.
    #[arg(long, env = "WORKER_JOIN_TOKEN", hide_env_values = true)]
    join_token: Option<SecretString>,
    /// This worker's Ed25519 key in PKCS#8. Made, readable by its owner only, if there is none.
    #[arg(long, env = "WORKER_KEY_FILE", default_value = "worker.key")]
    key_file: PathBuf,
    /// The data plane's store: sqlite:… or postgres:….
    #[arg(long, env = "DATA_PLANE_DATABASE_URL", hide_env_values = true)]
    database: SecretString,
    /// The most logins that this worker begins in a second.
    #[arg(long, env = "LOGIN_RATE", default_value = "25")]
    login_rate: NonZeroU32,
    /// The WhatsApp Web version to announce, such as 2.3000.1031000000. Default: asked from WhatsApp once a day.
    #[arg(long, env = "WHATSAPP_VERSION", value_parser = parse_version)]
    whatsapp_version: Option<ClientVersion>,
    /// Which log lines to write.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// How log lines look.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

/// [`LogFormat`] on a command line.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// A version of WhatsApp Web: primary, secondary, tertiary.
pub type ClientVersion = (u32, u32, u32);

fn parse_version(text: &str) -> Result<ClientVersion, String> {
    let parts: Vec<u32> = text.split('.').map_while(|part| part.parse().ok()).collect();
    match (parts.as_slice(), text.split('.').count()) {
        (&[primary, secondary, tertiary], 3) => Ok((primary, secondary, tertiary)),
        _ => Err("three numbers with dots between them, such as 2.3000.1031000000".into()),
    }
}

impl Settings {
    /// How many sessions the worker is to take.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The log filter and the shape of log lines.
    #[must_use]
    pub fn logging(&self) -> (&str, LogFormat) {
        let format = match self.log_format {
            Format::Text => LogFormat::Text,
            Format::Json => LogFormat::Json,
        };
        (&self.log_level, format)
    }

    /// Checks the settings, for a binary that speaks to `network`. `ws_url` replaces WhatsApp's address, for the
    /// sandbox.
    ///
    /// # Errors
    /// [`ConfigError`] if the key can't be had.
    pub fn into_config(self, network: Network, ws_url: Option<Url>) -> Result<Config, ConfigError> {
        Ok(Config {
            worker_id: self.worker_id,
            listen: self.listen,
            endpoint: self.endpoint,
            capacity: self.capacity,
            zone: self.zone,
            pool: self.pool,
            control_plane: self.control_plane,
            join_token: self.join_token,
            key: load_or_make_key(&self.key_file)?,
            database: self.database,
            login_rate: self.login_rate,
            network,
            ws_url,
            whatsapp_version: self.whatsapp_version,
            metrics: None,
            timing: Timing::default(),
        })
    }
}

/// What a worker runs with.
pub struct Config {
    /// This worker's name.
    pub worker_id: WorkerId,
    /// Where its API listens; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Where the control plane reaches it. `None`: at the listening address.
    pub endpoint: Option<Url>,
    /// How many sessions it takes, at most [`MAX_CAPACITY`].
    pub capacity: u32,
    /// Availability zone.
    pub zone: Option<String>,
    /// Pool.
    pub pool: Option<String>,
    /// The control plane's internal listener.
    pub control_plane: Url,
    /// The token that a first join needs.
    pub join_token: Option<SecretString>,
    /// Signs its requests.
    pub key: SigningKey,
    /// The data plane's store.
    pub database: SecretString,
    /// The most logins begun in a second.
    pub login_rate: NonZeroU32,
    /// Which network this build speaks to. It refuses sessions of the other.
    pub network: Network,
    /// Where that network is, if not at WhatsApp's address.
    pub ws_url: Option<Url>,
    /// The WhatsApp Web version to announce. `None`: asked from WhatsApp once a day for the whole worker.
    pub whatsapp_version: Option<ClientVersion>,
    /// The process's metrics recorder, to be shown at `/metrics`.
    pub metrics: Option<PrometheusHandle>,
    /// How often things happen.
    pub timing: Timing,
}

/// How often things happen. Not an operator's to set: the safety of leases and placement is built on these.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Between two renewals of the lease.
    pub lease_renewal: Duration,
    /// How long a lease lasts after a renewal.
    pub lease_ttl: Duration,
    /// Between two searches for outbox rows that nobody ships.
    pub adoption: Duration,
    /// After what silence a session isn't shown as connected any more: the library's 30 s ping and 20 s deadline.
    pub silence: Duration,
    /// The first pause before a session's client is built anew; it doubles up to a minute.
    pub rebuild: Duration,
    /// The least time between two reconnects of a session that another connection replaced.
    pub replaced: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(5),
            lease_renewal: Duration::from_secs(5),
            lease_ttl: Duration::from_secs(20),
            adoption: Duration::from_secs(10),
            silence: Duration::from_secs(50),
            rebuild: Duration::from_secs(1),
            replaced: Duration::from_secs(60),
        }
    }
}

/// The key in `path`; a new one is made there, readable by its owner only, if there is none.
///
/// # Errors
/// [`ConfigError`] if the file can't be read or made, or holds something else.
pub fn load_or_make_key(path: &Path) -> Result<SigningKey, ConfigError> {
    match fs::read(path) {
        Ok(der) => Ok(SigningKey::from_pkcs8(&der)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = SigningKey::generate()?;
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(key.pkcs8())?;
            file.sync_all()?;
            Ok(key)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_its_owner_s_alone() {
        let path = std::env::temp_dir().join(format!("worker-key-{}", uuid::Uuid::new_v4()));
        let made = load_or_make_key(&path).unwrap();
        let read = load_or_make_key(&path).unwrap();
        assert_eq!(made.public(), read.public());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, b"something else").unwrap();
        assert!(matches!(load_or_make_key(&path), Err(ConfigError::Key(_))), "a damaged key isn't replaced");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_version_is_three_numbers() {
        assert_eq!(parse_version("2.3000.1031"), Ok((2, 3000, 1031)));
        for wrong in ["", "2.3000", "2.3000.1.2", "2.x.1", "2..1"] {
            assert!(parse_version(wrong).is_err(), "{wrong}");
        }
    }
}
