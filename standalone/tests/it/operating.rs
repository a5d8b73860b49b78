//! What operators do to a running installation: drain a worker, and have the planes speak TLS with each other.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rstest::rstest;
use serde_json::json;
use standalone::tour::api::{Api, text};

use crate::{
    postgres::Engine,
    stack::{PATIENCE, Stack, until},
};

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_s_session_goes_on_at_another_and_sends(#[case] engine: Engine) {
    let Some(mut stack) = Stack::start(engine).await else { return };
    two_workers(&mut stack).await;
    let tenant = stack.tenant("15550100061", true).await;
    let operator = operator(&stack).await;

    let before = stack.query("SELECT worker_id FROM sessions").await.remove(0);
    operator.post(&format!("admin/workers/{before}/drain"), json!({})).await.unwrap();

    until("another worker has it", PATIENCE, async || {
        let after = stack.query("SELECT worker_id FROM sessions").await.remove(0);
        (after != before).then_some(())
    })
    .await;
    tenant.connected(PATIENCE).await;
    let workers = operator.get("admin/workers").await.unwrap();
    let drained = workers["data"].as_array().unwrap().iter().find(|worker| worker["id"] == before.as_str()).unwrap();
    assert_eq!(drained["drained"], true, "{drained}");
    stack.network.new_phone("15550100062", "Customer", None).await.unwrap();
    let body = json!({
        "session_id": tenant.session, "to": "+15550100062", "type": "text", "text": { "body": "after the move" },
    });
    let id = text(&tenant.api.post("messages/send", body).await.unwrap(), "/id").unwrap();
    tenant
        .api
        .until(&format!("messages/{id}"), PATIENCE, |answer| {
            matches!(answer["status"].as_str()?, "delivered" | "read").then_some(())
        })
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", stack.logs()));
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_s_session_sends_nothing_twice_that_was_on_its_way(#[case] engine: Engine) {
    let Some(mut stack) = Stack::start(engine).await else { return };
    two_workers(&mut stack).await;
    let tenant = stack.tenant("15550100064", false).await;
    let operator = operator(&stack).await;
    let customers: Vec<String> = (0..20).map(|n| format!("1555010{:04}", 100 + n)).collect();
    for customer in &customers {
        stack.network.new_phone(customer, "Customer", None).await.unwrap();
        // No receipt tells what the ack doesn't.
        stack.network.switch_off(customer, true).await.unwrap();
    }
    // WhatsApp takes a message and says so later: there is always one of each chat of which it hasn't.
    let plan = json!({ "seed": 1, "late_acks": 1_000, "ack_lateness_ms": 300 });
    stack.network.plan_faults(&plan).await.unwrap();

    let sent = AtomicUsize::new(0);
    let moved = AtomicBool::new(false);
    let send = async {
        let mut every = tokio::time::interval(Duration::from_millis(15));
        for (n, customer) in customers.iter().cycle().enumerate() {
            // Not a wait for something to happen: this is the rate.
            every.tick().await;
            if moved.load(Ordering::Relaxed) {
                return;
            }
            let body = json!({
                "session_id": tenant.session, "to": format!("+{customer}"), "type": "text", "text": { "body": format!("{n}") },
            });
            tenant.api.post("messages/send", body).await.unwrap();
            sent.fetch_add(1, Ordering::Relaxed);
        }
    };
    let drain = async {
        until("WhatsApp has taken a message of each chat, and more", PATIENCE, async || {
            (stack.network.accepted().await.unwrap().total > 2 * customers.len()).then_some(())
        })
        .await;
        let before = stack.query("SELECT worker_id FROM sessions").await.remove(0);
        operator.post(&format!("admin/workers/{before}/drain"), json!({})).await.unwrap();
        until("another worker has it", PATIENCE, async || {
            let after = stack.query("SELECT worker_id FROM sessions").await.remove(0);
            (after != before).then_some(())
        })
        .await;
        tenant.connected(PATIENCE).await;
        moved.store(true, Ordering::Relaxed);
    };
    tokio::join!(send, drain);

    until("every message was taken, and that is known", PATIENCE, async || {
        let query = "SELECT id FROM messages WHERE status NOT IN ('sent', 'delivered', 'read', 'played')";
        stack.query(query).await.is_empty().then_some(())
    })
    .await;
    let late = stack.network.end_fault_plan().await.unwrap()["late_acks"].as_u64().unwrap();
    let accepted = stack.network.accepted().await.unwrap();
    let sent = sent.into_inner();
    println!("{engine:?}: {sent} sent, {} taken, {late} late acks", accepted.total);
    assert!(late >= u64::try_from(sent).unwrap(), "each ack was late");
    assert_eq!((accepted.distinct, accepted.total), (sent, sent), "each once");
}

/// Starts a second worker, and waits until both have joined.
async fn two_workers(stack: &mut Stack) {
    stack.start_other_worker();
    until("both workers have joined", PATIENCE, async || {
        (stack.query("SELECT id FROM workers WHERE good_beats >= 2").await.len() == 2).then_some(())
    })
    .await;
}

/// The API as an operator has it.
async fn operator(stack: &Stack) -> Api {
    let made = stack.command(&["create-operator", "grace@example.com"]);
    let password = made.lines().find_map(|line| line.strip_prefix("password: ")).unwrap();
    let nobody = stack.api();
    let body = json!({ "email": "grace@example.com", "password": password });
    let answer = nobody.post("admin/auth/login", body).await.unwrap();
    nobody.with(text(&answer, "/access_token").unwrap())
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn workers_and_control_plane_show_each_other_certificates(#[case] engine: Engine) {
    let Some(mut stack) = Stack::start(engine).await else { return };
    stack.kill_worker();
    stack.kill_control_plane();
    let folder = stack.dir.path().to_owned();
    let file = |name: &str| folder.join(name).display().to_string();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(file("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let authority = Issuer::new(params, key);
    for (name, usage) in
        [("control-plane", ExtendedKeyUsagePurpose::ServerAuth), ("worker", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        params.extended_key_usages = vec![usage];
        fs::write(file(&format!("{name}.crt")), params.signed_by(&key, &authority).unwrap().pem()).unwrap();
        fs::write(file(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    stack.set("INTERNAL_TLS_CERT", file("control-plane.crt"));
    stack.set("INTERNAL_TLS_KEY", file("control-plane.key"));
    stack.set("INTERNAL_TLS_CLIENT_CA", file("ca.pem"));
    stack.set("CONTROL_PLANE_CA", file("ca.pem"));
    let token = "a token for Prometheus";
    stack.set("METRICS_TOKEN", token);
    let url = stack.setting("CONTROL_PLANE_URL").replace("http:", "https:");
    stack.set("CONTROL_PLANE_URL", url);
    stack.start_control_plane(&[]).await;

    // Without a certificate of its own a worker isn't heard.
    let http = reqwest::Client::new();
    stack.start_other_worker();
    until("a handshake was refused", PATIENCE, async || {
        let figures = http.get(format!("{}/metrics", stack.base())).bearer_auth(token).send().await.unwrap();
        let figures = figures.text().await.unwrap();
        figures.lines().any(|line| line.starts_with("tls_handshakes_failed_total ")).then_some(())
    })
    .await;

    stack.set("CONTROL_PLANE_TLS_CERT", file("worker.crt"));
    stack.set("CONTROL_PLANE_TLS_KEY", file("worker.key"));
    stack.start_worker();
    let tenant = stack.tenant("15550100063", false).await;
    tenant.connected(PATIENCE).await;
    assert_eq!(stack.query("SELECT id FROM workers WHERE id = 'worker-2'").await.len(), 0);
}
