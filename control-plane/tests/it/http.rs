//! What stands between a socket and a handler: TLS, limits and deadlines, what browsers are told, compression.

use std::{fs, net::SocketAddr, time::Duration};

use rcgen::ExtendedKeyUsagePurpose;
use reqwest::Method;
use rstest::rstest;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use crate::{
    certificates::Authority,
    harness::{Answer, Engine, PATIENCE, TestApp},
};

fn address(app: &TestApp) -> SocketAddr {
    app.base_url().split_once("//").unwrap().1.parse().unwrap()
}

/// Sends bytes, and reads until the connection is closed.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn every_answer_tells_browsers_what_they_may_do(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    for path in ["/livez", "/api/v1/sessions", "/nowhere", "/openapi.json", "/docs/"] {
        let answer = Answer::of(app.get(path)).await;
        let header = |name: &str| answer.header(name).unwrap_or_else(|| panic!("{path}: {name}")).to_owned();
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert!(header("content-security-policy").contains("frame-ancestors 'none'"), "{path}");
        assert_eq!(header("content-security-policy").contains("script-src"), path == "/docs/", "{path}");
        assert!(header("strict-transport-security").starts_with("max-age="), "PUBLIC_URL is https");
    }
    let page = Answer::of(app.get("/docs/")).await.text;
    assert!(!page.contains("<script>") && !page.contains("onload="), "the policy forbids scripts in the page: {page}");
    app.stop().await;

    let Some(app) =
        TestApp::start_with(engine, |config| config.mail.public_url = "http://localhost:8080".parse().unwrap()).await
    else {
        return;
    };
    assert_eq!(Answer::of(app.get("/livez")).await.header("strict-transport-security"), None);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_listed_origins_may_call_and_others_may_not(#[case] engine: Engine) {
    let listed = "https://app.example.com";
    let Some(app) = TestApp::start_with(engine, |config| config.http.cors_origins = vec![listed.into()]).await else {
        return;
    };
    let preflight = |origin: &str| {
        app.request(Method::OPTIONS, "/api/v1/messages/send")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type,idempotency-key")
    };
    let answer = Answer::of(preflight(listed)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), Some(listed));
    assert!(answer.header("access-control-allow-headers").unwrap().contains("idempotency-key"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    let call = Answer::of(app.get("/api/v1/sessions").header("origin", listed)).await;
    call.assert_problem(401, "unauthenticated");
    assert_eq!(call.header("access-control-allow-origin"), Some(listed), "problems can be read too");
    for origin in ["https://evil.example.com", "http://app.example.com", "https://app.example.com.evil.com", "null"] {
        let answer = Answer::of(preflight(origin)).await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{origin}");
    }
    app.stop().await;

    let Some(app) = TestApp::start(engine).await else { return };
    let answer = Answer::of(app.get("/livez").header("origin", listed)).await;
    assert_eq!(answer.header("access-control-allow-origin"), None, "nobody unless set");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_compressed_for_those_who_accept_it(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    for encoding in ["gzip", "br"] {
        let answer = app.get("/openapi.json").header("accept-encoding", encoding).send().await.unwrap();
        assert_eq!(answer.headers()["content-encoding"], encoding);
        assert!(answer.bytes().await.unwrap().len() < 200_000);
    }
    let plain = Answer::of(app.get("/openapi.json")).await;
    assert_eq!(plain.header("content-encoding"), None);
    assert!(plain.text.len() > 200_000, "{}", plain.text.len());
    let small = Answer::of(app.get("/livez").header("accept-encoding", "gzip")).await;
    assert_eq!(small.header("content-encoding"), None);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_document_is_told_that_it_is_the_same(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let first = Answer::of(app.get("/openapi.json")).await;
    let tag = first.header("etag").unwrap().to_owned();
    let again = Answer::of(app.get("/openapi.json").header("if-none-match", format!("\"other\", {tag}"))).await;
    assert_eq!((again.status.as_u16(), again.text.as_str()), (304, ""));
    let other = Answer::of(app.get("/openapi.json").header("if-none-match", "\"other\"")).await;
    assert_eq!((other.status.as_u16(), other.text), (200, first.text));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn who_writes_a_large_body_first_still_reads_why_it_was_refused(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    for size in [1 << 19, (1 << 20) - 1] {
        let mut request = format!(
            "POST /api/v1/messages/send HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {size}\r\n\r\n"
        )
        .into_bytes();
        request.resize(request.len() + size, b' ');
        let answer = raw(address(&app), &request).await;
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("/problems/unauthenticated"), "{answer}");
    }
    // Who asks first isn't asked for a body that nobody wants.
    let request = "POST /api/v1/messages/send HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nconnection: close\r\n\
                   content-length: 1000\r\n\r\n";
    let answer = raw(address(&app), request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn heads_are_bounded_in_size_and_time(#[case] engine: Engine) {
    let Some(app) = TestApp::start_with(engine, |config| {
        config.http.header_limit = 8192;
        config.http.header_timeout = Duration::from_secs(3);
    })
    .await
    else {
        return;
    };
    let large = format!("GET /livez HTTP/1.1\r\nhost: a\r\nx-large: {}\r\n\r\n", "a".repeat(20_000));
    let answer = raw(address(&app), large.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let started = Instant::now();
    let answer = raw(address(&app), b"GET /livez HTTP/1.1\r\nhost:").await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(started.elapsed() >= Duration::from_millis(2_900));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_forbids_every_coding_is_answered_all_the_same(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    for (number, encoding) in ["identity;q=0", "*;q=0", "gzip;q=0, *;q=0", "br;q=0,identity; q=0.0"].iter().enumerate()
    {
        let body = json!({"name": "k", "network": "sandbox", "scopes": ["webhooks"]});
        let request = app.post("/api/v1/api-keys", &body).bearer_auth(&owner.access_token);
        let answer = Answer::of(request.header("accept-encoding", *encoding)).await;
        assert_eq!(answer.status, 201, "{encoding}: {answer:?}");
        assert_eq!(app.count("SELECT COUNT(*) FROM api_keys").await, i64::try_from(number).unwrap() + 1);
    }
    let answer = app.get("/openapi.json").header("accept-encoding", "gzip, identity;q=0").send().await.unwrap();
    assert_eq!(answer.headers()["content-encoding"], "gzip", "what was asked for still holds");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_say_once_whom_it_is_for_is_refused(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let ask = async |version: &str, hosts: &str| {
        let request = format!("GET /livez HTTP/{version}\r\nconnection: close\r\n{hosts}\r\n");
        raw(address(&app), request.as_bytes()).await
    };
    for hosts in ["", "host: a\r\nhost: a\r\n", "host: a b\r\n", "host: a/b\r\n", "host: u@a\r\n"] {
        let answer = ask("1.1", hosts).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("/problems/bad-request"), "{hosts:?}: {answer}");
        assert!(answer.contains("x-request-id") && answer.contains("Host header"), "{answer}");
    }
    for hosts in ["host: a\r\n", "host: a:8080\r\n", "host: [::1]:80\r\n", "host:\r\n"] {
        assert!(ask("1.1", hosts).await.starts_with("HTTP/1.1 200"), "{hosts:?}");
    }
    assert!(ask("1.0", "").await.starts_with("HTTP/1.0 200"), "HTTP/1.0 had none yet");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_its_sender_s_fault(#[case] engine: Engine) {
    let Some(app) = TestApp::start_with(engine, |config| config.http.request_timeout = Duration::from_secs(1)).await
    else {
        return;
    };
    let ask = async |rest: &str| {
        let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
        let started = Instant::now();
        let answer = raw(address(&app), format!("{head}{rest}").as_bytes()).await;
        (answer, started.elapsed())
    };
    for part in ["content-length: 40\r\n\r\n{", "content-length: 40\r\nexpect: 100-continue\r\n\r\n"] {
        let (answer, _) = ask(part).await;
        assert!(answer.contains("HTTP/1.1 408 ") && answer.contains("/problems/request-timeout"), "{answer}");
    }
    // What is announced as too large isn't waited for, nor asked for.
    let (answer, took) = ask("content-length: 99999999\r\nexpect: 100-continue\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("/problems/body-too-large"), "{answer}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    // Whoever announces it and doesn't wait is given the time to send it.
    let (answer, _) = ask("content-length: 99999999\r\n\r\n{").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn every_401_says_what_is_wanted(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    for path in ["/api/v1/sessions", "/api/v1/admin/tenants", "/metrics", "/health/detailed"] {
        let answer = Answer::of(app.get(path)).await;
        answer.assert_problem(401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{path}");
    }
    let body = json!({"email": "nobody@example.com", "password": "correct horse battery"});
    let answer = Answer::of(app.post("/api/v1/auth/login", &body)).await;
    answer.assert_problem(401, "invalid-credentials");
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    app.stop().await;
}

fn peer_certificate(answer: &reqwest::Response) -> Vec<u8> {
    answer.extensions().get::<reqwest::tls::TlsInfo>().unwrap().peer_certificate().unwrap().to_vec()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn both_listeners_speak_tls_and_follow_their_files(#[case] engine: Engine) {
    let authority = Authority::new();
    authority.sign("server", 1, ExtendedKeyUsagePurpose::ServerAuth);
    let (cert, key) = (authority.file("server.crt"), authority.file("server.key"));
    let Some(app) = TestApp::start_with(engine, |config| {
        config.http.tls_cert = Some(cert.clone());
        config.http.tls_key = Some(key.clone());
        config.internal.tls_cert = Some(cert);
        config.internal.tls_key = Some(key);
        config.mail.public_url = "http://localhost".parse().unwrap();
    })
    .await
    else {
        return;
    };
    let client = authority.client(None);
    let public = app.base_url().replace("http:", "https:");
    let answer = client.get(format!("{public}/livez")).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
    assert!(answer.headers().contains_key("strict-transport-security"));
    let first = peer_certificate(&answer);
    let internal = app.internal_url().replace("http:", "https:");
    assert_eq!(client.get(format!("{internal}/internal/v1/jwks")).send().await.unwrap().status(), 200);
    app.get("/livez").send().await.unwrap_err();

    authority.sign("server", 2, ExtendedKeyUsagePurpose::ServerAuth);
    let deadline = Instant::now() + PATIENCE;
    while peer_certificate(&client.get(format!("{public}/livez")).send().await.unwrap()) == first {
        assert!(Instant::now() < deadline, "the new certificate isn't shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn with_a_client_ca_only_its_clients_are_heard(#[case] engine: Engine) {
    let (authority, other) = (Authority::new(), Authority::new());
    authority.sign("server", 1, ExtendedKeyUsagePurpose::ServerAuth);
    authority.sign("client", 2, ExtendedKeyUsagePurpose::ClientAuth);
    other.sign("stranger", 3, ExtendedKeyUsagePurpose::ClientAuth);
    for suffix in ["crt", "key"] {
        let name = format!("stranger.{suffix}");
        fs::copy(other.file(&name), authority.file(&name)).unwrap();
    }
    let Some(app) = TestApp::start_with(engine, |config| {
        config.http.tls_cert = Some(authority.file("server.crt"));
        config.http.tls_key = Some(authority.file("server.key"));
        config.http.tls_client_ca = Some(authority.file("ca.pem"));
    })
    .await
    else {
        return;
    };
    let url = format!("{}/livez", app.base_url().replace("http:", "https:"));
    assert_eq!(authority.client(Some("client")).get(&url).send().await.unwrap().status(), 200);
    authority.client(None).get(&url).send().await.unwrap_err();
    authority.client(Some("stranger")).get(&url).send().await.unwrap_err();
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_can_t_be_used_stops_the_start_with_its_setting_s_name() {
    let authority = Authority::new();
    authority.sign("server", 1, ExtendedKeyUsagePurpose::ServerAuth);
    authority.sign("another", 2, ExtendedKeyUsagePurpose::ServerAuth);
    fs::write(authority.file("nothing.pem"), json!({"sentinel": 1}).to_string()).unwrap();
    for (cert, key, ca, named) in [
        ("nothing.pem", "server.key", "ca.pem", "TLS_CERT"),
        ("missing.pem", "server.key", "ca.pem", "TLS_CERT"),
        ("server.crt", "nothing.pem", "ca.pem", "TLS_KEY"),
        ("server.crt", "another.key", "ca.pem", "TLS_KEY"),
        ("server.crt", "server.key", "nothing.pem", "TLS_CLIENT_CA"),
    ] {
        let told = TestApp::fails_to_start(|config| {
            config.http.tls_cert = Some(authority.file(cert));
            config.http.tls_key = Some(authority.file(key));
            config.http.tls_client_ca = Some(authority.file(ca));
        })
        .await;
        assert!(told.contains(named) && !told.contains("sentinel"), "{told}");
    }
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn pages_may_send_and_read_every_header_that_the_document_names(#[case] engine: Engine) {
    let listed = "https://app.example.com";
    let Some(app) = TestApp::start_with(engine, |config| config.http.cors_origins = vec![listed.into()]).await else {
        return;
    };
    let preflight = app
        .request(Method::OPTIONS, "/api/v1/messages/send")
        .header("origin", listed)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type,prefer");
    let preflight = Answer::of(preflight).await;
    let call = Answer::of(app.get("/api/v1/sessions").header("origin", listed)).await;
    let names = |answer: &Answer, name: &str| -> Vec<String> {
        answer.header(name).unwrap().split(',').map(|name| name.trim().to_ascii_lowercase()).collect()
    };
    let (sent, read) =
        (names(&preflight, "access-control-allow-headers"), names(&call, "access-control-expose-headers"));
    let document = serde_json::to_value(control_plane::app::document()).unwrap();
    let operations =
        document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    let mut seen = 0;
    for operation in operations {
        let what = &operation["operationId"];
        for parameter in operation["parameters"].as_array().into_iter().flatten().filter(|one| one["in"] == "header") {
            seen += 1;
            let name = parameter["name"].as_str().unwrap().to_ascii_lowercase();
            assert!(sent.contains(&name), "{what}: {name} can't be sent: {sent:?}");
        }
        for response in operation["responses"].as_object().unwrap().values() {
            for name in response["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
                seen += 1;
                let name = name.to_ascii_lowercase();
                assert!(name == "set-cookie" || read.contains(&name), "{what}: {name} can't be read: {read:?}");
            }
        }
    }
    assert!(seen > 100, "{seen}");
    for name in ["etag", "idempotent-replayed", "retry-after"] {
        assert!(read.contains(&name.to_owned()), "{name}");
    }
    app.stop().await;
}
