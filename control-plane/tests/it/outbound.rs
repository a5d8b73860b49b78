//! The guard on calls to tenants' URLs: hostile URLs, and names that change their minds.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use control_plane::{
    config::OutboundConfig,
    outbound::{CallError, Client, Guard, UrlRefused},
};
use http::HeaderMap;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rstest::rstest;
use tokio::{io::AsyncReadExt, net::TcpListener};
use url::Url;

fn config(cidrs: &[&str], ports: &[u16]) -> OutboundConfig {
    OutboundConfig { allow_cidrs: cidrs.iter().map(|net| net.parse().unwrap()).collect(), allow_ports: ports.to_vec() }
}

#[test]
fn public_urls_are_allowed() {
    let guard = Guard::new(&config(&[], &[8080]));
    for text in [
        "http://example.com/",
        "https://example.com/hook?token=1",
        "https://example.com:443/",
        "http://example.com:8080/",
        "https://EXAMPLE.com./",
        "http://8.8.8.8/",
        "http://172.32.0.1/",
        "http://100.128.0.1/",
        "https://[2606:4700:4700::1111]/",
        "https://[::ffff:8.8.8.8]/",
        "https://localhost.example.com/",
        "https://xn--bcher-kva.example/",
    ] {
        assert_eq!(guard.check_url(&text.parse().unwrap()), Ok(()), "{text}");
    }
}

#[test]
fn what_the_operator_allows_is_allowed_and_nothing_beside_it() {
    let guard = Guard::new(&config(&["10.1.0.0/16", "fd00::/8"], &[]));
    let check = |text: &str| guard.check_url(&text.parse().unwrap());
    assert_eq!(check("http://10.1.2.3/"), Ok(()));
    assert_eq!(check("http://[::ffff:10.1.2.3]/"), Ok(()));
    assert_eq!(check("http://[fd00::1]/"), Ok(()));
    assert_eq!(check("http://10.2.0.1/"), Err(UrlRefused::Address));
    assert_eq!(check("http://127.0.0.1/"), Err(UrlRefused::Address));
    assert_eq!(check("http://localhost/"), Err(UrlRefused::Address));
    assert_eq!(check("http://10.1.2.3:81/"), Err(UrlRefused::Port));
}

/// Names whose addresses change from one look to the next.
struct Fickle(Mutex<Vec<Vec<SocketAddr>>>);

impl Fickle {
    fn new(looks: &[&[&str]]) -> Arc<Self> {
        let address = |text: &&str| SocketAddr::new(text.parse().unwrap(), 0);
        Arc::new(Self(Mutex::new(looks.iter().map(|look| look.iter().map(address).collect()).collect())))
    }
}

impl Resolve for Fickle {
    fn resolve(&self, _: Name) -> Resolving {
        let addresses = self.0.lock().unwrap().remove(0);
        Box::pin(async move { Ok(Box::new(addresses.into_iter()) as Addrs) })
    }
}

/// A server that notes each connection and answers each with a success.
async fn listen() -> (u16, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(Mutex::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            *count.lock().unwrap() += 1;
            tokio::spawn(async move {
                use tokio::io::AsyncWriteExt;
                let mut request = [0; 4096];
                let _read = stream.read(&mut request).await;
                let _written = stream.write_all(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n").await;
            });
        }
    });
    (port, connections)
}

async fn post(client: &Client, url: &Url) -> Result<u16, CallError> {
    let posted = client.post(url.clone(), HeaderMap::new(), Bytes::from_static(b"{}"), Duration::from_secs(5)).await;
    posted.map(|reply| reply.status.as_u16())
}

#[rstest]
#[case::loopback("127.0.0.1")]
#[case::mapped("::ffff:127.0.0.1")]
#[case::metadata("169.254.169.254")]
#[case::ula("fd00::1")]
#[case::nat64("64:ff9b::7f00:1")]
#[case::carrier_grade_nat("100.64.0.1")]
#[tokio::test]
async fn a_name_that_turns_inward_after_the_check_reaches_nothing(#[case] inside: &str) {
    shared::tls::install_provider();
    let (port, connections) = listen().await;
    let client = Client::with_names(&config(&[], &[port]), Fickle::new(&[&["8.8.8.8"], &[inside]])).unwrap();
    let url: Url = format!("http://rebind.example:{port}/").parse().unwrap();
    assert_eq!(client.check_target(&url).await, Ok(()), "at the first look it is public");
    assert_eq!(post(&client, &url).await, Err(CallError::Refused(UrlRefused::Address)));
    assert_eq!(*connections.lock().unwrap(), 0);
}

#[tokio::test]
async fn of_a_name_with_several_addresses_only_allowed_ones_are_called() {
    shared::tls::install_provider();
    let (port, connections) = listen().await;
    let names = Fickle::new(&[&["10.0.0.1", "::1", "127.0.0.1"]]);
    let client = Client::with_names(&config(&["127.0.0.1/32"], &[port]), names).unwrap();
    assert_eq!(post(&client, &format!("http://mixed.example:{port}/").parse().unwrap()).await, Ok(204));
    assert_eq!(*connections.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_name_that_leads_inward_is_refused_when_it_is_chosen() {
    shared::tls::install_provider();
    let names = Fickle::new(&[&["10.0.0.1", "192.168.0.1"], &["10.0.0.1", "8.8.8.8"], &[]]);
    let client = Client::with_names(&config(&[], &[]), names).unwrap();
    let url: Url = "https://inside.example/".parse().unwrap();
    assert_eq!(client.check_target(&url).await, Err(UrlRefused::Address));
    assert_eq!(client.check_target(&url).await, Ok(()), "one public address is enough: only it will be called");
    assert_eq!(client.check_target(&url).await, Ok(()), "what doesn't resolve now may later");
}

#[tokio::test]
async fn an_endpoint_that_never_answers_costs_its_deadline_and_no_more() {
    shared::tls::install_provider();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = Client::new(&config(&["127.0.0.1/32"], &[port])).unwrap();
    let url: Url = format!("http://127.0.0.1:{port}/").parse().unwrap();
    let started = Instant::now();
    let posted = client.post(url, HeaderMap::new(), Bytes::new(), Duration::from_millis(300)).await;
    assert_eq!(posted.map(|reply| reply.status).unwrap_err(), CallError::Timeout);
    // Nothing else ends this call sooner than the system gives up, after minutes.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    drop(listener);
}

#[tokio::test]
async fn nothing_that_listens_is_told_from_a_timeout() {
    shared::tls::install_provider();
    let (port, _reserved) = crate::address::reserved();
    let client = Client::new(&config(&["127.0.0.1/32"], &[port])).unwrap();
    assert_eq!(post(&client, &format!("http://127.0.0.1:{port}/").parse().unwrap()).await, Err(CallError::Connect));
}
