//! A listener: connections, from the accepting of one to its end.
//!
//! **Owns** what stands between the socket and the router: TLS ([`tls`]), how many connections are held, how long each may be
//! idle or take over the head of a request ([`patience`]), how large that head may be, and from where connections are taken.
//! HTTP/1.1 and HTTP/2 on each.
//!
//! **Bounds.** A connection holds a permit from before it is accepted until it ends, so more than the limit wait in the
//! kernel's queue. The handshake has the deadline of a head. When the process is to stop (after `SHUTDOWN_DELAY`), nothing more
//! is accepted; requests in flight finish, idle connections are closed at once.

mod patience;
mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use http::{Request, Response, Version, header, uri::Authority};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use ipnet::IpNet;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use self::patience::{Patient, Watch};
pub use self::tls::{Tls, TlsFiles};
use crate::config::{HttpConfig, InternalConfig};

/// After an accept that failed for want of descriptors or memory.
const BREATHER: Duration = Duration::from_millis(500);
/// Between two pings of an HTTP/2 connection.
const PING: Duration = Duration::from_secs(60);
/// Connections of workers, each of which holds a few.
const WORKERS_CONNECTIONS: usize = 10_000;
/// Longer than a worker keeps an idle connection (90 s), so that it isn't closed under a request.
const WORKERS_KEEP_ALIVE: Duration = Duration::from_secs(120);

/// What one connection may take.
#[derive(Debug, Clone)]
pub struct Terms {
    /// From the first byte of a request's head to its last.
    pub header_timeout: Duration,
    /// Without a request.
    pub keep_alive: Duration,
    /// The largest head, in bytes.
    pub header_limit: u32,
    /// How many at once.
    pub connections: usize,
    /// From where they are taken; anywhere, if it is empty.
    pub allow: Vec<IpNet>,
}

impl Terms {
    /// Of the listener for tenants' programs.
    #[must_use]
    pub fn public(http: &HttpConfig) -> Self {
        Self {
            header_timeout: http.header_timeout,
            keep_alive: http.keep_alive,
            header_limit: http.header_limit,
            connections: http.connection_limit,
            allow: Vec::new(),
        }
    }

    /// Of the listener for workers.
    #[must_use]
    pub fn internal(http: &HttpConfig, internal: &InternalConfig) -> Self {
        Self {
            keep_alive: WORKERS_KEEP_ALIVE,
            connections: WORKERS_CONNECTIONS,
            allow: internal.allow_cidrs.clone(),
            ..Self::public(http)
        }
    }
}

/// A bound listener.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<Arc<Tls>>,
    terms: Terms,
}

impl Listener {
    /// Binds.
    ///
    /// # Errors
    /// If the address is taken.
    pub async fn bind(address: SocketAddr, tls: Option<Arc<Tls>>, terms: Terms) -> io::Result<Self> {
        Ok(Self { tcp: TcpListener::bind(address).await?, tls, terms })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the socket doesn't know.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until `stop`, and then until the last request in flight is answered.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(self.terms.connections));
        let connections = TaskTracker::new();
        loop {
            let permit = tokio::select! {
                () = stop.cancelled() => break,
                permit = Arc::clone(&permits).acquire_owned() => permit,
            };
            // The semaphore is never closed.
            let Ok(permit) = permit else { break };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.tcp.accept() => accepted,
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if !of_one_connection(&error) {
                        tracing::warn!(kind = ?error.kind(), "a connection could not be accepted");
                        tokio::time::sleep(BREATHER).await;
                    }
                    continue;
                }
            };
            if !self.allows(peer) {
                metrics::counter!("http_connections_refused_total").increment(1);
                continue;
            }
            let (tls, terms) = (self.tls.clone(), self.terms.clone());
            let (router, stop) = (router.clone(), stop.clone());
            connections.spawn(async move {
                let _permit = permit;
                converse(socket, peer, tls, &terms, router, stop).await;
            });
        }
        drop(self.tcp);
        connections.close();
        connections.wait().await;
    }

    fn allows(&self, peer: SocketAddr) -> bool {
        let address = peer.ip().to_canonical();
        self.terms.allow.is_empty() || self.terms.allow.iter().any(|net| net.contains(&address))
    }
}

/// Whether an accept failed for a reason of the peer's.
fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
}

/// One connection. How it ends is its peer's affair: there is nobody to tell.
async fn converse(
    socket: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<Tls>>,
    terms: &Terms,
    router: Router,
    stop: CancellationToken,
) {
    // Without it the last packet of an answer can wait for an acknowledgement; a socket that is gone says so soon enough.
    let _still_there = socket.set_nodelay(true);
    let Some(tls) = tls else { return speak(socket, peer, terms, router, stop).await };
    let shaken = tokio::select! {
        () = stop.cancelled() => return,
        shaken = tokio::time::timeout(terms.header_timeout, tls.acceptor().accept(socket)) => shaken,
    };
    match shaken {
        Ok(Ok(stream)) => speak(stream, peer, terms, router, stop).await,
        Ok(Err(_)) | Err(_) => metrics::counter!("tls_handshakes_failed_total").increment(1),
    }
}

