//! People of a tenant: invitations, roles, ownership, and belonging to several tenants.

use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use shared::ids::{InvitationId, TenantId, UserId};

use crate::{
    harness::{Answer, Engine, Owner, TestApp, mail_links},
    parts::eventually,
};

async fn invite(app: &TestApp, by: &Owner, email: &str, role: &str) -> Answer {
    let body = json!({"email": email, "role": role});
    Answer::of(app.post("/api/v1/invitations", &body).bearer_auth(&by.access_token)).await
}

/// The token of the newest mail of an invitation, once there are so many.
async fn token(count: usize) -> String {
    let tokens = || -> Vec<String> {
        let links = mail_links().into_iter().filter(|link| link.contains("/accept-invitation#"));
        links.map(|link| link.split("#token=").nth(1).unwrap().trim_matches('"').to_owned()).collect()
    };
    eventually("a mail comes", async || tokens().len() >= count).await;
    tokens().pop().unwrap()
}

async fn accept(app: &TestApp, token: &str, person: Value) -> Answer {
    let mut body = json!({"token": token});
    body.as_object_mut().unwrap().extend(person.as_object().unwrap().clone());
    Answer::of(app.post("/api/v1/invitations/accept", &body)).await
}

async fn members(app: &TestApp, who: &Owner) -> Vec<(String, String)> {
    let answer = Answer::of(app.get("/api/v1/members").bearer_auth(&who.access_token)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let text = |member: &Value, name: &str| member[name].as_str().unwrap().to_owned();
    answer.json()["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| (text(member, "user_id"), text(member, "role")))
        .collect()
}

async fn change(app: &TestApp, who: &Owner, whom: &str, role: &str) -> Answer {
    let request = app.request(Method::PATCH, &format!("/api/v1/members/{whom}")).json(&json!({"role": role}));
    Answer::of(request.bearer_auth(&who.access_token)).await
}

async fn remove(app: &TestApp, who: &Owner, whom: &str) -> Answer {
    let request = app.request(Method::DELETE, &format!("/api/v1/members/{whom}"));
    Answer::of(request.bearer_auth(&who.access_token)).await
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_makes_an_account_or_joins_one_and_works_once(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let invited = invite(&app, &owner, " Grace@Example.com", "developer").await;
    assert_eq!(invited.status, 201, "{invited:?}");
    assert_eq!((&invited.json()["email"], &invited.json()["role"]), (&json!("grace@example.com"), &json!("developer")));
    let grace = token(1).await;
    assert!(!invited.text.contains(&grace), "the token stands in the mail only");

    let bare = accept(&app, &grace, json!({})).await;
    bare.assert_problem(422, "validation");
    assert_eq!(bare.pointers(), ["/name", "/password"]);
    let person = json!({"name": "Grace", "password": "correct horse battery"});
    let joined = accept(&app, &grace, person.clone()).await;
    assert_eq!(joined.status, 200, "{joined:?}");
    assert_eq!(joined.json()["tenant_id"], owner.tenant_id);
    accept(&app, &grace, person.clone()).await.assert_problem(422, "mail-token-refused");
    let body = json!({"email": "grace@example.com", "password": "correct horse battery"});
    let inside = Answer::of(app.post("/api/v1/auth/login", &body)).await;
    assert_eq!(inside.json()["tenant_id"], owner.tenant_id);
    let me = Answer::of(app.get("/api/v1/me").bearer_auth(inside.json()["access_token"].as_str().unwrap())).await;
    assert_eq!((&me.json()["role"], &me.json()["email_verified"]), (&json!("developer"), &json!(true)));
    assert!(me.json()["permissions"].as_array().unwrap().contains(&json!("api-keys")), "{me:?}");

    // Somebody who has an account, and showed that the address is theirs.
    let other = app.sign_up().await;
    app.sql("UPDATE users SET email_verified_at = 1 WHERE id = $1", [other.user_id.as_str().into()]).await;
    assert_eq!(invite(&app, &owner, &other.email, "viewer").await.status, 201);
    let theirs = token(2).await;
    let joined = accept(&app, &theirs, json!({"name": "Mallory", "password": "something else entirely"})).await;
    assert_eq!(joined.status, 200, "{joined:?}");
    assert_eq!(joined.json()["user_id"], other.user_id);
    let old = json!({"email": other.email, "password": other.password, "tenant_id": owner.tenant_id});
    assert_eq!(
        Answer::of(app.post("/api/v1/auth/login", &old)).await.status,
        200,
        "name and password are not looked at"
    );
    invite(&app, &owner, &other.email, "viewer").await.assert_problem(409, "conflict");
    let roles: Vec<_> = members(&app, &owner).await.into_iter().map(|(_, role)| role).collect();
    assert_eq!(roles, ["viewer", "developer", "owner"]);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn whoever_took_an_address_that_is_not_theirs_loses_the_account_to_the_one_invited(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let squatter = app.sign_up().await;
    assert_eq!(invite(&app, &owner, &squatter.email, "admin").await.status, 201);
    let token = token(1).await;
    accept(&app, &token, json!({})).await.assert_problem(422, "validation");
    let joined = accept(&app, &token, json!({"name": "Grace", "password": "incorrect horse battery"})).await;
    assert_eq!(joined.status, 200, "{joined:?}");
    let old = json!({"email": squatter.email, "password": squatter.password});
    Answer::of(app.post("/api/v1/auth/login", &old)).await.assert_problem(401, "invalid-credentials");
    Answer::of(app.get("/api/v1/me").bearer_auth(&squatter.access_token)).await.assert_problem(401, "unauthenticated");
    let new = json!({"email": squatter.email, "password": "incorrect horse battery"});
    let inside = Answer::of(app.post("/api/v1/auth/login", &new)).await;
    assert_eq!(inside.status, 200, "{inside:?}");
    assert_eq!(inside.json()["tenant_id"], owner.tenant_id, "not in what the squatter made");
    let token = inside.json()["access_token"].as_str().unwrap().to_owned();
    let mine = Answer::of(app.get("/api/v1/me/tenants").bearer_auth(&token)).await.json();
    assert_eq!(mine["data"].as_array().unwrap().len(), 1, "{mine}");
    // The squatter's account stays with nobody who could log in to it.
    for email in [squatter.email.clone(), format!("{}@unclaimed.invalid", squatter.user_id)] {
        let old = json!({"email": email, "password": squatter.password});
        Answer::of(app.post("/api/v1/auth/login", &old)).await.assert_problem(401, "invalid-credentials");
    }
    let refresh = json!({"refresh_token": squatter.refresh_token});
    Answer::of(app.post("/api/v1/auth/refresh", &refresh)).await.assert_problem(401, "unauthenticated");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_ends_when_it_is_replaced_taken_back_or_too_old(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let stranger = app.sign_up().await;
    let person = json!({"name": "Grace", "password": "correct horse battery"});
    assert_eq!(invite(&app, &owner, "grace@example.com", "viewer").await.status, 201);
    let first = token(1).await;
    let second = invite(&app, &owner, "grace@example.com", "agent").await;
    let newest = token(2).await;
    accept(&app, &first, person.clone()).await.assert_problem(422, "mail-token-refused");
    let list = async |who: &Owner| {
        Answer::of(app.get("/api/v1/invitations").bearer_auth(&who.access_token)).await.json()["data"].clone()
    };
    assert_eq!(list(&owner).await, json!([second.json()]));
    assert_eq!(list(&stranger).await, json!([]));
    let delete = async |who: &Owner, id: &str| {
        let request = app.request(Method::DELETE, &format!("/api/v1/invitations/{id}"));
        Answer::of(request.bearer_auth(&who.access_token)).await
    };
    let id = second.json()["id"].as_str().unwrap().to_owned();
    let unknown = delete(&stranger, InvitationId::new().as_str()).await;
    unknown.assert_problem(404, "not-found");
    assert_eq!(delete(&stranger, &id).await.without_request_id(), unknown.without_request_id());
    assert_eq!(delete(&owner, &id).await.status, 204);
    accept(&app, &newest, person.clone()).await.assert_problem(422, "mail-token-refused");

    assert_eq!(invite(&app, &owner, "grace@example.com", "viewer").await.status, 201);
    let old = token(3).await;
    app.sql("UPDATE invitations SET expires_at = 1", []).await;
    accept(&app, &old, person).await.assert_problem(422, "mail-token-refused");
    assert_eq!(list(&owner).await, json!([]));
    control_plane::tenants::prune(app.app()).await.unwrap();
    assert_eq!(app.count("SELECT COUNT(*) FROM invitations").await, 0);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_or_takes_a_role_above_their_own_and_the_owner_stays(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let admin = app.colleague(&owner, "admin").await;
    let developer = app.colleague(&owner, "developer").await;
    let stranger = app.sign_up().await;
    for who in [&owner, &admin] {
        change(&app, who, &owner.user_id, "admin").await.assert_problem(409, "conflict");
        change(&app, who, &developer.user_id, "owner").await.assert_problem(409, "conflict");
        remove(&app, who, &owner.user_id).await.assert_problem(409, "conflict");
        invite(&app, who, "x@example.com", "owner").await.assert_problem(409, "conflict");
        change(&app, who, &stranger.user_id, "viewer").await.assert_problem(404, "not-found");
    }
    invite(&app, &developer, "x@example.com", "viewer").await.assert_problem(403, "missing-scope");
    change(&app, &developer, &developer.user_id, "admin").await.assert_problem(403, "missing-scope");
    let leave = async |who: &Owner| {
        Answer::of(app.request(Method::POST, "/api/v1/tenant/leave").bearer_auth(&who.access_token)).await
    };
    leave(&owner).await.assert_problem(409, "conflict");
    let unknown = change(&app, &stranger, UserId::new().as_str(), "viewer").await;
    unknown.assert_problem(404, "not-found");
    let theirs = change(&app, &stranger, &developer.user_id, "viewer").await;
    assert_eq!(theirs.without_request_id(), unknown.without_request_id(), "another tenant's people are nobody");

    // At once, in a login that goes on.
    let make_key = async |who: &Owner| {
        let body = json!({"name": "k", "network": "sandbox", "scopes": ["webhooks"]});
        Answer::of(app.post("/api/v1/api-keys", &body).bearer_auth(&who.access_token)).await
    };
    assert_eq!(make_key(&developer).await.status, 201);
    assert_eq!(change(&app, &admin, &developer.user_id, "viewer").await.json()["role"], "viewer");
    make_key(&developer).await.assert_problem(403, "missing-scope");
    assert_eq!(remove(&app, &admin, &developer.user_id).await.status, 204);
    make_key(&developer).await.assert_problem(401, "unauthenticated");
    let refresh = json!({"refresh_token": developer.refresh_token});
    Answer::of(app.post("/api/v1/auth/refresh", &refresh)).await.assert_problem(401, "unauthenticated");
    assert_eq!(leave(&admin).await.status, 204);
    assert_eq!(members(&app, &owner).await, [(owner.user_id.clone(), "owner".to_owned())]);
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn an_account_changes_hands_when_both_have_confirmed(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let heir = app.colleague(&owner, "viewer").await;
    let admin = app.colleague(&owner, "admin").await;
    let path = "/api/v1/tenant/ownership-offer";
    let offer = async |who: &Owner, to: &str, password: &str| {
        let body = json!({"user_id": to, "password": password});
        Answer::of(app.post(path, &body).bearer_auth(&who.access_token)).await
    };
    let accept = async |who: &Owner, password: &str| {
        let request = app.post(&format!("{path}/accept"), &json!({"password": password}));
        Answer::of(request.bearer_auth(&who.access_token)).await
    };
    accept(&heir, &heir.password).await.assert_problem(404, "not-found");
    offer(&admin, &admin.user_id, &admin.password).await.assert_problem(403, "missing-scope");
    offer(&owner, &heir.user_id, "not the password").await.assert_problem(403, "wrong-password");
    offer(&owner, &owner.user_id, &owner.password).await.assert_problem(409, "conflict");
    offer(&owner, UserId::new().as_str(), &owner.password).await.assert_problem(404, "not-found");
    assert_eq!(offer(&owner, &admin.user_id, &owner.password).await.status, 201);
    assert_eq!(offer(&owner, &heir.user_id, &owner.password).await.status, 201, "in place of the first");
    let seen = Answer::of(app.get(path).bearer_auth(&heir.access_token)).await;
    assert_eq!(seen.json()["to_user_id"], heir.user_id);
    accept(&admin, &admin.password).await.assert_problem(404, "not-found");
    accept(&heir, "not the password").await.assert_problem(403, "wrong-password");
    let done = accept(&heir, &heir.password).await;
    assert_eq!((done.status.as_u16(), &done.json()["role"]), (200, &json!("owner")), "{done:?}");
    accept(&heir, &heir.password).await.assert_problem(404, "not-found");
    let mut roles = members(&app, &owner).await;
    roles.sort_unstable();
    let mut expected = [(&owner.user_id, "admin"), (&heir.user_id, "owner"), (&admin.user_id, "admin")]
        .map(|(id, role)| (id.clone(), role.to_owned()));
    expected.sort_unstable();
    assert_eq!(roles, expected);

    assert_eq!(offer(&heir, &owner.user_id, &heir.password).await.status, 201);
    let withdrawn = Answer::of(app.request(Method::DELETE, path).bearer_auth(&heir.access_token)).await;
    assert_eq!(withdrawn.status, 204);
    accept(&owner, &owner.password).await.assert_problem(404, "not-found");
    assert_eq!(offer(&heir, &admin.user_id, &heir.password).await.status, 201);
    assert_eq!(remove(&app, &heir, &admin.user_id).await.status, 204);
    Answer::of(app.get(path).bearer_auth(&heir.access_token)).await.assert_problem(404, "not-found");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn two_offers_accepted_at_once_leave_one_owner(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let heir = app.colleague(&owner, "admin").await;
    let body = json!({"user_id": heir.user_id, "password": owner.password});
    let offered = Answer::of(app.post("/api/v1/tenant/ownership-offer", &body).bearer_auth(&owner.access_token)).await;
    assert_eq!(offered.status, 201);
    let tries = (0..8).map(|_| {
        let body = json!({"password": heir.password});
        Answer::of(app.post("/api/v1/tenant/ownership-offer/accept", &body).bearer_auth(&heir.access_token))
    });
    let statuses: Vec<_> = futures_util::future::join_all(tries).await.iter().map(|a| a.status.as_u16()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 404].contains(status)), "{statuses:?}");
    assert_eq!(app.count("SELECT COUNT(*) FROM members WHERE role = 'owner'").await, 2, "and that of the heir's own");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn a_person_of_several_tenants_chooses_at_login_and_switches(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let mut person = app.colleague(&owner, "agent").await;
    let stranger = app.sign_up().await;
    let mine = Answer::of(app.get("/api/v1/me/tenants").bearer_auth(&person.access_token)).await.json();
    let seen: Vec<_> = mine["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["role"].as_str().unwrap(), one["current"].as_bool().unwrap()))
        .collect();
    assert_eq!(seen, [("owner", false), ("agent", true)]);
    let own = mine["data"][0]["tenant"]["id"].as_str().unwrap().to_owned();

    let switch = async |who: &Owner, to: &str| {
        let body = json!({"tenant_id": to});
        Answer::of(app.post("/api/v1/auth/switch", &body).bearer_auth(&who.access_token)).await
    };
    let unknown = switch(&person, TenantId::new().as_str()).await;
    unknown.assert_problem(404, "not-found");
    assert_eq!(switch(&person, &stranger.tenant_id).await.without_request_id(), unknown.without_request_id());
    let body = json!({"email": person.email, "password": person.password, "tenant_id": stranger.tenant_id});
    Answer::of(app.post("/api/v1/auth/login", &body)).await.assert_problem(404, "not-found");

    // Also out of one that is suspended.
    app.sql("UPDATE tenants SET status = 'suspended' WHERE id = $1", [owner.tenant_id.as_str().into()]).await;
    let switched = switch(&person, &own).await;
    assert_eq!((switched.status.as_u16(), &switched.json()["tenant_id"]), (200, &json!(own)), "{switched:?}");
    let new = switched.json()["access_token"].as_str().unwrap().to_owned();
    let me = Answer::of(app.get("/api/v1/me").bearer_auth(&new)).await.json();
    assert_eq!((&me["role"], &me["tenant"]["id"]), (&json!("owner"), &json!(own)));
    Answer::of(app.get("/api/v1/me").bearer_auth(&person.access_token)).await.assert_problem(401, "unauthenticated");
    let refresh = json!({"refresh_token": person.refresh_token});
    Answer::of(app.post("/api/v1/auth/refresh", &refresh)).await.assert_problem(401, "unauthenticated");

    app.log_in(&mut person, Some(&owner.tenant_id)).await;
    let left = Answer::of(app.request(Method::POST, "/api/v1/tenant/leave").bearer_auth(&person.access_token)).await;
    assert_eq!(left.status, 204, "{left:?}");
    app.log_in(&mut person, None).await;
    assert_eq!(person.tenant_id, own);
    // Somebody who belongs to nothing any more.
    app.sql("DELETE FROM members WHERE user_id = $1", [person.user_id.as_str().into()]).await;
    let body = json!({"email": person.email, "password": person.password});
    Answer::of(app.post("/api/v1/auth/login", &body)).await.assert_problem(403, "no-account");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn invitations_end_with_the_role_that_they_were_sent_by(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    let (gone, lowered) = (app.colleague(&owner, "admin").await, app.colleague(&owner, "admin").await);
    assert_eq!(invite(&app, &owner, "of-the-owner@example.com", "admin").await.status, 201);
    for (who, email, role) in [
        (&gone, "second-self@example.com", "admin"),
        (&lowered, "too-high@example.com", "admin"),
        (&lowered, "as-high@example.com", "agent"),
    ] {
        assert_eq!(invite(&app, who, email, role).await.status, 201);
    }
    assert_eq!(remove(&app, &owner, &gone.user_id).await.status, 204);
    assert_eq!(change(&app, &owner, &lowered.user_id, "agent").await.status, 200);
    let list = Answer::of(app.get("/api/v1/invitations").bearer_auth(&owner.access_token)).await.json();
    let mut left: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|one| one["email"].as_str().unwrap().to_owned()).collect();
    left.sort_unstable();
    assert_eq!(left, ["as-high@example.com", "of-the-owner@example.com"]);
    app.stop().await;
}

/// A double click, and two admins at once.
#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn two_invitations_of_one_address_at_once_are_one(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let owner = app.sign_up().await;
    for round in 0..5 {
        let email = format!("grace-{round}@example.com");
        let tries = (0..6).map(|_| invite(&app, &owner, &email, "viewer"));
        for answer in futures_util::future::join_all(tries).await {
            assert_eq!(answer.status, 201, "{answer:?}");
        }
        let query = format!("SELECT COUNT(*) FROM invitations WHERE email = '{email}'");
        assert_eq!(app.count(&query).await, 1);
    }
    app.stop().await;
}
