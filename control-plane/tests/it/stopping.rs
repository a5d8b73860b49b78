//! How a process ends, as whoever runs it sees it.

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rstest::rstest;
use secrecy::ExposeSecret;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    fleet::until,
    harness::{Answer, Engine, Storage},
};

/// A process of the program, gone with the test.
struct Process(Child);

impl Process {
    /// Serves on an address with these settings.
    fn serve(storage: &Storage, listen: SocketAddr, settings: &[(&str, &str)]) -> Self {
        let config = storage.config();
        let child = Command::new(env!("CARGO_BIN_EXE_control-plane"))
            .arg("serve")
            .env_clear()
            .env("DATABASE_URL", config.database.url.expose_secret())
            .env("MASTER_KEY", config.secrets.master_key.expose_secret())
            .env("OBJECT_STORE_URL", config.objects.url.as_str())
            .env("LISTEN", listen.to_string())
            .env("INTERNAL_LISTEN", "127.0.0.1:0")
            .env("WORKER_JOIN_TOKEN", "sixteen-or-more-characters")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// As an orchestrator tells it.
    fn signal(&self, which: &str) {
        let told = Command::new("kill").args([which, &self.0.id().to_string()]).status().unwrap();
        assert!(told.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already, if all went well.
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A port that nobody listens on.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The head of an answer, on a connection that is kept.
async fn ask(socket: &mut TcpStream, address: SocketAddr) -> String {
    socket.write_all(format!("GET /livez HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes()).await.unwrap();
    let (mut text, mut bytes) = (String::new(), [0; 4096]);
    while !text.ends_with('}') {
        let count = socket.read(&mut bytes).await.unwrap();
        assert!(count > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    text
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_ends_no_process_that_has_no_certificate_to_read_again(#[case] engine: Engine) {
    shared::tls::install_provider();
    let Some(storage) = Storage::new(engine).await else { return };
    let address = free_address();
    let mut process = Process::serve(&storage, address, &[]);
    until("it serves", async || TcpStream::connect(address).await.ok()).await;
    process.signal("-HUP");
    // Signals are handled in the order of their numbers at the latest when the next comes: this one ends it, in good order.
    process.signal("-TERM");
    let ended = until("it ends", async || process.0.try_wait().unwrap()).await;
    assert!(ended.success(), "{ended}");
    storage.remove().await;
}

fn sign_up(email: &str) -> String {
    json!({"email": email, "password": "correct horse battery", "name": "Ada", "tenant_name": "Acme"}).to_string()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_told_to_stop_serves_until_load_balancers_know(#[case] engine: Engine) {
    const DELAY: Duration = Duration::from_secs(4);
    shared::tls::install_provider();
    let Some(storage) = Storage::new(engine).await else { return };
    let address = free_address();
    let mut process = Process::serve(&storage, address, &[("SHUTDOWN_DELAY", "4s")]);
    // Each request on a connection of its own, as of clients that a load balancer still sends here.
    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
    let get = |path: &str| http.get(format!("http://{address}{path}")).send();
    until("it serves", async || get("/readyz").await.ok().filter(|answer| answer.status() == 200)).await;

    let mut kept = TcpStream::connect(address).await.unwrap();
    assert!(!ask(&mut kept, address).await.contains("connection: close"), "it is kept");
    let told_at = Instant::now();
    process.signal("-TERM");
    let refused = until("it isn't ready", async || get("/readyz").await.ok().filter(|a| a.status() != 200)).await;
    let seen_after = told_at.elapsed();
    assert_eq!(refused.status(), 503);
    assert!(refused.text().await.unwrap().contains("/problems/unavailable"));
    assert!(seen_after < DELAY, "while it still serves: {seen_after:?}");
    assert!(
        ask(&mut kept, address).await.contains("connection: close"),
        "whoever kept a connection makes another elsewhere"
    );
    assert_eq!(get("/livez").await.unwrap().status(), 200);
    let body = sign_up("ada@example.com");
    let request = http.post(format!("http://{address}/api/v1/auth/signup")).header("content-type", "application/json");
    assert_eq!(Answer::of(request.body(body)).await.status, 201);

    // A request that is still on its way when the listener closes is answered.
    let body = sign_up("grace@example.com");
    let (first, rest) = body.split_at(10);
    let mut slow = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /api/v1/auth/signup HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{first}",
        body.len()
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    until("nobody listens", async || TcpStream::connect(address).await.is_err().then_some(())).await;
    assert!(told_at.elapsed() >= DELAY, "not before its time: {:?}", told_at.elapsed());
    assert!(process.0.try_wait().unwrap().is_none(), "it waits for the request");
    slow.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    let ended = until("it ends", async || process.0.try_wait().unwrap()).await;
    assert!(ended.success(), "{ended}");
    storage.remove().await;
}
