//! Two-step login: codes of a device and recovery codes, each accepted once.

use rstest::rstest;
use serde_json::{Value, json};
use totp_rs::{Builder, Secret, Totp};

use crate::harness::{Answer, Engine, Owner, TestApp};

/// The authenticator of a person.
pub struct Device(Totp);

impl Device {
    pub fn new(secret: &Value) -> Self {
        let secret = Secret::try_from_base32(secret.as_str().unwrap()).unwrap();
        Self(Builder::new().with_secret(secret).with_account_name("x").build().unwrap())
    }

    /// The code of now, or of so many steps from now.
    pub fn code(&self, steps: i64) -> String {
        let now = shared::time::Timestamp::now().as_millis() / 1000;
        self.0.generate(u64::try_from(now + 30 * steps).unwrap()).to_string()
    }

    /// What comes of using up the code of the step before now, so that those of now and the next are left. It is taken while its
    /// successor's step lasts: if that ended on the way there is another to use up.
    pub async fn use_up(&self, send: impl AsyncFn(String) -> Answer) -> Answer {
        loop {
            let code = self.code(-1);
            let answer = send(code.clone()).await;
            if answer.status != 403 || self.code(-1) == code {
                return answer;
            }
        }
    }
}

async fn person(app: &TestApp, owner: &Owner, path: &str, body: &Value) -> Answer {
    Answer::of(app.post(&format!("/api/v1/me/{path}"), body).bearer_auth(&owner.access_token)).await
}

async fn first_step(app: &TestApp, owner: &Owner) -> Answer {
    Answer::of(app.post("/api/v1/auth/login", &json!({"email": owner.email, "password": owner.password}))).await
}

async fn second_step(app: &TestApp, challenge: &Value, code: &str) -> Answer {
    let body = json!({"challenge_token": challenge["challenge_token"], "code": code});
    Answer::of(app.post("/api/v1/auth/login/code", &body)).await
}

