//! Starting and stopping: the listeners and the tasks behind them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::network::Network;
use crate::{connection, control};

/// How long stopping waits for connections and requests to end.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after a failed accept (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How to run a simulator. The default listens on free loopback ports.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients connect (WebSocket, path `/ws/chat`).
    pub listen: SocketAddr,
    /// Where the control API listens. It has no authentication: keep it on loopback.
    pub control: SocketAddr,
    /// How long the first QR reference is good for; clients show it for 60 s.
    pub first_ref_ttl: Duration,
    /// How much longer each further reference is good for; clients show them for 20 s each.
    pub ref_ttl: Duration,
    /// How long a client may be silent. Clients send a keep-alive every 15 to 30 s.
    pub idle_timeout: Duration,
    /// The most connections at a time.
    pub max_connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            listen: loopback,
            control: loopback,
            first_ref_ttl: Duration::from_secs(60),
            ref_ttl: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(90),
            max_connections: 20_000,
        }
    }
}

/// A running network. Dropping it leaves it running; [`Simulator::shutdown`] stops it.
pub struct Simulator {
    listen: SocketAddr,
    control: SocketAddr,
    network: Network,
}

impl Simulator {
    /// Binds both listeners and serves.
    ///
    /// # Errors
    /// If an address can't be bound or the certificate chain can't be made.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let sockets = TcpListener::bind(config.listen).await.context("the client listener")?;
        let requests = TcpListener::bind(config.control).await.context("the control listener")?;
        let (listen, control) = (sockets.local_addr()?, requests.local_addr()?);
        let network = Network::new(config).context("the certificate chain")?;
        network.spawn(accept_clients(network.clone(), sockets));
        network.spawn(serve_control(network.clone(), requests));
        Ok(Self { listen, control, network })
    }

    /// Where clients connect.
    #[must_use]
    pub fn ws_url(&self) -> String {
        format!("ws://{}/ws/chat", self.listen)
    }

    /// The base of the control API; its paths begin with `/control/v1`.
    #[must_use]
    pub fn control_url(&self) -> String {
        format!("http://{}", self.control)
    }

    /// The network itself.
    #[must_use]
    pub fn network(&self) -> Network {
        self.network.clone()
    }

    /// Stops: no new connections, close frames to those that stand, then waits up to 5 s for all tasks.
    pub async fn shutdown(self) {
        self.network.stop();
        if tokio::time::timeout(STOP_DEADLINE, self.network.stopped()).await.is_err() {
            tracing::warn!("some tasks were still busy when the simulator stopped");
        }
    }
}

async fn accept_clients(network: Network, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(network.config().max_connections));
    loop {
        let accepted = tokio::select! {
            () = network.stopping() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let task = connect(network.clone(), socket);
                    network.spawn(async move {
                        task.await;
                        drop(place);
                    });
                }
                Err(_) => tracing::warn!("refused a connection: all places are taken"),
            },
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connect(network: Network, socket: TcpStream) {
    // Without it a small answer waits for the client's delayed ack: 40 ms.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused");
    }
    connection::serve(network, socket).await;
}

async fn serve_control(network: Network, listener: TcpListener) {
    let stopping = network.clone();
    let served = axum::serve(listener, control::router(network))
        .with_graceful_shutdown(async move { stopping.stopping().await });
    if let Err(error) = served.await {
        tracing::error!(%error, "the control API stopped");
    }
}
