//! Access tokens that aren't ours, or not any more.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use control_plane::auth::{self, Purpose};
use reqwest::header::AUTHORIZATION;
use rstest::rstest;
use serde_json::{Value, json};
use shared::identity::SigningKey;

use crate::harness::{Answer, Engine, TestApp};

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn claims_of(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

fn with(claims: &Value, changes: &Value) -> Value {
    let mut claims = claims.clone();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn forged_expired_and_foreign_tokens_are_refused(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let good = &owner.access_token;
    let claims = claims_of(good);
    let now = claims["iat"].as_i64().unwrap();
    let parts = app.app();
    let ours = auth::signing_key(&parts.db, &parts.master_key, Purpose::AccessTokens).await.unwrap();
    let peers = auth::signing_key(&parts.db, &parts.master_key, Purpose::Peers).await.unwrap();
    let theirs = SigningKey::generate().unwrap();

    // The key at hand signs what is accepted, so what is refused below is refused for its change alone.
    let again = ours.sign(&claims).unwrap();
    assert_eq!(Answer::of(app.get("/api/v1/me").bearer_auth(&again)).await.status, 200);

    let header = claims_header(good);
    let kid = ours.public().kid;
    let (head, rest) = good.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let mut flipped = URL_SAFE_NO_PAD.decode(signature).unwrap();
    flipped[0] ^= 1;
    let none = part(&json!({"alg": "none", "typ": "JWT", "kid": kid}));
    let mut bad = vec![
        ("expired", ours.sign(&with(&claims, &json!({"iat": now - 3600, "exp": now - 60}))).unwrap()),
        ("for another audience", ours.sign(&with(&claims, &json!({"aud": "control-plane"}))).unwrap()),
        ("of another issuer", ours.sign(&with(&claims, &json!({"iss": "somebody"}))).unwrap()),
        ("of another tenant", ours.sign(&with(&claims, &json!({"tenant": stranger.tenant_id}))).unwrap()),
        ("of another person", ours.sign(&with(&claims, &json!({"sub": stranger.user_id}))).unwrap()),
        ("without an end", {
            let mut claims = claims.clone();
            claims.as_object_mut().unwrap().remove("exp");
            ours.sign(&claims).unwrap()
        }),
        ("by a key that isn't known", theirs.sign(&claims).unwrap()),
        ("by the key for workers", peers.sign(&claims).unwrap()),
        ("with one flipped bit", format!("{head}.{body}.{}", URL_SAFE_NO_PAD.encode(&flipped))),
        ("without a signature", format!("{head}.{body}.")),
        ("alg none", format!("{none}.{body}.")),
        ("alg none with a signature", format!("{none}.{body}.{signature}")),
        ("with other claims under the old signature", {
            format!("{head}.{}.{signature}", part(&with(&claims, &json!({"exp": now + 999_999}))))
        }),
        ("garbage", "garbage".into()),
        ("a refresh token", owner.refresh_token.clone()),
    ];
    // Algorithm confusion: an HMAC whose key is our public key, as published.
    let public = URL_SAFE_NO_PAD.decode(ours.public().x).unwrap();
    let confused = part(&with(&header, &json!({"alg": "HS256"})));
    bad.push(("HMAC with the public key", {
        use hmac::{Hmac, KeyInit, Mac};
        let mut mac = <Hmac<sha2::Sha256> as KeyInit>::new_from_slice(&public).unwrap();
        mac.update(format!("{confused}.{body}").as_bytes());
        format!("{confused}.{body}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }));
    // A known key id on a signature of another key, and an unknown one on ours.
    let other_kid = part(&with(&header, &json!({"kid": theirs.public().kid})));
    bad.push(("an unknown key id", format!("{other_kid}.{body}.{signature}")));
    let their_token = theirs.sign(&claims).unwrap();
    let their_signature = their_token.rsplit('.').next().unwrap();
    bad.push(("our key id, their signature", format!("{head}.{body}.{their_signature}")));

    for (what, token) in bad {
        let answer = Answer::of(app.get("/api/v1/me").bearer_auth(&token)).await;
        assert_eq!(answer.status, 401, "{what}: {answer:?}");
        answer.assert_problem(401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{what}");
    }
    app.stop().await;
}

fn claims_header(token: &str) -> Value {
    let header = token.split('.').next().unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn only_one_bearer_credential_is_read(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let key = app.api_key(&owner, "sandbox", &["sessions:read"]).await;
    let both = app.get("/api/v1/tenant").bearer_auth(&owner.access_token).header("x-api-key", &key);
    Answer::of(both).await.assert_problem(400, "bad-request");
    for value in ["Basic dXNlcjpwYXNz", "Bearer", "", "Bearer "] {
        let answer = Answer::of(app.get("/api/v1/tenant").header(AUTHORIZATION, value)).await;
        answer.assert_problem(401, "unauthenticated");
    }
    let in_the_wrong_header = app.get("/api/v1/tenant").header("x-api-key", &owner.access_token);
    Answer::of(in_the_wrong_header).await.assert_problem(401, "unauthenticated");
    Answer::of(app.get("/api/v1/tenant")).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn replicas_agree_on_the_key_and_publish_it(#[case] engine: Engine) {
    let Some(mut app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let replica = app.replica().await;
    let me = Answer::of(app.http.get(format!("{replica}/api/v1/me")).bearer_auth(&owner.access_token)).await;
    assert_eq!(me.status, 200, "{me:?}");
    let keys = Answer::of(app.get("/.well-known/jwks.json")).await.json();
    let header = claims_header(&owner.access_token);
    assert_eq!(header["alg"], "EdDSA");
    assert_eq!(keys["keys"][0]["kid"], header["kid"]);
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
    assert!(keys["keys"][0].get("d").is_none(), "no private half");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_not_opened_with_another_master_key(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let mut config = app.app().config.clone();
    let other = shared::seal::DataKey::generate().to_base64();
    config.secrets.master_key = other.clone().into();
    let Err(error) = control_plane::ControlPlane::start(config).await else { panic!("started") };
    let told = format!("{error:?}");
    assert!(told.contains("MASTER_KEY") && !told.contains(&other), "{told}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_signs_at_once_is_known_to_every_replica_and_the_old_one_verifies_until_its_tokens_end(
    #[case] engine: Engine,
) {
    let Some(mut app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let replica = app.replica().await;
    let old_kid = claims_header(&owner.access_token)["kid"].as_str().unwrap().to_owned();
    let parts = app.app();
    let new_kid = auth::rotate(&parts.db, &parts.master_key, Purpose::AccessTokens, false).await.unwrap();
    assert_ne!(new_kid, old_kid);
    // The replica that is restarted first signs with the new key; the others have never heard of it.
    let restarted = app.replica().await;
    let login = json!({"email": owner.email, "password": owner.password});
    let tokens = Answer::of(app.http.post(format!("{restarted}/api/v1/auth/login")).json(&login)).await.json();
    let fresh = tokens["access_token"].as_str().unwrap().to_owned();
    assert_eq!(claims_header(&fresh)["kid"], new_kid.as_str());
    let http = app.http.clone();
    let me = async |base: &str, token: &str| Answer::of(http.get(format!("{base}/api/v1/me")).bearer_auth(token)).await;
    for base in [&app.base_url(), &replica, &restarted] {
        crate::parts::eventually("the new key is known", async || me(base, &fresh).await.status == 200).await;
        assert_eq!(me(base, &owner.access_token).await.status, 200, "the old key's tokens go on");
        let keys = Answer::of(app.http.get(format!("{base}/.well-known/jwks.json"))).await.json();
        let kids: Vec<_> = keys["keys"].as_array().unwrap().iter().map(|key| key["kid"].clone()).collect();
        assert_eq!(kids, [json!(new_kid), json!(old_kid)]);
        let again = Answer::of(app.http.post(format!("{base}/api/v1/auth/login")).json(&login)).await.json();
        assert_eq!(claims_header(again["access_token"].as_str().unwrap())["kid"], new_kid.as_str());
    }
    // When the last token of the old key has ended, the key is gone too.
    app.sql("UPDATE signing_keys SET retired_at = retired_at - 1100000 WHERE retired_at IS NOT NULL", []).await;
    let later = app.replica().await;
    me(&later, &owner.access_token).await.assert_problem(401, "unauthenticated");

    // Those that come at once come one after the other.
    let at_once = futures_util::future::join_all((0..6).map(|n| {
        let app = app.app();
        async move { auth::rotate(&app.db, &app.master_key, Purpose::AccessTokens, n % 2 == 0).await.unwrap() }
    }));
    assert_eq!(at_once.await.len(), 6);
    assert_eq!(
        app.count("SELECT COUNT(*) FROM signing_keys WHERE purpose = 'access_tokens' AND state = 'active'").await,
        1
    );

    // A key in wrong hands is refused by whoever reads the keys next.
    auth::rotate(&app.app().db, &app.app().master_key, Purpose::AccessTokens, true).await.unwrap();
    let after = app.replica().await;
    me(&after, &fresh).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_jwt_is_looked_for_among_no_keys(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    // Whoever read the keys now would find none.
    app.sql("ALTER TABLE signing_keys RENAME TO hidden", []).await;
    let until = tokio::time::Instant::now() + std::time::Duration::from_millis(600);
    while tokio::time::Instant::now() < until {
        for token in ["sbo_of-an-operator", "sbr_for-refreshing", "garbage"] {
            Answer::of(app.get("/api/v1/tenant").bearer_auth(token)).await.assert_problem(401, "unauthenticated");
        }
    }
    app.sql("ALTER TABLE hidden RENAME TO signing_keys", []).await;
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn issuer_audience_and_times_of_tokens_are_as_the_settings_say_and_others_are_refused(#[case] engine: Engine) {
    let minute = std::time::Duration::from_secs(60);
    let own = move |config: &mut control_plane::config::Config| {
        config.tokens.issuer = "https://id.example.com/".into();
        config.tokens.audience = "ours".into();
        config.tokens.access_ttl = minute;
        config.tokens.refresh_ttl = 120 * minute;
    };
    let Some(mut app) = TestApp::start_with(engine, own).await else { return };
    let owner = app.sign_up().await;
    let login = json!({"email": owner.email, "password": owner.password});
    let tokens = Answer::of(app.post("/api/v1/auth/login", &login)).await.json();
    let good = tokens["access_token"].as_str().unwrap();
    let claims = claims_of(good);
    assert_eq!((&claims["iss"], &claims["aud"]), (&json!("https://id.example.com/"), &json!("ours")));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 60);
    assert_eq!(tokens["expires_in"], 60);
    let ends: chrono::DateTime<chrono::Utc> = tokens["refresh_expires_at"].as_str().unwrap().parse().unwrap();
    let lives = ends.timestamp() - claims["iat"].as_i64().unwrap();
    assert!((7199..=7201).contains(&lives), "{lives}");
    // The cookie of a browser ends with the login.
    let login = json!({"email": owner.email, "password": owner.password, "cookie": true});
    let inside = Answer::of(app.post("/api/v1/auth/login", &login).header("sec-fetch-site", "same-origin")).await;
    let set = inside.header("set-cookie").unwrap();
    let age: u64 = set.split("; ").find_map(|part| part.strip_prefix("Max-Age=")?.parse().ok()).unwrap();
    assert!((7190..=7200).contains(&age), "{set}");

    let parts = app.app();
    let key = auth::signing_key(&parts.db, &parts.master_key, Purpose::AccessTokens).await.unwrap();
    let usual = json!({"iss": "switchboard", "aud": "switchboard-api"});
    let sign = |changes: &Value| key.sign(&with(&claims, changes)).unwrap();
    let (theirs, http) = (app.replica_with(|config| config.tokens = usual_tokens()).await, app.http.clone());
    let me = async |base: &str, token: &str| Answer::of(http.get(format!("{base}/api/v1/me")).bearer_auth(token)).await;
    let ours = app.base_url();
    assert_eq!(me(&ours, good).await.status, 200);
    for changes in [&usual, &json!({"iss": "switchboard"}), &json!({"aud": "switchboard-api"})] {
        me(&ours, &sign(changes)).await.assert_problem(401, "unauthenticated");
    }
    let iat = claims["iat"].as_i64().unwrap();
    let over = sign(&json!({"iat": iat - 120, "exp": iat - 60}));
    me(&ours, &over).await.assert_problem(401, "unauthenticated");
    // An installation with other settings takes what they say.
    assert_eq!(me(&theirs, &sign(&usual)).await.status, 200);
    me(&theirs, good).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}

fn usual_tokens() -> control_plane::config::TokensConfig {
    control_plane::config::TokensConfig::read(&control_plane::config::Values::default()).unwrap()
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_retired_key_verifies_for_as_long_as_the_settings_let_its_tokens_live(#[case] engine: Engine) {
    let hour = std::time::Duration::from_secs(3600);
    let Some(mut app) = TestApp::start_with(engine, |config| config.tokens.access_ttl = 2 * hour).await else { return };
    let owner = app.sign_up().await;
    auth::rotate(&app.app().db, &app.app().master_key, Purpose::AccessTokens, false).await.unwrap();
    let retired = "UPDATE signing_keys SET retired_at = retired_at - $1 WHERE retired_at IS NOT NULL";
    assert_eq!(app.sql(retired, [7_000_000_i64.into()]).await, 1);
    let http = app.http.clone();
    let me =
        async |base: &str| Answer::of(http.get(format!("{base}/api/v1/me")).bearer_auth(&owner.access_token)).await;
    let later = app.replica().await;
    assert_eq!(me(&later).await.status, 200, "nearly two hours later");
    app.sql(retired, [400_000_i64.into()]).await;
    let later = app.replica().await;
    me(&later).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}
