//! What an operator sets, and what follows from it.
//!
//! [`Settings`] is what is set, in the environment or a file ([`shared::config`]); [`Config`] is what was checked, and what a test or the all-in-one program fills in by hand. Which network a worker
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

use metrics_exporter_prometheus::PrometheusHandle;
use reqwest::{Certificate, ClientBuilder, Identity};
use secrecy::SecretString;
use shared::{
    config::{Group, LogConfig, Origin},
    identity::{IdentityError, SigningKey},
    ids::WorkerId,
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
    /// A file for TLS can't be used.
    #[error("{0} must be the path of a PEM file, with what its description says")]
    Tls(&'static str),
    /// A certificate without its key, or the other way round.
    #[error("CONTROL_PLANE_TLS_CERT and CONTROL_PLANE_TLS_KEY need each other")]
    HalfOfAPair,
}

shared::settings! {
    /// The worker
    pub struct Settings {
        /// This worker's name, unique among the workers: 1 to 50 characters of a-z, 0-9 and -.
        WORKER_ID worker_id: WorkerId = Origin::Required, "1 to 50 characters of a-z, 0-9 and -";
        /// Where this worker's API listens.
        WORKER_LISTEN listen: SocketAddr = Origin::Default("0.0.0.0:7300"), "an address and a port such as 0.0.0.0:7300";
        /// Where the control plane reaches this worker's API, if not at `http://` and `WORKER_LISTEN`.
        WORKER_ENDPOINT endpoint: Option<Url> = Origin::Optional, "a URL such as http://worker-1:7300";
        /// How many sessions this worker takes.
        WORKER_CAPACITY capacity: u32 = Origin::Default("1000"), "a number from 1 to 20000",
            |text| text.parse().ok().filter(|count| (1..=MAX_CAPACITY).contains(count));
        /// Availability zone, for spreading.
        WORKER_ZONE zone: Option<String> = Origin::Optional, "a name";
        /// Pool, for plans that own workers.
        WORKER_POOL pool: Option<String> = Origin::Optional, "a name";
        /// The control plane's `INTERNAL_LISTEN`.
        CONTROL_PLANE_URL control_plane: Url = Origin::Required, "a URL such as http://control-plane:8081";
        /// Certificates, in PEM, one of which must have signed that of `CONTROL_PLANE_URL`, if no public authority has.
        CONTROL_PLANE_CA control_plane_ca: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
        /// The certificate that this worker shows there, in PEM: for a control plane with `INTERNAL_TLS_CLIENT_CA`.
        CONTROL_PLANE_TLS_CERT control_plane_cert: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
        /// Its private key, in PEM.
        CONTROL_PLANE_TLS_KEY control_plane_key: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
        /// What a worker shows once, when it joins for the first time: the control plane's `WORKER_JOIN_TOKEN`.
        WORKER_JOIN_TOKEN join_token: Option<SecretString> = Origin::Optional, "the control plane's WORKER_JOIN_TOKEN";
        /// This worker's Ed25519 key in PKCS#8. Made, readable by its owner only, if there is none.
        WORKER_KEY_FILE key_file: PathBuf = Origin::Default("worker.key"), "the path of a file";
        /// The store of WhatsApp state, one for all workers of a region: `sqlite://file?mode=rwc` or
        /// `postgres://user:password@host/database`. Never the control plane's database.
        DATA_PLANE_DATABASE_URL database: SecretString = Origin::Required,
            "a URL such as sqlite://store.db?mode=rwc or postgres://user@host/store";
        /// The most logins that this worker begins in a second.
        LOGIN_RATE login_rate: NonZeroU32 = Origin::Default("25"), "a number from 1";
        /// The version of WhatsApp Web to announce. Unset, WhatsApp is asked once a day.
        WHATSAPP_VERSION whatsapp_version: Option<ClientVersion> = Origin::Optional,
            "three numbers with dots between them, such as 2.3000.1031000000";
    }
}

/// What a worker of the released program can be told.
pub const GROUPS: &[Group] = &[Settings::GROUP, LogConfig::GROUP];

shared::settings! {
    /// The simulator
    ///
    /// `data-plane-sandbox` has these too.
    pub struct SandboxSettings {
        /// Where sandbox sessions connect.
        WHATSAPP_WS_URL ws_url: Url = Origin::Required, "the simulator's WebSocket address";
    }
}

/// What a worker of the sandbox can be told.
pub const SANDBOX_GROUPS: &[Group] = &[Settings::GROUP, SandboxSettings::GROUP, LogConfig::GROUP];

/// A version of WhatsApp Web: primary, secondary, tertiary.
pub type ClientVersion = (u32, u32, u32);

impl Settings {
    /// How many sessions the worker is to take.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.capacity
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
            control_plane_tls: PeerTls::read(
                self.control_plane_ca.as_deref(),
                self.control_plane_cert.as_deref(),
                self.control_plane_key.as_deref(),
            )?,
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
    /// What is needed to speak TLS with it.
    pub control_plane_tls: PeerTls,
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

/// TLS with the control plane: whom to believe, and what to show.
#[derive(Default)]
pub struct PeerTls {
    authorities: Vec<Certificate>,
    identity: Option<Identity>,
}

impl PeerTls {
    fn read(ca: Option<&Path>, cert: Option<&Path>, key: Option<&Path>) -> Result<Self, ConfigError> {
        let authorities = match ca {
            None => Vec::new(),
            Some(path) => {
                let found = fs::read(path).ok().and_then(|pem| Certificate::from_pem_bundle(&pem).ok());
                found.filter(|found| !found.is_empty()).ok_or(ConfigError::Tls("CONTROL_PLANE_CA"))?
            }
        };
        let identity = match (cert, key) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                let mut pem = fs::read(cert).map_err(|_| ConfigError::Tls("CONTROL_PLANE_TLS_CERT"))?;
                pem.extend(fs::read(key).map_err(|_| ConfigError::Tls("CONTROL_PLANE_TLS_KEY"))?);
                Some(Identity::from_pem(&pem).map_err(|_| ConfigError::Tls("CONTROL_PLANE_TLS_CERT"))?)
            }
            _ => return Err(ConfigError::HalfOfAPair),
        };
        Ok(Self { authorities, identity })
    }

    /// Has a client speak so.
    pub fn apply(self, client: ClientBuilder) -> ClientBuilder {
        let client = if self.authorities.is_empty() { client } else { client.tls_certs_only(self.authorities) };
        match self.identity {
            Some(identity) => client.identity(identity),
            None => client,
        }
    }
}