async fn speak<S>(stream: S, peer: SocketAddr, terms: &Terms, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let watch = Arc::new(Watch::default());
    let io = TokioIo::new(Patient::new(stream, Arc::clone(&watch), terms));
    let service = service_fn(move |request: Request<Incoming>| {
        let served = watch.begin(request.version());
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        if is_misaddressed(&request) {
            request.extensions_mut().insert(Misaddressed);
        }
        let (router, watch) = (router.clone(), Arc::clone(&watch));
        async move {
            let response = router.oneshot(request).await.unwrap_or_else(|never| match never {});
            if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
                watch.leave();
            }
            Ok::<Response<_>, std::convert::Infallible>(response.map(|body| served.until_sent(body)))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let header_limit = usize::try_from(terms.header_limit).unwrap_or(usize::MAX);
    builder.http1().max_buf_size(header_limit);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .max_header_list_size(terms.header_limit)
        .enable_connect_protocol();
    let connection = builder.serve_connection_with_upgrades(io, service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ended = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ended = connection.await;
}

/// In the extensions of a request that doesn't say once, in words that can be read, which host it is for: it must be answered 400
/// (RFC 9112 §3.2), for the next server on the way may read it otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Misaddressed;

fn is_misaddressed(request: &Request<Body>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() == Version::HTTP_11,
        (Some(_), Some(_)) => true,
        // An empty one is that of a URI without a host.
        (Some(host), None) => {
            !host.is_empty() && Authority::try_from(host.as_bytes()).map_or(true, |host| host.as_str().contains('@'))
        }
    }
}

/// Explains the figures to whoever reads `/metrics`.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "http_connections_refused_total",
        "Connections to the internal listener from outside INTERNAL_ALLOW_CIDRS."
    );
    metrics::describe_counter!(
        "tls_handshakes_failed_total",
        "TLS handshakes that failed or took too long: scanners, and clients without a certificate that is asked for."
    );
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Notify,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn terms() -> Terms {
        Terms {
            header_timeout: PATIENCE,
            keep_alive: PATIENCE,
            header_limit: 8192,
            connections: 100,
            allow: Vec::new(),
        }
    }

    async fn serve(router: Router, terms: Terms) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None, terms).await.unwrap();
        let (address, stop) = (listener.address().unwrap(), CancellationToken::new());
        (address, stop.clone(), tokio::spawn(listener.serve(router, stop)))
    }

    async fn ask(socket: &mut TcpStream) -> String {
        socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut text = String::new();
        while !text.ends_with("done") {
            let mut bytes = [0; 1024];
            let count = tokio::time::timeout(PATIENCE, socket.read(&mut bytes)).await.unwrap().unwrap();
            assert!(count > 0, "closed after {text:?}");
            text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        text
    }

    #[tokio::test]
    async fn a_request_in_flight_is_answered_while_the_process_stops_and_nothing_more_is_accepted() {
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (told, wait) = (Arc::clone(&begun), Arc::clone(&go));
        let router = Router::new().route(
            "/",
            get(async move || {
                told.notify_one();
                wait.notified().await;
                "done"
            }),
        );
        let (address, stop, served) = serve(router, terms()).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut busy = TcpStream::connect(address).await.unwrap();
        let asked = tokio::spawn(async move { ask(&mut busy).await });
        begun.notified().await;
        stop.cancel();
        let closed = tokio::time::timeout(PATIENCE, idle.read(&mut [0])).await.unwrap();
        assert!(matches!(closed, Ok(0) | Err(_)), "the idle connection is closed");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while TcpStream::connect(address).await.is_ok() {
            assert!(tokio::time::Instant::now() < deadline, "still accepting");
            tokio::task::yield_now().await;
        }
        assert!(!served.is_finished());
        go.notify_one();
        assert!(asked.await.unwrap().starts_with("HTTP/1.1 200"));
        tokio::time::timeout(PATIENCE, served).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn more_connections_than_the_limit_wait_until_one_ends() {
        let router = Router::new().route("/", get(async || "done"));
        let (address, _stop, _served) = serve(router, Terms { connections: 1, ..terms() }).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        ask(&mut first).await;
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut answer = Box::pin(ask(&mut second));
        for _ in 0..3 {
            // Each answer on the first connection gives the second a chance to be served, which it must not be.
            tokio::select! {
                biased;
                _ = &mut answer => panic!("the limit doesn't hold"),
                _ = ask(&mut first) => {}
            }
        }
        drop(first);
        answer.await;
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_however_early_its_request_came() {
        let keep_alive = Duration::from_millis(100);
        let router = Router::new().route("/", get(async || "done"));
        let (address, _stop, _served) = serve(router, Terms { keep_alive, ..terms() }).await;
        for early in 0..20 {
            let mut socket = TcpStream::connect(address).await.unwrap();
            if early % 2 == 0 {
                // The server waits for the head then; else it finds the request as soon as it looks.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            ask(&mut socket).await;
            // Sooner than the head's time, of which nothing is to be left.
            let closed = tokio::time::timeout(PATIENCE / 2, socket.read(&mut [0])).await.expect("it is kept");
            assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        }
    }

    #[tokio::test]
    async fn connections_from_elsewhere_are_closed_unread() {
        let router = Router::new().route("/", get(async || "done"));
        let allow = vec!["10.0.0.0/8".parse().unwrap()];
        let (address, _stop, _served) = serve(router.clone(), Terms { allow, ..terms() }).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        let closed = tokio::time::timeout(PATIENCE, socket.read(&mut [0])).await.unwrap();
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        let allow = vec!["10.0.0.0/8".parse().unwrap(), "127.0.0.0/8".parse().unwrap()];
        let (address, _stop, _served) = serve(router, Terms { allow, ..terms() }).await;
        ask(&mut TcpStream::connect(address).await.unwrap()).await;
    }
}
