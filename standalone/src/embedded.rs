//! The control plane and two workers on one store, in this process, with defaults that need nothing set.
//!
//! The planes still speak HTTP to each other on the loopback, with signed tokens: one process is a small fleet, not
//! another program. Any setting of the control plane can be given in the environment; what isn't set gets a default
//! below the data folder (`SWITCHBOARD_DATA`, or `data`).

use std::{
    fs,
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use control_plane::{
    ControlPlane,
    config::{Config, Values},
    objects,
};
use data_plane::{Worker, config as worker};
use secrecy::SecretString;
use shared::{
    config::{Group, Origin},
    seal::DataKey,
    wire::session::Network,
};
use tempfile::TempDir;

const WORKERS: [&str; 2] = ["worker-1", "worker-2"];
/// Sessions that each worker takes.
const CAPACITY: u32 = 500;

shared::settings! {
    /// The program itself
    ///
    /// Settings of the control plane work here too. What isn't set gets a default below the data folder.
    pub struct Own {
        /// The data folder.
        SWITCHBOARD_DATA data: PathBuf = Origin::Default("data"), "the path of a folder";
        /// The workers' store, if not a file of SQLite in the data folder.
        DATA_PLANE_DATABASE_URL database: Option<SecretString> = Origin::Optional,
            "a URL such as postgres://user@host/store";
        /// The most logins that its worker begins in a second.
        LOGIN_RATE login_rate: NonZeroU32 = Origin::Default("25"), "a number from 1";
    }
}

/// What is set in this process's environment and file.
///
/// # Errors
/// For what isn't a setting.
pub fn values() -> Result<Values> {
    let groups: Vec<Group> = Config::GROUPS.iter().copied().chain([Own::GROUP]).collect();
    Ok(Values::of_process(&groups)?)
}

/// How to start.
pub struct Settings {
    values: Values,
    data: PathBuf,
    /// Removed with the settings, where the data is not to stay.
    temporary: Option<Arc<TempDir>>,
    listen: Option<SocketAddr>,
    simulator: Option<Simulator>,
}

struct Simulator {
    ws_url: String,
    receiver: SocketAddr,
}

impl Settings {
    /// From the environment, with data that stays.
    ///
    /// # Errors
    /// If the folder can't be made.
    pub fn from_environment() -> Result<Self> {
        let values = values()?;
        let data = Own::read(&values)?.data;
        fs::create_dir_all(&data).with_context(|| format!("the data folder {} can't be made", data.display()))?;
        Ok(Self { values, data, temporary: None, listen: None, simulator: None })
    }

    /// On free ports, with data that goes with the process.
    ///
    /// # Errors
    /// If there is no room for temporary files.
    pub fn temporary() -> Result<Self> {
        let folder = TempDir::with_prefix("switchboard-")?;
        Ok(Self {
            values: values()?,
            data: folder.path().to_owned(),
            temporary: Some(Arc::new(folder)),
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            simulator: None,
        })
    }

    /// On the port that `PORT` or `LISTEN` names, else 8080.
    #[must_use]
    pub fn listening_on_the_usual_port(self) -> Self {
        Self { listen: None, ..self }
    }

    /// Against a simulated WhatsApp, and with webhooks allowed to one address of the loopback.
    #[must_use]
    pub fn with_simulator(self, ws_url: &str, receiver: SocketAddr) -> Self {
        Self { simulator: Some(Simulator { ws_url: ws_url.to_owned(), receiver }), ..self }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }

    fn folder_url(&self, name: &str) -> Result<String> {
        let folder = std::path::absolute(self.file(name)).context("the data folder has no absolute path")?;
        Ok(objects::folder_url(&folder)?.into())
    }

    fn sqlite(&self, name: &str) -> String {
        format!("sqlite://{}?mode=rwc", self.file(name).display())
    }
}

/// A running Switchboard.
pub struct Embedded {
    control_plane: ControlPlane,
    workers: Vec<Worker>,
    _temporary: Option<Arc<TempDir>>,
}

impl Embedded {
    /// Starts the control plane, then the workers.
    ///
    /// # Errors
    /// If a setting can't be used, a port is taken, or a database can't be opened.
    pub async fn start(mut settings: Settings) -> Result<Self> {
        let join_token = secret_file(&settings.file("join.token"))?;
        let master_key = secret_file(&settings.file("master.key"))?;
        let mut defaults = vec![
            ("DATABASE_URL", settings.sqlite("control-plane.db")),
            ("INTERNAL_LISTEN", "127.0.0.1:0".to_owned()),
            ("WORKER_JOIN_TOKEN", join_token.clone()),
            ("MASTER_KEY", master_key),
            ("OBJECT_STORE_URL", settings.folder_url("objects")?),
        ];
        if let Some(listen) = settings.listen {
            defaults.push(("LISTEN", listen.to_string()));
        }
        if let Some(simulator) = &settings.simulator {
            defaults.push(("OUTBOUND_ALLOW_CIDRS", format!("{}/32", simulator.receiver.ip())));
            defaults.push(("OUTBOUND_ALLOW_PORTS", simulator.receiver.port().to_string()));
        }
        let values = std::mem::take(&mut settings.values).with_presets(defaults);
        let control_plane =
            ControlPlane::start(Config::read(&values)?).await.context("the control plane does not start")?;
        let mut workers = Vec::new();
        for name in WORKERS {
            let worker = Worker::start(worker_config(&settings, &values, name, &control_plane, &join_token)?)
                .await
                .with_context(|| format!("{name} does not start"))?;
            workers.push(worker);
        }
        Ok(Self { control_plane, workers, _temporary: settings.temporary })
    }

    /// How callers on this machine reach the API.
    pub fn public_url(&self) -> String {
        format!("http://{}", self.control_plane.public_address())
    }

    /// Tells load balancers, then lets every session go, then stops answering.
    pub async fn shutdown(self) {
        self.control_plane.leave().await;
        for worker in self.workers {
            worker.shutdown().await;
        }
        self.control_plane.shutdown().await;
    }
}

/// Serves until interrupted.
///
/// # Errors
/// As [`Embedded::start`].
pub async fn run() -> Result<()> {
    if cfg!(feature = "sandbox") {
        anyhow::bail!(
            "this build checks nobody's certificate and must not speak to WhatsApp: build it without the feature sandbox (make run)"
        );
    }
    let asked_to_stop = shared::signals::asked_to_stop()?;
    let embedded = Embedded::start(Settings::from_environment()?).await?;
    let url = embedded.public_url();
    println!("Switchboard is up.  API {url}/api/v1   Swagger UI {url}/docs");
    asked_to_stop.await;
    embedded.shutdown().await;
    Ok(())
}

fn worker_config(
    settings: &Settings,
    values: &Values,
    name: &str,
    control_plane: &ControlPlane,
    join_token: &str,
) -> Result<worker::Config> {
    let own = Own::read(values)?;
    let network = if settings.simulator.is_some() { Network::Sandbox } else { Network::Whatsapp };
    let ws_url = settings.simulator.as_ref().map(|simulator| simulator.ws_url.parse()).transpose()?;
    Ok(worker::Config {
        worker_id: name.parse()?,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        endpoint: None,
        capacity: CAPACITY,
        zone: None,
        pool: None,
        control_plane: format!("http://{}", control_plane.internal_address()).parse()?,
        join_token: Some(SecretString::from(join_token.to_owned())),
        key: worker::load_or_make_key(&settings.file(&format!("{name}.key")))?,
        database: own.database.unwrap_or_else(|| settings.sqlite("store.db").into()),
        login_rate: own.login_rate,
        network,
        ws_url,
        whatsapp_version: None,
        control_plane_tls: worker::PeerTls::default(),
        metrics: None,
        timing: worker::Timing::default(),
    })
}

/// 32 random bytes in base64, made once and kept in a file that only its owner can read.
fn secret_file(path: &Path) -> Result<String> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    if let Ok(text) = fs::read_to_string(path) {
        return Ok(text.trim().to_owned());
    }
    let secret = DataKey::generate().to_base64();
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("{} can't be made", path.display()))?;
    file.write_all(secret.as_bytes())?;
    file.sync_all()?;
    Ok(secret)
}
