//! URLs that a tenant could turn this installation against its own network with: none of them is taken for a webhook, and none
//! is come to by a redirect. What names resolve to, and resolve to later, is in `outbound`.

use control_plane::{
    config::OutboundConfig,
    outbound::{Guard, UrlRefused},
};
use reqwest::Method;
use rstest::rstest;
use serde_json::json;
use url::Url;

use crate::harness::{Answer, Engine, TestApp};

/// By what they try.
const HOSTILE: &[(&str, &[&str])] = &[
    (
        "loopback",
        &[
            "http://127.0.0.1/",
            "http://127.0.0.1./",
            "http://127.1/",
            "http://127.255.255.254/",
            "http://127.0.0.1:443/",
            "https://127.0.0.1/",
            "http:127.0.0.1",
            "http:///127.0.0.1/",
            r"http:\\127.0.0.1\",
            r"http://127.0.0.1\@example.com/",
            "http://127.0.0.1#@example.com/",
            "http://127.0.0.1?@example.com/",
            "http://\t127.0.0.1/",
            "http://[::1]/",
            "http://[0:0:0:0:0:0:0:1]/",
            "http://[::]/",
        ],
    ),
    ("decimal", &["http://2130706433/", "http://2852039166/", "http://3232235777/", "http://0/", "http://127.1.1/"]),
    (
        "octal",
        &["http://0177.0.0.1/", "http://017700000001/", "http://0300.0250.1.1/", "http://00000177.1/", "http://012.1/"],
    ),
    (
        "hexadecimal",
        &[
            "http://0x7f000001/",
            "http://0x7f.0.0.1/",
            "http://0x7f.1/",
            "http://0X7F.0x0.0x0.0x1/",
            "http://0xa9fea9fe/",
            "http://0xc0.0xa8.1.1/",
            "http://0x0/",
        ],
    ),
    (
        "IPv4 in IPv6",
        &[
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://[::ffff:c0a8:0101]/",
            "http://[::ffff:100.64.0.1]/",
            "http://[::ffff:169.254.169.254]/",
            "http://[::127.0.0.1]/",
            "http://[::10.0.0.1]/",
            "http://[::ffff:0:127.0.0.1]/",
        ],
    ),
    (
        "NAT64",
        &[
            "http://[64:ff9b::7f00:1]/",
            "http://[64:ff9b::10.0.0.1]/",
            "http://[64:ff9b::a9fe:a9fe]/",
            "http://[64:ff9b:1::1]/",
        ],
    ),
    ("6to4", &["http://[2002:7f00:1::]/", "http://[2002:a00:1::1]/", "http://[2002:a9fe:a9fe::]/"]),
    ("Teredo", &["http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/"]),
    ("zones", &["http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1%251]/"]),
    (
        "Unicode",
        &[
            "http://①②⑦.⓪.⓪.①/",
            "http://１２７.0.0.1/",
            "http://127。0。0。1/",
            "http://127．0．0．1/",
            "http://127｡0｡0｡1/",
            "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
            "http://localhost。/",
            "http://lo\u{ad}calhost/",
        ],
    ),
    ("percents", &["http://%31%32%37.0.0.1/", "http://%6c%6f%63alhost/", "http://127%2e0%2e0%2e1/"]),
    (
        "private",
        &[
            "http://0.0.0.0/",
            "http://0.1.2.3/",
            "http://10.0.0.1/",
            "http://10.255.255.255/",
            "http://172.16.0.1/",
            "http://172.31.255.255/",
            "http://192.168.1.1/",
            "http://[fc00::1]/",
            "http://[fd12:3456:789a::1]/",
        ],
    ),
    ("shared", &["http://100.64.0.1/", "http://100.127.255.255/"]),
    ("link-local", &["http://169.254.0.1/", "http://[fe80::1]/", "http://[fec0::1]/"]),
    (
        "metadata",
        &[
            "http://169.254.169.254/latest/meta-data/",
            "http://169.254.170.2/v2/credentials/",
            "http://[fd00:ec2::254]/",
            "http://100.100.100.200/",
            "http://192.0.0.192/",
            "http://metadata.google.internal/",
            "http://metadata/computeMetadata/v1/",
        ],
    ),
    (
        "reserved",
        &[
            "http://192.0.2.1/",
            "http://198.51.100.1/",
            "http://203.0.113.1/",
            "http://192.88.99.1/",
            "http://198.18.0.1/",
            "http://198.19.255.255/",
            "http://224.0.0.1/",
            "http://239.255.255.250/",
            "http://240.0.0.1/",
            "http://255.255.255.255/",
            "http://[ff02::1]/",
            "http://[2001:db8::1]/",
            "http://[3fff::1]/",
            "http://[100::1]/",
            "http://[5f00::1]/",
        ],
    ),
    (
        "names",
        &[
            "http://localhost/",
            "http://LocalHost./",
            "http://localhost../",
            "http://a.localhost/",
            "http://a.localhost./",
            "http://printer.local/",
            "http://router.home.arpa/",
            "http://kubernetes/",
            "http://kubernetes./",
            "http://db.internal./",
        ],
    ),
    (
        "schemes",
        &[
            "ftp://example.com/",
            "file:///etc/passwd",
            "file://127.0.0.1/etc/passwd",
            "gopher://example.com/",
            "ws://example.com/",
            "data:text/plain,x",
            "javascript:alert(1)",
            "unix:/var/run/docker.sock",
        ],
    ),
    (
        "userinfo",
        &[
            "http://user@example.com/",
            "http://user:hunter2@example.com/",
            "http://:hunter2@example.com/",
            "http://example.com@127.0.0.1/",
            "http://example.com:80@10.0.0.1/",
            "http://1.1.1.1 &@example.com/",
        ],
    ),
    (
        "ports",
        &[
            "http://example.com:22/",
            "http://example.com:25/",
            "http://example.com:6379/",
            "https://example.com:5432/",
            "http://example.com:9200/",
            "http://example.com:0/",
            "http://example.com:65535/",
        ],
    ),
];

