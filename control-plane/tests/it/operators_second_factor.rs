//! Two-step login of operators, with the codes of people's.

use control_plane::{
    config::Config,
    operators::{self, NewOperator},
};
use rstest::rstest;
use serde_json::{Value, json};

use crate::{
    harness::{Answer, Engine, TestApp},
    second_factor::Device,
};

const EMAIL: &str = "operator@example.com";
const PASSWORD: &str = "correct horse battery";

async fn make(app: &TestApp, email: &str) {
    let new = NewOperator { email: email.into(), name: "Grace".into(), password: PASSWORD.into(), replace: true };
    operators::create(app.app(), new).await.unwrap();
}

async fn first_step(app: &TestApp, email: &str) -> Answer {
    let body = json!({"email": email, "password": PASSWORD});
    Answer::of(app.post("/api/v1/admin/auth/login", &body)).await
}

async fn second_step(app: &TestApp, challenge: &Value, code: &str) -> Answer {
    let body = json!({"challenge_token": challenge["challenge_token"], "code": code});
    Answer::of(app.post("/api/v1/admin/auth/login/code", &body)).await
}

async fn me(app: &TestApp, token: &str, path: &str, body: &Value) -> Answer {
    Answer::of(app.post(&format!("/api/v1/admin/me/{path}"), body).bearer_auth(token)).await
}

async fn token(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["access_token"].as_str().unwrap().to_owned()
}

