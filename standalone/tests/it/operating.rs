//! What operators do to a running installation: drain a worker, and have the planes speak TLS with each other.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rstest::rstest;
use serde_json::json;
use standalone::tour::api::text;

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
    stack.start_other_worker();
    until("both workers have joined", PATIENCE, async || {
        (stack.query("SELECT id FROM workers WHERE good_beats >= 2").await.len() == 2).then_some(())
    })
    .await;
    let tenant = stack.tenant("15550100061", true).await;
    let made = stack.command(&["create-operator", "grace@example.com"]);
    let password = made.lines().find_map(|line| line.strip_prefix("password: ")).unwrap();
    let nobody = stack.api();
    let body = json!({ "email": "grace@example.com", "password": password });
    let answer = nobody.post("admin/auth/login", body).await.unwrap();
    let operator = nobody.with(text(&answer, "/access_token").unwrap());

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