/// Switches it on; gives the device and the recovery codes. The code of the step before now is used up.
pub async fn switch_on(app: &TestApp, owner: &Owner) -> (Device, Vec<String>) {
    let enrolled = person(app, owner, "totp", &json!({"password": owner.password})).await;
    assert_eq!(enrolled.status, 200, "{enrolled:?}");
    let secret = enrolled.json();
    assert!(secret["otpauth_url"].as_str().unwrap().starts_with("otpauth://totp/Switchboard:"), "{secret}");
    assert!(secret["qr_svg"].as_str().unwrap().contains("<svg"), "{secret}");
    let device = Device::new(&secret["secret"]);
    let on = device.use_up(async |code| person(app, owner, "totp/confirm", &json!({"code": code})).await).await;
    assert_eq!(on.status, 200, "{on:?}");
    let codes = on.json()["recovery_codes"].as_array().unwrap().clone();
    (device, codes.iter().map(|code| code.as_str().unwrap().to_owned()).collect())
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn logging_in_asks_for_a_code_and_takes_each_code_once(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let wrong = person(&app, &owner, "totp", &json!({"password": "not the password"})).await;
    wrong.assert_problem(403, "wrong-password");
    // Not confirmed is not on.
    let enrolled = person(&app, &owner, "totp", &json!({"password": owner.password})).await;
    assert_eq!(first_step(&app, &owner).await.status, 200);
    let other = Device::new(&enrolled.json()["secret"]);
    let (device, recovery) = switch_on(&app, &owner).await;
    assert_eq!(recovery.len(), 10);
    person(&app, &owner, "totp/confirm", &json!({"code": device.code(0)})).await.assert_problem(409, "conflict");
    person(&app, &owner, "totp", &json!({"password": owner.password})).await.assert_problem(409, "conflict");

    let challenge = first_step(&app, &owner).await;
    assert_eq!(challenge.status, 202, "{challenge:?}");
    let challenge = challenge.json();
    assert_eq!(challenge["mfa_required"], true);
    assert!(challenge.get("access_token").is_none());
    second_step(&app, &challenge, &other.code(0)).await.assert_problem(403, "wrong-code");
    second_step(&app, &challenge, "").await.assert_problem(403, "wrong-code");
    let code = device.code(0);
    let inside = second_step(&app, &challenge, &code).await;
    assert_eq!(inside.status, 200, "{inside:?}");
    let access = inside.json()["access_token"].as_str().unwrap().to_owned();
    let me = Answer::of(app.get("/api/v1/me").bearer_auth(&access)).await.json();
    assert_eq!(me["second_factor"], true);
    second_step(&app, &challenge, &device.code(1)).await.assert_problem(401, "unauthenticated");

    // The code of a step that was used, or of an earlier one, isn't taken again, at no challenge.
    let challenge = first_step(&app, &owner).await.json();
    second_step(&app, &challenge, &code).await.assert_problem(403, "wrong-code");
    second_step(&app, &challenge, &device.code(-1)).await.assert_problem(403, "wrong-code");
    // Two at once with the next code: one gets in.
    let next = device.code(1);
    let (one, two) = tokio::join!(second_step(&app, &challenge, &next), second_step(&app, &challenge, &next));
    assert_eq!([&one, &two].iter().filter(|answer| answer.status == 200).count(), 1, "{one:?} {two:?}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn recovery_codes_work_once_and_end_with_the_second_factor(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let (_, recovery) = switch_on(&app, &owner).await;
    let left = async || {
        let answer = Answer::of(app.get("/api/v1/me/totp").bearer_auth(&owner.access_token)).await.json();
        (answer["enabled"].as_bool().unwrap(), answer["recovery_codes_left"].as_u64().unwrap())
    };
    assert_eq!(left().await, (true, 10));
    let challenge = first_step(&app, &owner).await.json();
    let written = recovery[0].to_uppercase().replace('-', " ");
    assert_eq!(second_step(&app, &challenge, &written).await.status, 200, "however it is written");
    assert_eq!(left().await, (true, 9));
    let challenge = first_step(&app, &owner).await.json();
    second_step(&app, &challenge, &recovery[0]).await.assert_problem(403, "wrong-code");
    assert_eq!(second_step(&app, &challenge, &recovery[1]).await.status, 200);

    let renewed = person(&app, &owner, "totp/recovery-codes", &json!({"password": owner.password})).await;
    assert_eq!(renewed.status, 200, "{renewed:?}");
    assert_eq!(left().await, (true, 10));
    let challenge = first_step(&app, &owner).await.json();
    second_step(&app, &challenge, &recovery[2]).await.assert_problem(403, "wrong-code");
    let new = renewed.json()["recovery_codes"][0].as_str().unwrap().to_owned();
    assert_eq!(second_step(&app, &challenge, &new).await.status, 200);

    let wrong = person(&app, &owner, "totp/disable", &json!({"password": "not the password"})).await;
    wrong.assert_problem(403, "wrong-password");
    let off = person(&app, &owner, "totp/disable", &json!({"password": owner.password})).await;
    assert_eq!(off.status, 204, "{off:?}");
    assert_eq!(left().await, (false, 0));
    assert_eq!(first_step(&app, &owner).await.status, 200);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_bears_five_codes_and_five_minutes_and_is_its_person_s_own(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let (device, _) = switch_on(&app, &owner).await;
    let (theirs, _) = switch_on(&app, &stranger).await;
    let challenge = first_step(&app, &owner).await.json();
    for _ in 0..5 {
        second_step(&app, &challenge, &theirs.code(0)).await.assert_problem(403, "wrong-code");
    }
    second_step(&app, &challenge, &device.code(0)).await.assert_problem(401, "unauthenticated");
    let challenge = first_step(&app, &owner).await.json();
    app.sql("UPDATE login_challenges SET expires_at = expires_at - 300001", []).await;
    second_step(&app, &challenge, &device.code(0)).await.assert_problem(401, "unauthenticated");
    second_step(&app, &json!({"challenge_token": "sbc_nonsense"}), &device.code(0))
        .await
        .assert_problem(401, "unauthenticated");
    let challenge = first_step(&app, &owner).await.json();
    assert_eq!(second_step(&app, &challenge, &device.code(0)).await.status, 200);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn of_two_renewals_at_once_the_codes_of_one_work(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    switch_on(&app, &owner).await;
    for _ in 0..3 {
        let body = json!({"password": owner.password});
        let renewals = (0..6).map(|_| person(&app, &owner, "totp/recovery-codes", &body));
        for answer in futures_util::future::join_all(renewals).await {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        assert_eq!(app.count("SELECT COUNT(*) FROM recovery_codes").await, 10);
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_no_device_has_is_not_switched_on() {
    let Some(app) = TestApp::start(Engine::Postgres).await else { return };
    let owner = app.sign_up().await;
    let enrolled = person(&app, &owner, "totp", &json!({"password": owner.password})).await;
    let device = Device::new(&enrolled.json()["secret"]);
    // A second tab that asks for another secret, and has not committed.
    let tx = app.app().db.write().await.unwrap();
    let other = "UPDATE second_factors SET sealed_secret = sealed_secret || sealed_secret, last_step = 0";
    sea_orm::ConnectionTrait::execute_unprepared(&tx, other).await.unwrap();
    let body = json!({"code": device.code(0)});
    let request = app.post("/api/v1/me/totp/confirm", &body).bearer_auth(&owner.access_token);
    let confirmed = tokio::spawn(Answer::of(request));
    crate::parts::eventually("it waits", async || {
        let waits =
            "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        app.count(waits).await > 0
    })
    .await;
    tx.commit().await.unwrap();
    let answer = confirmed.await.unwrap();
    assert!(!answer.status.is_success(), "{answer:?}");
    assert_eq!(app.count("SELECT COUNT(*) FROM second_factors WHERE confirmed_at IS NOT NULL").await, 0);
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn whoever_took_an_address_keeps_nothing_of_it_and_locks_nobody_out(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    // Neither of them has verified the address.
    let (squatter, other) = (app.sign_up().await, app.sign_up().await);
    switch_on(&app, &squatter).await;
    switch_on(&app, &other).await;
    app.sql("UPDATE users SET email_verified_at = 1 WHERE id = $1", [other.user_id.as_str().into()]).await;
    let accomplice = app.sign_up().await;
    let mut keys = Vec::new();
    for owner in [&squatter, &other] {
        let post = async |path: &str, body: serde_json::Value| {
            let request = app.post(&format!("/api/v1/{path}"), &body).bearer_auth(&owner.access_token);
            let answer = Answer::of(request).await;
            assert!(answer.status.is_success(), "{path}: {answer:?}");
        };
        keys.push(app.api_key(owner, "whatsapp", &["messages:read"]).await);
        post("invitations", json!({"email": "accomplice@example.com", "role": "admin"})).await;
        post("webhooks", json!({"url": "https://93.184.216.34/hook", "event_types": ["*"]})).await;
        app.sql(
            "INSERT INTO members (tenant_id, user_id, role, created_at) VALUES ($1, $2, 'admin', 1)",
            [owner.tenant_id.as_str().into(), accomplice.user_id.as_str().into()],
        )
        .await;
    }
    for (count, person, wanted) in [(1, &squatter, 200), (2, &other, 202)] {
        let asked = Answer::of(app.post("/api/v1/auth/password/forgot", &json!({"email": person.email}))).await;
        assert_eq!(asked.status, 202, "{asked:?}");
        let links = || -> Vec<_> {
            crate::harness::mail_links().into_iter().filter(|link| link.contains("/reset-password#")).collect()
        };
        crate::parts::eventually("a mail comes", async || links().len() == count).await;
        let token = links()[count - 1].split("#token=").nth(1).unwrap().trim_matches('"').to_owned();
        let body = json!({"token": token, "password": "incorrect horse battery"});
        assert_eq!(Answer::of(app.post("/api/v1/auth/password/reset", &body)).await.status, 204);
        let body = json!({"email": person.email, "password": "incorrect horse battery"});
        assert_eq!(Answer::of(app.post("/api/v1/auth/login", &body)).await.status, wanted);
        let key = Answer::of(app.get("/api/v1/messages").bearer_auth(&keys[count - 1])).await.status;
        let left = async |what: &str| {
            app.count(&format!("SELECT COUNT(*) FROM {what} AND tenant_id = '{}'", person.tenant_id)).await
        };
        let others = left("members WHERE role <> 'owner'").await;
        let enabled = left("webhooks WHERE status = 'enabled'").await;
        let invited = left("invitations WHERE role = 'admin'").await;
        let kept = (key.as_u16(), others, enabled, invited);
        assert_eq!(kept, if wanted == 200 { (401, 0, 0, 0) } else { (200, 1, 1, 1) });
    }
    app.stop().await;
}
