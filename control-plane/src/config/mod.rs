//! Settings of the control plane, one struct for each concern, read once at start.
//!
//! Values come from the environment. An empty value counts as unset; a value that can't be read stops the start with a
//! sentence that names the variable and never its content.

use std::net::SocketAddr;

use ipnet::IpNet;
use secrecy::SecretString;

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
}

/// The public listener.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// `LISTEN`, or `0.0.0.0:$PORT`. Default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// `PUBLIC_URL`: how callers reach this listener, for links in answers. Default: made from `listen`.
    pub public_url: Option<String>,
    /// `BODY_LIMIT_BYTES`: the largest request body. Default 1 MiB.
    pub body_limit: usize,
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

/// The database.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// `DATABASE_URL`: `sqlite://file` or `postgres://…`.
    pub url: SecretString,
    /// `DATABASE_POOL_SIZE`. Default 20.
    pub pool_size: u32,
}

/// Secrets of the installation.
#[derive(Debug, Clone)]
pub struct SecretsConfig {
    /// `MASTER_KEY`: 32 bytes in base64.
    pub master_key: SecretString,
}

/// Calls to URLs that tenants choose.
#[derive(Debug, Clone)]
pub struct OutboundConfig {
    /// `OUTBOUND_ALLOW_CIDRS`: addresses that are allowed although they aren't public. Default: none.
    pub allow_cidrs: Vec<IpNet>,
    /// `OUTBOUND_ALLOW_PORTS`: ports allowed besides 80 and 443. Default: 8080, 8443.
    pub allow_ports: Vec<u16>,
}
