//! Every operation of the OpenAPI document, by every kind of caller.
//!
//! Made from the document alone (see [`crate::operations`]), so an operation that is added is driven too, and the test fails when it
//! can't be.
//!
//! | caller | answer |
//! |---|---|
//! | nobody, garbage, an expired token, an ended login, a deleted or expired key | 401 |
//! | a key without the scope, or any key where only people may | 403 `missing-scope` |
//! | a role without the permission | 403 `missing-scope` |
//! | a role with it | anything documented but that |
//! | another tenant's owner | byte for byte as for ids that don't exist; without ids, nothing of this tenant's |
//! | a key that is limited to another session | likewise |
//! | a key of the sandbox | likewise, of sessions of the real network |
//! | a suspended tenant's owner and key | reads as ever; 403 `tenant-suspended` for writes |

use std::collections::BTreeMap;

use control_plane::{
    auth::{Permission, Role, Scope},
    error::Kind,
};
use rstest::rstest;
use serde_json::json;

use crate::{
    harness::{Answer, Engine, TestApp},
    operations::{Access, Mint, World, is_problem, key_body, operations, session_body, unknown},
};

/// About the person, or taking the deletion of the tenant back, so also possible while the tenant may only read.
const WHILE_SUSPENDED: [&str; 11] = [
    "ask_to_verify_email",
    "change_password",
    "confirm_second_factor",
    "disable_second_factor",
    "end_login",
    "enrol_second_factor",
    "keep_tenant",
    "leave_tenant",
    "renew_recovery_codes",
    "switch_tenant",
    "update_me",
];
/// What the owner of a tenant with everything in it finds nothing for: it is for whom the tenant is offered to.
const NOT_FOR_OWNERS: [&str; 1] = ["accept_ownership"];
/// Headers that differ by request.
const BY_REQUEST: [&str; 2] = ["date", "x-request-id"];

/// Everything of an answer that a caller sees and that doesn't differ by request.
fn seen(answer: &Answer) -> (reqwest::StatusCode, Vec<(String, String)>, String) {
    let (status, text) = answer.without_request_id();
    let mut headers: Vec<_> = answer
        .headers
        .iter()
        .filter(|(name, _)| !BY_REQUEST.contains(&name.as_str()) && !name.as_str().starts_with("ratelimit"))
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    headers.sort_unstable();
    (status, headers, text)
}