fn all() -> impl Iterator<Item = &'static str> {
    HOSTILE.iter().flat_map(|(_, urls)| urls.iter().copied())
}

#[test]
fn the_guard_refuses_each_of_them() {
    let guard = Guard::new(&OutboundConfig { allow_cidrs: Vec::new(), allow_ports: vec![8080] });
    for text in all() {
        // What isn't a URL at all is refused before the guard.
        if let Ok(url) = text.parse::<Url>() {
            assert!(guard.check_url(&url).is_err(), "{text} is {url}");
        }
    }
    let long = format!("https://example.com/{}", "a".repeat(2048)).parse().unwrap();
    assert_eq!(guard.check_url(&long), Err(UrlRefused::Length));
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn no_webhook_is_made_for_any_of_them_nor_sent_there_later(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let create = async |url: &str| {
        let body = json!({"url": url, "event_types": []});
        Answer::of(app.post("/api/v1/webhooks", &body).bearer_auth(&owner.access_token)).await
    };
    let mut refused = 0;
    for url in all() {
        assert_refused(url, &create(url).await);
        refused += 1;
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM webhooks").await, 0);
    // A host by which no lookup leaves this machine.
    let made = create("https://8.8.8.8/hook").await;
    assert_eq!(made.status, 201, "{made:?}");
    let path = format!("/api/v1/webhooks/{}", made.json()["id"].as_str().unwrap());
    for url in all() {
        let change = app.request(Method::PATCH, &path).json(&json!({"url": url})).bearer_auth(&owner.access_token);
        assert_refused(url, &Answer::of(change).await);
        refused += 1;
    }
    let now = Answer::of(app.get(&path).bearer_auth(&owner.access_token)).await;
    assert_eq!(now.json()["url"], "https://8.8.8.8/hook");
    assert!(refused >= 2 * 60, "{refused}");
    app.stop().await;
}

fn assert_refused(url: &str, answer: &Answer) {
    let known = ["/problems/url-not-allowed", "/problems/validation"].iter().any(|slug| answer.json()["type"] == *slug);
    assert!(answer.status == 422 && known, "{url}: {answer:?}");
    assert_eq!(answer.pointers(), ["/url"], "{url}");
    assert!(!answer.text.contains("hunter2"), "{url}: {answer:?}");
}