/// Makes an operator who has it on: their token, device and recovery codes. The code of the step before now is used up.
async fn operator(app: &TestApp, email: &str) -> (String, Device, Vec<String>) {
    make(app, email).await;
    let token = token(&first_step(app, email).await).await;
    me(app, &token, "totp", &json!({"password": "not the password"})).await.assert_problem(403, "wrong-password");
    let secret = me(app, &token, "totp", &json!({"password": PASSWORD})).await;
    assert_eq!(secret.status, 200, "{secret:?}");
    assert_eq!(first_step(app, email).await.status, 200, "not confirmed is not on");
    let device = Device::new(&secret.json()["secret"]);
    me(app, &token, "totp/confirm", &json!({"code": "000000"})).await.assert_problem(403, "wrong-code");
    let on = device.use_up(async |code| me(app, &token, "totp/confirm", &json!({"code": code})).await).await;
    assert_eq!(on.status, 200, "{on:?}");
    let codes = on.json()["recovery_codes"].as_array().unwrap().clone();
    (token, device, codes.iter().map(|code| code.as_str().unwrap().to_owned()).collect())
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_s_login_asks_for_a_code_and_takes_each_once(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let (mine, device, recovery) = operator(&app, EMAIL).await;
    let (_, theirs, their_recovery) = operator(&app, "other@example.com").await;
    assert_eq!(recovery.len(), 10);
    me(&app, &mine, "totp", &json!({"password": PASSWORD})).await.assert_problem(409, "conflict");
    let left = async |token: &str| {
        let answer = Answer::of(app.get("/api/v1/admin/me/totp").bearer_auth(token)).await.json();
        (answer["enabled"].as_bool().unwrap(), answer["recovery_codes_left"].as_u64().unwrap())
    };
    assert_eq!(left(&mine).await, (true, 10));

    let challenge = first_step(&app, EMAIL).await;
    assert_eq!(challenge.status, 202, "{challenge:?}");
    let challenge = challenge.json();
    assert!(challenge["mfa_required"] == true && challenge.get("access_token").is_none(), "{challenge}");
    second_step(&app, &challenge, &theirs.code(0)).await.assert_problem(403, "wrong-code");
    second_step(&app, &challenge, &their_recovery[0]).await.assert_problem(403, "wrong-code");
    // Nor is it a challenge of people, however alike they are.
    let body = json!({"challenge_token": challenge["challenge_token"], "code": device.code(0)});
    Answer::of(app.post("/api/v1/auth/login/code", &body)).await.assert_problem(401, "unauthenticated");
    let code = device.code(0);
    let (one, two) = tokio::join!(second_step(&app, &challenge, &code), second_step(&app, &challenge, &code));
    let inside: Vec<_> = [&one, &two].into_iter().filter(|answer| answer.status == 200).collect();
    assert_eq!(inside.len(), 1, "{one:?} {two:?}");
    let fresh = token(inside[0]).await;
    assert_eq!(left(&fresh).await, (true, 10));
    let challenge = first_step(&app, EMAIL).await.json();
    second_step(&app, &challenge, &code).await.assert_problem(403, "wrong-code");
    assert_eq!(second_step(&app, &challenge, &recovery[0].to_uppercase()).await.status, 200);
    assert_eq!(left(&fresh).await, (true, 9));
    let challenge = first_step(&app, EMAIL).await.json();
    second_step(&app, &challenge, &recovery[0]).await.assert_problem(403, "wrong-code");

    let renewed = me(&app, &fresh, "totp/recovery-codes", &json!({"password": PASSWORD})).await;
    assert_eq!(renewed.status, 200, "{renewed:?}");
    second_step(&app, &challenge, &recovery[1]).await.assert_problem(403, "wrong-code");
    let new = renewed.json()["recovery_codes"][0].as_str().unwrap().to_owned();
    assert_eq!(second_step(&app, &challenge, &new).await.status, 200);

    me(&app, &fresh, "totp/disable", &json!({"password": "not the password"}))
        .await
        .assert_problem(403, "wrong-password");
    assert_eq!(me(&app, &fresh, "totp/disable", &json!({"password": PASSWORD})).await.status, 204);
    assert_eq!(left(&fresh).await, (false, 0));
    me(&app, &fresh, "totp/recovery-codes", &json!({"password": PASSWORD})).await.assert_problem(409, "conflict");
    assert_eq!(first_step(&app, EMAIL).await.status, 200);
    assert_eq!(first_step(&app, "other@example.com").await.status, 202, "each their own");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_of_an_operator_ends_with_its_tries_its_time_and_another_password(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let (mine, device, recovery) = operator(&app, EMAIL).await;
    let challenge = first_step(&app, EMAIL).await.json();
    for _ in 0..5 {
        second_step(&app, &challenge, "000000").await.assert_problem(403, "wrong-code");
    }
    second_step(&app, &challenge, &device.code(0)).await.assert_problem(401, "unauthenticated");
    let challenge = first_step(&app, EMAIL).await.json();
    app.sql("UPDATE operator_login_challenges SET expires_at = expires_at - 300001", []).await;
    second_step(&app, &challenge, &device.code(0)).await.assert_problem(401, "unauthenticated");
    operators::prune(app.app()).await.unwrap();
    assert_eq!(app.count("SELECT COUNT(*) FROM operator_login_challenges").await, 0);
    let challenge = first_step(&app, EMAIL).await.json();
    make(&app, EMAIL).await;
    second_step(&app, &challenge, &device.code(0)).await.assert_problem(401, "unauthenticated");
    assert_eq!(first_step(&app, EMAIL).await.status, 202, "another password leaves the second factor on");
    me(&app, &mine, "totp", &json!({"password": PASSWORD})).await.assert_problem(401, "unauthenticated");

    // Lost: device and recovery codes. Whoever can run commands on the installation lets them in.
    let challenge = first_step(&app, EMAIL).await.json();
    let before = token(&second_step(&app, &challenge, &recovery[0]).await).await;
    assert!(operators::reset_second_factor(app.app(), EMAIL.into()).await.unwrap());
    assert!(!operators::reset_second_factor(app.app(), EMAIL.into()).await.unwrap());
    assert!(operators::reset_second_factor(app.app(), "nobody@example.com".into()).await.is_err());
    assert_eq!(Answer::of(app.get("/api/v1/admin/me").bearer_auth(&before)).await.status, 401);
    let token = token(&first_step(&app, EMAIL).await).await;
    assert_eq!(Answer::of(app.get("/api/v1/admin/me").bearer_auth(&token)).await.status, 200);
    let (..) = operator(&app, EMAIL).await;
    operators::remove(app.app(), EMAIL.into()).await.unwrap();
    for table in ["operator_second_factors", "operator_recovery_codes", "operator_login_challenges"] {
        assert_eq!(app.count(&format!("SELECT COUNT(*) FROM {table}")).await, 0, "{table}");
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_s_codes_and_passwords_are_limited_over_all_challenges(#[case] engine: Engine) {
    let Some(app) = TestApp::start_with(engine, |config: &mut Config| config.auth.throttle = true).await else {
        return;
    };
    let (token, device, _) = operator(&app, EMAIL).await;
    let mut refused = 0;
    for _ in 0..3 {
        let challenge = first_step(&app, EMAIL).await.json();
        for _ in 0..3 {
            let answer = second_step(&app, &challenge, "000000").await;
            refused += u32::from(answer.status == 429);
        }
    }
    assert!(refused >= 3, "{refused}");
    let challenge = first_step(&app, EMAIL).await.json();
    let answer = second_step(&app, &challenge, &device.code(0)).await;
    answer.assert_problem(429, "rate-limited");
    assert!(answer.header("retry-after").is_some());
    let mut last = 0;
    for _ in 0..12 {
        last = me(&app, &token, "totp/disable", &json!({"password": "not it"})).await.status.as_u16();
    }
    assert_eq!(last, 429);
    app.stop().await;
}