/// How often things happen, and how many at once. Not an operator's to set: the safety of leases and placement is built on these.
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
    /// How many sessions come up at once. Each of them reads and writes the store, and what waits for that too long is
    /// begun anew.
    pub starts: usize,
    /// How long one may take for it until the next begins all the same.
    pub start: Duration,
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
            starts: 64,
            start: Duration::from_secs(10),
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
    fn a_bad_value_is_told_by_its_name_and_never_shown() {
        use shared::config::Values;
        let read = |changes: &[(&str, &str)]| {
            let needed = [
                ("WORKER_ID", "worker-1"),
                ("CONTROL_PLANE_URL", "http://127.0.0.1:8081"),
                ("DATA_PLANE_DATABASE_URL", "sqlite://a.db"),
            ];
            let given = needed.iter().chain(changes).map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
            Settings::read(&Values::layered(given, GROUPS)?)
        };
        assert_eq!(read(&[("WHATSAPP_VERSION", "2.3000.1031")]).unwrap().whatsapp_version, Some((2, 3000, 1031)));
        for (name, text) in [
            ("WORKER_ID", "sentinel-sentinel-sentinel-sentinel-sentinel-sentinel-sentinel"),
            ("WORKER_LISTEN", "sentinel"),
            ("WORKER_CAPACITY", "20001"),
            ("CONTROL_PLANE_URL", "sentinel"),
            ("LOGIN_RATE", "0"),
            ("WHATSAPP_VERSION", "2.3000"),
            ("WHATSAPP_VERSION", "2.3000.1.2"),
            ("WHATSAPP_VERSION", "2.sentinel.1"),
        ] {
            let Err(error) = read(&[(name, text)]) else { panic!("{name}={text}") };
            assert_eq!(error.variable(), Some(name));
            assert!(!error.to_string().contains("sentinel"), "{error}");
        }
    }
}