/// What is the same whichever operation it is for: callers who are nobody (any more).
async fn not_authenticated(mint: &Mint<'_>, world: &World) -> Vec<(&'static str, Option<String>)> {
    let app = mint.app;
    let login = mint.login(&world.tenant, &world.owner.user_id).await;
    let expired = mint.token(&world.tenant, &world.owner.user_id, &login, -60);
    let ended = mint.login(&world.tenant, &world.owner.user_id).await;
    let of_ended = mint.token(&world.tenant, &world.owner.user_id, &ended, 900);
    app.sql("UPDATE logins SET revoked_at = 1 WHERE id = $1", [ended.into()]).await;
    let gone = mint.actor(&world.tenant, Role::Admin).await;
    app.sql("DELETE FROM members WHERE user_id = $1", [gone.user_id.into()]).await;
    let (deleted, deleted_key) = world.api_key(app, key_body(&Scope::ALL)).await;
    app.sql("UPDATE api_keys SET revoked_at = 1 WHERE id = $1", [deleted.into()]).await;
    let (late, late_key) = world.api_key(app, key_body(&Scope::ALL)).await;
    app.sql("UPDATE api_keys SET expires_at = 1 WHERE id = $1", [late.into()]).await;
    vec![
        ("nobody", None),
        ("garbage", Some("garbage".into())),
        ("an expired token", Some(expired)),
        ("the token of an ended login", Some(of_ended)),
        ("somebody who was removed", Some(gone.token)),
        ("a deleted key", Some(deleted_key)),
        ("an expired key", Some(late_key)),
    ]
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn access_matrix_whoever_is_not_known_may_nothing_but_what_is_open(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let mint = Mint::new(&app).await;
    let world = World::new(&mint).await;
    let callers = not_authenticated(&mint, &world).await;
    for operation in operations() {
        let real = |prefix: &str| world.id(prefix);
        if matches!(operation.access, Access::Open) {
            let nobody = operation.call(&app, &real, None).await;
            assert!(!is_problem(&nobody, Kind::MissingScope), "{}: {nobody:?}", operation.id);
            continue;
        }
        for (who, token) in &callers {
            let answer = operation.call(&app, &real, token.as_deref()).await;
            assert!(is_problem(&answer, Kind::Unauthenticated), "{} as {who}: {answer:?}", operation.id);
        }
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn access_matrix_keys_do_what_their_scopes_say_and_never_what_is_for_people(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let mint = Mint::new(&app).await;
    let shared = World::new(&mint).await;
    let (_, every_scope) = shared.api_key(&app, key_body(&Scope::ALL)).await;
    let mut without = BTreeMap::new();
    for scope in Scope::ALL {
        let others: Vec<_> = Scope::ALL.into_iter().filter(|other| *other != scope).collect();
        without.insert(scope, shared.api_key(&app, key_body(&others)).await.1);
    }
    for operation in operations() {
        let real = |prefix: &str| shared.id(prefix);
        let what = &operation.id;
        let (permission, keys) = match &operation.access {
            Access::Open => continue,
            Access::Others => (None, false),
            Access::Tenant { permission, keys, .. } => (*permission, *keys),
        };
        if !keys {
            let answer = operation.call(&app, &real, Some(&every_scope)).await;
            let refused = is_problem(&answer, Kind::MissingScope) || is_problem(&answer, Kind::Unauthenticated);
            assert!(refused, "{what} is for people: {answer:?}");
            continue;
        }
        if let Some(permission) = permission {
            let scope = permission.scope().unwrap_or_else(|| panic!("{what}: no key can have {}", permission.as_str()));
            let answer = operation.call(&app, &real, Some(&without[&scope])).await;
            assert!(is_problem(&answer, Kind::MissingScope), "{what} without {}: {answer:?}", scope.as_str());
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(scope.as_str()), "{what}: {detail}");
        }
        let world = World::new(&mint).await;
        let scopes = permission.and_then(Permission::scope).map_or_else(|| vec![Scope::UsageRead], |scope| vec![scope]);
        let (_, key) = world.api_key(&app, key_body(&scopes)).await;
        let answer = operation.call(&app, &|prefix| world.id(prefix), Some(&key)).await;
        assert!(![401, 403, 404].contains(&answer.status.as_u16()), "{what} with its scope alone: {answer:?}");
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn access_matrix_roles_do_what_the_table_says(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let mint = Mint::new(&app).await;
    let shared = World::new(&mint).await;
    let mut actors = BTreeMap::new();
    for role in Role::ALL.into_iter().filter(|role| *role != Role::Owner) {
        actors.insert(role, mint.actor(&shared.tenant, role).await);
    }
    let mut driven = 0;
    let mut succeeded = Vec::new();
    for operation in operations() {
        let what = &operation.id;
        let (permission, roles) = match &operation.access {
            Access::Open => continue,
            Access::Others => (None, Vec::new()),
            Access::Tenant { permission, roles, .. } => (*permission, roles.clone()),
        };
        if let Some(permission) = permission {
            assert_eq!(roles, permission.roles(), "{what}: the document and the table");
        }
        for role in Role::ALL {
            driven += 1;
            let name = role.as_str();
            if !roles.contains(&role) {
                let token = actors.get(&role).map_or(&shared.owner.token, |actor| &actor.token);
                let answer = operation.call(&app, &|prefix| shared.id(prefix), Some(token)).await;
                let refused = is_problem(&answer, Kind::MissingScope) || is_problem(&answer, Kind::Unauthenticated);
                assert!(refused, "{what} as {name}: {answer:?}");
                continue;
            }
            // One's own world: what is done here may not be undone.
            let world = World::new(&mint).await;
            let token = match role {
                Role::Owner => world.owner.token.clone(),
                other => mint.actor(&world.tenant, other).await.token,
            };
            let answer = operation.call(&app, &|prefix| world.id(prefix), Some(&token)).await;
            let refused = is_problem(&answer, Kind::MissingScope) || answer.status == 401;
            assert!(!refused, "{what} as {name}: {answer:?}");
            if role == Role::Owner {
                // So the ids of a world are real, and another tenant's owner is told nothing of things that are there.
                let found = answer.status != 404 || NOT_FOR_OWNERS.contains(&what.as_str());
                assert!(found, "{what} finds nothing in a world with everything: {answer:?}");
                if answer.status.is_success() {
                    succeeded.push(what.clone());
                }
            }
        }
    }
    assert!(driven >= 5 * 50, "{driven}");
    assert!(succeeded.len() >= 40, "the examples of the document work: {succeeded:?}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn access_matrix_another_tenants_ids_are_answered_byte_for_byte_as_ids_that_do_not_exist(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let mint = Mint::new(&app).await;
    let world = World::new(&mint).await;
    let mut by_id = 0;
    for operation in operations().iter().filter(|operation| !matches!(operation.access, Access::Open)) {
        let what = &operation.id;
        let stranger = World::bare(&mint).await;
        let (_, key) = stranger.api_key(&app, key_body(&Scope::ALL)).await;
        // The one that is about the person comes last: it may end what the others need.
        for token in [&key, &stranger.owner.token] {
            if operation.has_ids() {
                by_id += 1;
                let none = operation.call(&app, &unknown, Some(token)).await;
                let theirs = operation.call(&app, &|prefix| world.id(prefix), Some(token)).await;
                assert_eq!(seen(&theirs), seen(&none), "{what}");
                assert!(none.status.is_client_error() || !operation.writes(), "{what}: {none:?}");
            } else {
                let answer = operation.call(&app, &unknown, Some(token)).await;
                for id in world.ids.values().chain([&world.owner.user_id]) {
                    assert!(!answer.text.contains(id), "{what} tells of another tenant's {id}: {answer:?}");
                }
            }
        }
    }
    assert!(by_id >= 40, "{by_id}");
    // And nothing of it was changed by any of them.
    for path in ["sessions", "api-keys", "invitations", "webhooks", "members"] {
        let prefix = BTreeMap::from([
            ("sessions", "ses"),
            ("api-keys", "key"),
            ("invitations", "ivt"),
            ("webhooks", "whk"),
            ("members", "usr"),
        ])[path];
        let list = Answer::of(app.get(&format!("/api/v1/{path}")).bearer_auth(&world.owner.token)).await;
        assert!(list.text.contains(&world.id(prefix)), "{path}: {list:?}");
    }
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn access_matrix_a_key_limited_to_another_session_finds_as_little_as_a_stranger(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let mint = Mint::new(&app).await;
    let world = World::new(&mint).await;
    let other = world.make(&app, "/api/v1/sessions", session_body()).await;
    let scopes: Vec<_> = Scope::ALL.into_iter().filter(|scope| scope.is_of_sessions()).collect();
    let mut body = key_body(&scopes);
    body["session_ids"] = json!([other]);
    let (_, key) = world.api_key(&app, body).await;
    let mut by_id = 0;
    for operation in operations() {
        let what = &operation.id;
        let real = |prefix: &str| world.id(prefix);
        let Access::Tenant { permission, keys: true, .. } = &operation.access else { continue };
        let answer = operation.call(&app, &real, Some(&key)).await;
        match permission {
            Some(permission) if !permission.scope().is_some_and(Scope::is_of_sessions) => {
                assert!(is_problem(&answer, Kind::MissingScope), "{what}: {answer:?}");
            }
            Some(_) if operation.has_ids() => {
                by_id += 1;
                let none = operation.call(&app, &unknown, Some(&key)).await;
                assert_eq!(seen(&answer), seen(&none), "{what}");
            }
            _ => {
                for prefix in ["ses", "msg"] {
                    assert!(!answer.text.contains(&world.id(prefix)), "{what}: {answer:?}");
                }
                assert!(!operation.writes() || is_problem(&answer, Kind::MissingScope), "{what}: {answer:?}");
            }
        }
    }
    assert!(by_id >= 10, "{by_id}");
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn access_matrix_a_key_of_the_sandbox_finds_nothing_of_real_sessions(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let mint = Mint::new(&app).await;
    let world = World::new(&mint).await;
    let (_, key) = world.api_key(&app, json!({"name": "k", "network": "sandbox", "scopes": Scope::ALL})).await;
    let (_, real_key) = world.api_key(&app, json!({"name": "k", "network": "whatsapp", "scopes": Scope::ALL})).await;
    let list = async |key: &str, path: &str| Answer::of(app.get(&format!("/api/v1/{path}")).bearer_auth(key)).await;
    assert!(list(&key, "sessions").await.text.contains(&world.id("ses")), "while it is one of the sandbox");
    assert!(list(&key, "messages").await.text.contains(&world.id("msg")));
    app.sql("UPDATE sessions SET network = 'whatsapp' WHERE id = $1", [world.id("ses").into()]).await;
    let mut by_id = 0;
    for operation in operations() {
        let what = &operation.id;
        let Access::Tenant { permission: Some(permission), keys: true, .. } = &operation.access else { continue };
        if *permission != Permission::Webhooks && !permission.scope().is_some_and(Scope::is_of_sessions) {
            continue;
        }
        let real = |prefix: &str| world.id(prefix);
        let answer = operation.call(&app, &real, Some(&key)).await;
        if operation.has_ids() {
            by_id += 1;
            let none = operation.call(&app, &unknown, Some(&key)).await;
            assert_eq!(seen(&answer), seen(&none), "{what}");
        } else {
            for prefix in ["ses", "msg", "whk"] {
                assert!(!answer.text.contains(&world.id(prefix)), "{what}: {answer:?}");
            }
        }
    }
    assert!(by_id >= 15, "{by_id}");
    assert!(list(&real_key, "sessions").await.text.contains(&world.id("ses")), "and nothing of it was changed");
    assert!(list(&real_key, "messages").await.text.contains(&world.id("msg")));
    app.stop().await;
}

#[rstest]
#[case::sqlite(Engine::Sqlite)]
#[case::postgres(Engine::Postgres)]
#[tokio::test(flavor = "multi_thread")]
async fn access_matrix_a_suspended_tenant_reads_and_does_not_write(#[case] engine: Engine) {
    let Some(app) = TestApp::start(engine).await else { return };
    let mint = Mint::new(&app).await;
    let mut exempt = Vec::new();
    let world = World::new(&mint).await;
    let (_, key) = world.api_key(&app, key_body(&Scope::ALL)).await;
    app.sql("UPDATE tenants SET status = 'suspended' WHERE id = $1", [world.tenant.as_str().into()]).await;
    for operation in operations() {
        let what = &operation.id;
        let Access::Tenant { keys, .. } = &operation.access else { continue };
        if operation.writes() && !operation.may_answer(Kind::TenantSuspended) {
            let own = World::new(&mint).await;
            app.sql("UPDATE tenants SET status = 'suspended' WHERE id = $1", [own.tenant.as_str().into()]).await;
            let answer = operation.call(&app, &|prefix| own.id(prefix), Some(&own.owner.token)).await;
            assert!(!is_problem(&answer, Kind::TenantSuspended), "{what}: {answer:?}");
            exempt.push(what.clone());
            continue;
        }
        for token in [&world.owner.token, &key].into_iter().take(if *keys { 2 } else { 1 }) {
            let answer = operation.call(&app, &|prefix| world.id(prefix), Some(token)).await;
            let frozen = is_problem(&answer, Kind::TenantSuspended);
            assert_eq!(frozen, operation.writes(), "{what}: {answer:?}");
            assert!(frozen || ![401, 403, 404].contains(&answer.status.as_u16()), "{what}: {answer:?}");
        }
    }
    exempt.sort_unstable();
    assert_eq!(exempt, WHILE_SUSPENDED);
    app.stop().await;
}
