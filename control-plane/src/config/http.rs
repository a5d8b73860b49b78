//! Settings of the two listeners.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use secrecy::SecretString;
use shared::config::{Origin, Read};
use url::Url;

use super::{ADDRESS, CIDRS, ConfigError, Values};

const TIME: &str = "a time from 1s to 1h";

fn time(text: &str) -> Option<Duration> {
    Duration::read(text).filter(|time| (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(time))
}

shared::settings! {
    /// The API's listener
    ///
    /// With `TLS_CERT` and `TLS_KEY` it speaks HTTPS. The three TLS files are read again when one of them changes, and on SIGHUP;
    /// connections that are open stay as they are.
    pub struct HttpConfig {
        /// Where tenants' programs connect.
        LISTEN listen: SocketAddr = listen_origin(), ADDRESS;
        /// Short for `LISTEN=0.0.0.0:$PORT`.
        PORT port: Option<u16> = Origin::Optional, "a port number";
        /// The largest request body.
        BODY_LIMIT_BYTES body_limit: usize = Origin::Default("1048576"), "a number of bytes from 1024 to 104857600",
            |text| text.parse().ok().filter(|size| (1024..=100 << 20).contains(size));
        /// The largest head of a request (path, query and headers).
        HEADER_LIMIT_BYTES header_limit: u32 = Origin::Default("32768"), "a number of bytes from 8192 to 1048576",
            |text| text.parse().ok().filter(|size| (8192..=1 << 20).contains(size));
        /// How long a caller may take to send the head of a request, once it has begun; and the first one of a connection, from its
        /// beginning. Over HTTP/2 later ones have what is left of `KEEP_ALIVE_TIMEOUT`.
        HEADER_TIMEOUT header_timeout: Duration = Origin::Default("10s"), TIME, time;
        /// How long a request may take, from its head to the head of its answer. Then it is answered 503.
        REQUEST_TIMEOUT request_timeout: Duration = Origin::Default("30s"), TIME, time;
        /// How long a connection without a request is kept, whatever else is said on it. Should be longer than the same setting of a proxy in front.
        KEEP_ALIVE_TIMEOUT keep_alive: Duration = Origin::Default("75s"), TIME, time;
        /// How many connections are held at once; more wait until one ends.
        CONNECTION_LIMIT connection_limit: usize = Origin::Default("10000"), "a number from 1 to 1000000",
            |text| text.parse().ok().filter(|count| (1..=1_000_000).contains(count));
        /// How long a process that is told to stop (SIGTERM) serves on, while `/readyz` says 503: at least as long as a load balancer takes to
        /// see that. Then it takes no more connections, and requests in flight get 15 seconds to end.
        SHUTDOWN_DELAY shutdown_delay: Duration = Origin::Default("0s"), "a time from 0s to 10m",
            |text| Duration::read(text).filter(|time| *time <= Duration::from_secs(600));
        /// Origins whose pages may call the API from a browser, such as `https://app.example.com`, with commas, or `*` for all.
        /// Credentials in cookies are for pages of `PUBLIC_URL` itself in either case.
        CORS_ORIGIN cors_origins: Vec<String> = Origin::Default(""),
            "origins such as https://app.example.com, with commas between them, or *", origins;
        /// Proxies in front of this listener: their `X-Forwarded-For` is believed. Without it all people behind one share its
        /// limits.
        TRUSTED_PROXIES trusted_proxies: Vec<IpNet> = Origin::Default(""), CIDRS;
        /// The certificate chain for HTTPS, in PEM.
        TLS_CERT tls_cert: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
        /// Its private key, in PEM.
        TLS_KEY tls_key: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
        /// Certificates, in PEM, one of which must have signed the certificate of each client (mTLS).
        TLS_CLIENT_CA tls_client_ca: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
        /// What Prometheus shows as a bearer token to read `/metrics` here. Without it they are on the workers' listener only.
        METRICS_TOKEN metrics_token: Option<SecretString> = Origin::Optional, "a secret of 16 characters or more",
            |text| (text.len() >= 16).then(|| Some(text.into()));
    }
}

shared::settings! {
    /// The workers' listener
    ///
    /// Keep it on a private network. It can speak HTTPS and ask for client certificates as the API's listener can. It also gives
    /// `/metrics`.
    pub struct InternalConfig {
        /// Where workers connect.
        INTERNAL_LISTEN listen: SocketAddr = Origin::Default("127.0.0.1:8081"), ADDRESS;
        /// Networks from which connections are taken; others are closed at once. Private networks, unless said otherwise.
        INTERNAL_ALLOW_CIDRS allow_cidrs: Vec<IpNet> = Origin::Default(
            "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,169.254.0.0/16,::1/128,fc00::/7,fe80::/10"
        ), CIDRS;
        /// What a worker shows once, when it joins for the first time.
        WORKER_JOIN_TOKEN join_token: SecretString = Origin::Required, "a secret of 16 characters or more",
            |text| (text.len() >= 16).then(|| text.into());
        /// Where workers' endpoints may lie.
        WORKER_ENDPOINT_CIDRS worker_endpoint_cidrs: Vec<IpNet> = Origin::Default("127.0.0.0/8,::1/128"), CIDRS;
        /// The certificate chain for HTTPS, in PEM.
        INTERNAL_TLS_CERT tls_cert: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
        /// Its private key, in PEM.
        INTERNAL_TLS_KEY tls_key: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
        /// Certificates, in PEM, one of which must have signed the certificate of each worker (mTLS).
        INTERNAL_TLS_CLIENT_CA tls_client_ca: Option<PathBuf> = Origin::Optional, "the path of a PEM file";
    }
}

/// `LISTEN`, where it isn't set.
pub(super) const fn listen_origin() -> Origin<SocketAddr> {
    Origin::Derived("`0.0.0.0:$PORT`, or `127.0.0.1:8080` without `PORT`", by_port)
}

fn by_port(values: &Values) -> Result<SocketAddr, ConfigError> {
    let port: Option<u16> = values.get("PORT", Origin::Optional, "a port number", Read::read)?;
    Ok(match port {
        Some(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        None => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
    })
}

/// Whether the listener will speak TLS.
pub(super) fn has_tls(values: &Values) -> bool {
    values.text("TLS_CERT").is_some()
}

fn origins(text: &str) -> Option<Vec<String>> {
    let origins: Vec<String> = Vec::read(text)?;
    let is_origin = |text: &String| {
        text == "*"
            || !text.contains('*')
                && Url::parse(text)
                    .is_ok_and(|url| url.origin().is_tuple() && url.origin().ascii_serialization() == *text)
    };
    origins.iter().all(is_origin).then_some(origins)
}

/// What can't be seen from one setting alone.
pub(super) fn check(values: &Values) -> Result<(), ConfigError> {
    let ports = (values.find("LISTEN"), values.find("PORT"));
    if let (Some((listen, above)), Some((port, below))) = ports
        && above == below
        && !listen.ends_with(&format!(":{port}"))
    {
        return Err(ConfigError::Contradiction("LISTEN and PORT name different ports: set one of them".into()));
    }
    for prefix in ["", "INTERNAL_"] {
        let name = |name: &str| format!("{prefix}{name}");
        values.needs(&name("TLS_CERT"), &name("TLS_KEY"))?;
        values.needs(&name("TLS_KEY"), &name("TLS_CERT"))?;
        values.needs(&name("TLS_CLIENT_CA"), &name("TLS_CERT"))?;
    }
    if values.text("CORS_ORIGIN").is_some_and(|text| text != "*" && text.split(',').any(|origin| origin.trim() == "*"))
    {
        return Err(ConfigError::Contradiction("CORS_ORIGIN is either * or a list of origins".into()));
    }
    Ok(())
}
