//! Mails: verified addresses, forgotten passwords, and nothing that tells whether an account exists.

use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};

use crate::{
    harness::{Answer, Engine, TestApp, mail_links},
    parts::eventually,
    smtp_sink::Sink,
};

/// An installation that sends mail, and so verifies addresses first.
pub async fn with_mail(engine: Engine) -> Option<(TestApp, Sink)> {
    let sink = Sink::start().await;
    let url = format!("smtp://{}", sink.address);
    let app = TestApp::start_with(engine, |config| {
        config.mail.smtp_url = Some(url.into());
        config.auth.verify_email_first = true;
    })
    .await?;
    Some((app, sink))
}

pub fn sign_up(email: &str, password: &str) -> Value {
    json!({"email": email, "password": password, "name": "Ada <b>", "tenant_name": "Acme & Co"})
}

pub async fn post(app: &TestApp, path: &str, body: &Value) -> Answer {
    Answer::of(app.post(&format!("/api/v1/auth/{path}"), body)).await
}

pub async fn log_in(app: &TestApp, email: &str, password: &str) -> Answer {
    post(app, "login", &json!({"email": email, "password": password})).await
}

/// Every mail that was asked for has been dealt with.
pub async fn settled(app: &TestApp) {
    let waiting = "SELECT COUNT(*) FROM jobs WHERE kind = 'mail.send' AND state IN ('ready', 'running')";
    eventually("no mail waits", async || app.count(waiting).await == 0).await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_made_when_its_address_is_verified_and_only_the_mail_tells_of_one_that_exists(
    #[case] engine: Engine,
) {
    let Some((app, sink)) = with_mail(engine).await else { return };
    let fresh = post(&app, "signup", &sign_up("ada@example.com", "correct horse battery")).await;
    assert_eq!(fresh.status, 202, "{fresh:?}");
    let mail = sink.mail(1).await;
    assert_eq!((mail.to.as_str(), mail.header("Subject").as_str()), ("ada@example.com", "Confirm your e-mail address"));
    assert!(mail.text.contains("https://console.example.com/verify-email#token="), "{mail:?}");
    assert!(mail.text.contains("Ada &#60;b&#62;") && !mail.text.contains("correct horse"), "{mail:?}");
    assert_eq!(app.count("SELECT COUNT(*) FROM users").await, 0, "not before the link is opened");
    log_in(&app, "ada@example.com", "correct horse battery").await.assert_problem(401, "invalid-credentials");

    let token = json!({"token": mail.token()});
    let (one, two) = tokio::join!(post(&app, "verify-email", &token), post(&app, "verify-email", &token));
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 422], "a token is used once");
    post(&app, "verify-email", &token).await.assert_problem(422, "mail-token-refused");
    let inside = log_in(&app, "ada@example.com", "correct horse battery").await;
    assert_eq!(inside.status, 200, "{inside:?}");
    let access = inside.json()["access_token"].as_str().unwrap().to_owned();
    let me = Answer::of(app.get("/api/v1/me").bearer_auth(access)).await.json();
    assert_eq!((me["email_verified"].as_bool(), me["role"].as_str()), (Some(true), Some("owner")));

    // Somebody else tries the same address: the same answer, and nothing changes.
    let taken = post(&app, "signup", &sign_up("ada@example.com", "another password")).await;
    assert_eq!((taken.without_request_id(), taken.headers.len()), (fresh.without_request_id(), fresh.headers.len()));
    let mail = sink.mail(2).await;
    assert_eq!(mail.header("Subject"), "You have an account already");
    assert!(!mail.text.contains("token="), "{mail:?}");
    settled(&app).await;
    assert_eq!(app.count("SELECT COUNT(*) FROM users").await, 1);
    assert_eq!(app.count("SELECT COUNT(*) FROM email_tokens").await, 0);
    log_in(&app, "ada@example.com", "another password").await.assert_problem(401, "invalid-credentials");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_password_is_replaced_once_and_all_logins_end(#[case] engine: Engine) {
    let Some((app, sink)) = with_mail(engine).await else { return };
    post(&app, "signup", &sign_up("ada@example.com", "correct horse battery")).await;
    let token = sink.mail(1).await.token();
    assert_eq!(post(&app, "verify-email", &json!({"token": token})).await.status, 204);
    let before = log_in(&app, "ada@example.com", "correct horse battery").await.json();

    let known = post(&app, "password/forgot", &json!({"email": " ADA@example.com"})).await;
    let rows = "SELECT (SELECT COUNT(*) FROM jobs WHERE kind = 'mail.send')";
    let mail = sink.mail(2).await;
    let jobs = app.count(rows).await;
    let unknown = post(&app, "password/forgot", &json!({"email": "nobody@example.com"})).await;
    assert_eq!(known.status, 202, "{known:?}");
    assert_eq!(known.without_request_id(), unknown.without_request_id());
    assert_eq!(app.count(rows).await, jobs + 1, "the same is written for an address that nobody has");
    settled(&app).await;
    assert_eq!(sink.mails().len(), 2, "and no mail goes there");

    // A token of one purpose is no token of another.
    let token = mail.token();
    post(&app, "verify-email", &json!({"token": token})).await.assert_problem(422, "mail-token-refused");
    let reset = json!({"token": token, "password": "a second password"});
    assert_eq!(post(&app, "password/reset", &reset).await.status, 204);
    post(&app, "password/reset", &reset).await.assert_problem(422, "mail-token-refused");
    log_in(&app, "ada@example.com", "correct horse battery").await.assert_problem(401, "invalid-credentials");
    let after = log_in(&app, "ada@example.com", "a second password").await;
    assert_eq!(after.status, 200, "{after:?}");
    let refresh = json!({"refresh_token": before["refresh_token"]});
    post(&app, "refresh", &refresh).await.assert_problem(401, "unauthenticated");
    let old = before["access_token"].as_str().unwrap();
    Answer::of(app.get("/api/v1/me").bearer_auth(old)).await.assert_problem(401, "unauthenticated");
    assert_eq!(sink.mail(3).await.header("Subject"), "Your password was changed");

    // Expired.
    post(&app, "password/forgot", &json!({"email": "ada@example.com"})).await;
    let token = sink.mail(4).await.token();
    app.sql("UPDATE email_tokens SET expires_at = 1", []).await;
    let reset = json!({"token": token, "password": "a third password"});
    post(&app, "password/reset", &reset).await.assert_problem(422, "mail-token-refused");
    control_plane::auth::prune(app.app()).await.unwrap();
    assert_eq!(app.count("SELECT COUNT(*) FROM email_tokens").await, 0);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn no_token_of_a_mail_and_no_pending_sign_up_lies_in_the_database_in_clear(#[case] engine: Engine) {
    let Some((app, sink)) = with_mail(engine).await else { return };
    post(&app, "signup", &sign_up("ada@example.com", "correct horse battery")).await;
    let token = sink.mail(1).await.token();
    let db = &app.app().db;
    let statement = sea_orm::Statement::from_string(db.engine(), "SELECT token_hash, sealed_data FROM email_tokens");
    let rows = sea_orm::ConnectionTrait::query_all_raw(db.read(), statement).await.unwrap();
    assert_eq!(rows.len(), 1);
    for column in ["token_hash", "sealed_data"] {
        let bytes: Vec<u8> = rows[0].try_get("", column).unwrap();
        for clear in [token.as_str(), "ada@example.com", "correct horse", "$argon2id$"] {
            assert!(!bytes.windows(clear.len()).any(|part| part == clear.as_bytes()), "{column}");
        }
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_is_put_off_comes_later_with_a_token_of_its_own_and_one_that_is_refused_does_not(
    #[case] engine: Engine,
) {
    let Some((app, sink)) = with_mail(engine).await else { return };
    sink.be_busy(1);
    post(&app, "signup", &sign_up("ada@example.com", "correct horse battery")).await;
    eventually("the server was asked once", async || !sink.is_busy()).await;
    // The wait is over.
    eventually("the mail was sent", async || {
        app.sql("UPDATE jobs SET run_at = 1 WHERE kind = 'mail.send' AND state = 'ready'", []).await;
        app.app().bell.ring(control_plane::jobs::JobKind::SendMail);
        !sink.mails().is_empty()
    })
    .await;
    settled(&app).await;
    assert_eq!(app.count("SELECT COUNT(*) FROM email_tokens").await, 1, "that of the first try is gone");
    let token = json!({"token": sink.mail(1).await.token()});
    assert_eq!(post(&app, "verify-email", &token).await.status, 204);

    post(&app, "signup", &sign_up("refused@example.com", "correct horse battery")).await;
    settled(&app).await;
    assert_eq!(app.count("SELECT COUNT(*) FROM jobs WHERE kind = 'mail.send' AND state = 'dead'").await, 1);
    assert_eq!(sink.mails().len(), 1);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_was_taken_twice_has_one_id_and_its_link_works_in_either(#[case] engine: Engine) {
    let Some((app, sink)) = with_mail(engine).await else { return };
    sink.be_silent(1);
    post(&app, "signup", &sign_up("ada@example.com", "correct horse battery")).await;
    eventually("the mail was sent again", async || {
        app.sql("UPDATE jobs SET run_at = 1 WHERE kind = 'mail.send' AND state = 'ready'", []).await;
        app.app().bell.ring(control_plane::jobs::JobKind::SendMail);
        sink.mails().len() == 2
    })
    .await;
    settled(&app).await;
    let (first, second) = (sink.mail(1).await, sink.mail(2).await);
    assert_eq!(first.header("Message-ID"), second.header("Message-ID"));
    assert_eq!(first.token(), second.token());
    assert_eq!(post(&app, "verify-email", &json!({"token": first.token()})).await.status, 204);
    post(&app, "verify-email", &json!({"token": second.token()})).await.assert_problem(422, "mail-token-refused");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn who_belongs_to_no_account_any_more_makes_one_of_their_own_by_signing_up(#[case] engine: Engine) {
    let Some((app, sink)) = with_mail(engine).await else { return };
    post(&app, "signup", &sign_up("ada@example.com", "correct horse battery")).await;
    let token = json!({"token": sink.mail(1).await.token()});
    assert_eq!(post(&app, "verify-email", &token).await.status, 204);
    let before = log_in(&app, "ada@example.com", "correct horse battery").await.json();
    app.sql("DELETE FROM members", []).await;
    log_in(&app, "ada@example.com", "correct horse battery").await.assert_problem(403, "no-account");

    post(&app, "signup", &sign_up("ada@example.com", "another password")).await;
    let mail = sink.mail(2).await;
    assert_eq!(mail.header("Subject"), "Confirm your e-mail address");
    log_in(&app, "ada@example.com", "another password").await.assert_problem(401, "invalid-credentials");
    let token = json!({"token": mail.token()});
    assert_eq!(post(&app, "verify-email", &token).await.status, 204);
    log_in(&app, "ada@example.com", "correct horse battery").await.assert_problem(401, "invalid-credentials");
    let after = log_in(&app, "ada@example.com", "another password").await;
    assert_eq!(after.status, 200, "{after:?}");
    assert_eq!(after.json()["user_id"], before["user_id"], "the same person");
    assert_ne!(after.json()["tenant_id"], before["tenant_id"], "in another account");
    let old = json!({"refresh_token": before["refresh_token"]});
    post(&app, "refresh", &old).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_no_mail_can_be_sent_to_is_refused_at_once(#[case] engine: Engine) {
    let Some((app, _sink)) = with_mail(engine).await else { return };
    for email in ["a..b@example.com", ".a@example.com", "ada@[127.0.0.1]", "ada@[IPv6:::1]"] {
        let refused = post(&app, "signup", &sign_up(email, "correct horse battery")).await;
        refused.assert_problem(422, "validation");
        assert_eq!(refused.pointers(), ["/email"], "{email}");
    }
    assert_eq!(app.count("SELECT COUNT(*) FROM jobs WHERE kind = 'mail.send'").await, 0);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn no_mail_goes_in_clear_where_tls_is_required(#[case] engine: Engine) {
    let sink = Sink::start().await;
    let url = format!("smtp://user:secret@{}?tls=required", sink.address);
    let Some(app) = TestApp::start_with(engine, |config| {
        config.mail.smtp_url = Some(url.into());
        config.auth.verify_email_first = true;
    })
    .await
    else {
        return;
    };
    post(&app, "signup", &sign_up("ada@example.com", "correct horse battery")).await;
    eventually("it was tried", async || {
        let tried = "SELECT COUNT(*) FROM jobs WHERE kind = 'mail.send' AND state = 'ready' AND attempts > 0";
        sink.connections() > 0 && app.count(tried).await == 1
    })
    .await;
    assert!(sink.mails().is_empty());
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn without_a_mail_server_the_link_stands_in_the_log_once(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let me = async || Answer::of(app.get("/api/v1/me").bearer_auth(&owner.access_token)).await.json();
    assert_eq!(me().await["email_verified"], false);
    settled(&app).await;
    let again = app.request(Method::POST, "/api/v1/me/verify-email").bearer_auth(&owner.access_token);
    assert_eq!(Answer::of(again).await.status, 202);
    settled(&app).await;
    let links = mail_links();
    assert_eq!(links.len(), 2, "{links:?}");
    for link in &links {
        let (page, token) = link.split_once("#token=").unwrap();
        assert_eq!(page, "https://console.example.com/verify-email");
        let verified = post(&app, "verify-email", &json!({"token": token})).await;
        assert_eq!(verified.status, 204, "{verified:?}");
    }
    assert_eq!(me().await["email_verified"], true);
    let again = app.request(Method::POST, "/api/v1/me/verify-email").bearer_auth(&owner.access_token);
    assert_eq!(Answer::of(again).await.status, 202);
    settled(&app).await;
    assert_eq!(mail_links().len(), 2, "no mail for an address that is verified");
    app.stop().await;
}
