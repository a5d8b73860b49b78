//! The HTTP client for tenants' URLs.

use std::{
    error::Error as StdError,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hickory_resolver::TokioResolver;
use http::{HeaderMap, StatusCode};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use super::{Guard, UrlRefused};
use crate::config::OutboundConfig;

/// How much of a reply is read at most, in bytes. None of it is kept.
const REPLY_CAP: usize = 64 * 1024;
/// How long the rest of a reply is waited for once its status is known, so that the connection can be used again.
const DRAIN: Duration = Duration::from_millis(500);
/// How long a look-up may take when a URL is checked.
const CHECK_DEADLINE: Duration = Duration::from_secs(3);

/// The client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The machine's resolver settings can't be read.
    #[error("the resolver settings of this machine can't be read")]
    Resolver,
    /// TLS can't be set up.
    #[error("the HTTP client can't be set up")]
    Http,
}

/// Why a call got no reply. Says nothing of URL or reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The guard refused the URL, or every address of its name.
    #[error("refused: {0}")]
    Refused(UrlRefused),
    /// No status within the deadline.
    #[error("no reply within the deadline")]
    Timeout,
    /// The name can't be resolved, nothing listens, or TLS failed.
    #[error("no connection")]
    Connect,
    /// The connection broke, or what came isn't HTTP.
    #[error("the connection broke")]
    Broken,
}

impl CallError {
    /// A stable word for it, for the tenant.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Refused(_) => "url_not_allowed",
            Self::Timeout => "timeout",
            Self::Connect => "connection_failed",
            Self::Broken => "connection_broken",
        }
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
}

/// Calls tenants' URLs and nothing else: every address is checked where the connection is made, so a name that resolves to
/// another address at the second look (rebinding) gains nothing. Follows no redirect and uses no proxy.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    guard: Guard,
    names: Arc<GuardedNames>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl Client {
    /// With the resolver of this machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn new(config: &OutboundConfig) -> Result<Self, ClientError> {
        let resolver = TokioResolver::builder_tokio()
            .and_then(hickory_resolver::ResolverBuilder::build)
            .map_err(|_| ClientError::Resolver)?;
        Self::with_names(config, Arc::new(Dns(resolver)))
    }

    /// With another source of addresses, which is guarded all the same.
    ///
    /// # Errors
    /// [`ClientError::Http`].
    pub fn with_names(config: &OutboundConfig, names: Arc<dyn Resolve>) -> Result<Self, ClientError> {
        let guard = Guard::new(config);
        let names = Arc::new(GuardedNames { guard: guard.clone(), inner: names });
        let http = reqwest::Client::builder()
            .dns_resolver(Arc::clone(&names))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(Duration::from_secs(10))
            .pool_max_idle_per_host(8)
            .pool_idle_timeout(Duration::from_secs(30))
            .user_agent(concat!("Switchboard/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|_| ClientError::Http)?;
        Ok(Self { http, guard, names })
    }

    /// Checks a URL without asking the network.
    ///
    /// # Errors
    /// [`UrlRefused`].
    pub fn check_url(&self, url: &Url) -> Result<(), UrlRefused> {
        self.guard.check_url(url)
    }

    /// Checks a URL as [`check_url`](Self::check_url) does, and looks its name up: refused if the name has addresses and none
    /// of them may be called. A name that doesn't resolve now is no reason to refuse, since it may later; what holds is the
    /// check at the connection.
    ///
    /// # Errors
    /// [`UrlRefused`].
    pub async fn check_target(&self, url: &Url) -> Result<(), UrlRefused> {
        self.guard.check_url(url)?;
        let Some(Host::Domain(name)) = url.host() else { return Ok(()) };
        let Ok(name) = name.parse::<Name>() else { return Err(UrlRefused::Host) };
        match tokio::time::timeout(CHECK_DEADLINE, self.names.resolve(name)).await {
            Ok(Err(error)) if is_refusal(&*error) => Err(UrlRefused::Address),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Posts `body` and gives the status and headers of the reply.
    ///
    /// # Errors
    /// [`CallError`] if no status came within `deadline`, whatever the reason.
    pub async fn post(
        &self,
        url: Url,
        headers: HeaderMap,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Reply, CallError> {
        self.guard.check_url(&url).map_err(CallError::Refused)?;
        let started = Instant::now();
        let request = self.http.post(url).headers(headers).body(body).timeout(deadline).send();
        let mut response = match tokio::time::timeout(deadline, request).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(classify(&error)),
            Err(_) => return Err(CallError::Timeout),
        };
        let reply = Reply { status: response.status(), headers: response.headers().clone() };
        let rest = DRAIN.min(deadline.saturating_sub(started.elapsed()));
        let drain = async {
            let mut read = 0;
            while let Ok(Some(chunk)) = response.chunk().await {
                read += chunk.len();
                if read > REPLY_CAP {
                    break;
                }
            }
        };
        // The status has decided; a body that is long or slow only costs its connection.
        let _unfinished = tokio::time::timeout(rest, drain).await;
        Ok(reply)
    }
}

fn classify(error: &reqwest::Error) -> CallError {
    if is_refusal(error) {
        CallError::Refused(UrlRefused::Address)
    } else if error.is_timeout() {
        CallError::Timeout
    } else if error.is_connect() {
        CallError::Connect
    } else {
        CallError::Broken
    }
}

/// Whether the guard's refusal is among the causes.
fn is_refusal(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<UrlRefused>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Addresses of names, without those that may not be called.
struct GuardedNames {
    guard: Guard,
    inner: Arc<dyn Resolve>,
}

impl Resolve for GuardedNames {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.guard.clone();
        let addresses = self.inner.resolve(name);
        Box::pin(async move {
            let all: Vec<SocketAddr> = addresses.await?.take(64).collect();
            let allowed: Vec<SocketAddr> = all.iter().copied().filter(|at| guard.allows(at.ip())).collect();
            if allowed.is_empty() && !all.is_empty() {
                return Err(UrlRefused::Address.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The domain name system, without the blocking threads of the C library: a slow name server of one tenant holds up no
/// thread of ours.
struct Dns(TokioResolver);

impl Resolve for Dns {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.0.clone();
        Box::pin(async move {
            let found = resolver.lookup_ip(name.as_str()).await?;
            let addresses: Vec<SocketAddr> = found.iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
