//! Every operation of the OpenAPI document, by every kind of caller.
//!
//! Made from the document alone: the path's and the query's ids by their schemas, the body from the documented example, what
//! each caller may from `x-access` and the security schemes. So an operation that is added is driven too, and the test fails
//! when it can't be: when it takes an id of a kind that [`World`] has none of, or doesn't say who may call it.
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

use std::{collections::BTreeMap, sync::LazyLock};

use control_plane::{
    app,
    auth::{self, Permission, Purpose, Role, Scope},
    error::Kind,
};
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use shared::{
    identity::SigningKey,
    ids::{DeliveryId, ExportId, KeyId, LoginId, MessageId, UserId},
    time::Timestamp,
};

use crate::{
    harness::{Answer, Engine, TestApp},
    parts,
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

/// Whom an operation lets in, as the document says.
enum Access {
    /// Anybody.
    Open,
    /// Those of a tenant, by permission.
    Tenant { permission: Option<Permission>, roles: Vec<Role>, keys: bool },
    /// Nobody of a tenant.
    Others,
}

struct Operation {
    id: String,
    method: Method,
    path: String,
    access: Access,
    document: Value,
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(app::document()).unwrap());

fn operations() -> Vec<Operation> {
    let mut found = Vec::new();
    for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            let schemes: Vec<_> = operation["security"]
                .as_array()
                .unwrap_or_else(|| panic!("{id} doesn't say who may call it"))
                .iter()
                .map(|scheme| scheme.as_object().unwrap().keys().next().cloned())
                .collect();
            let has = |name: &str| schemes.iter().flatten().any(|scheme| scheme == name);
            let access = if schemes.contains(&None) {
                Access::Open
            } else if has("person") {
                let said = &operation["x-access"];
                let named = said["permission"].as_str();
                let permission = named.map(|name| Permission::named(name).unwrap_or_else(|| panic!("{id}: {name}")));
                let roles: Vec<Role> = serde_json::from_value(said["roles"].clone())
                    .unwrap_or_else(|_| panic!("{id} doesn't say which roles may call it"));
                assert_eq!(has("api_key"), said["api_keys"], "{id}");
                Access::Tenant { permission, roles, keys: has("api_key") }
            } else {
                assert!(!schemes.is_empty(), "{id} doesn't say who may call it");
                Access::Others
            };
            let method = method.to_uppercase().parse().unwrap();
            found.push(Operation { id, method, path: path.clone(), access, document: operation.clone() });
        }
    }
    found
}

/// Somebody who is logged in.
struct Actor {
    user_id: String,
    token: String,
}

/// What makes callers cheaply: no password is hashed, and tokens are signed here.
struct Mint<'a> {
    app: &'a TestApp,
    key: SigningKey,
    /// Of the password of the document's examples.
    password_hash: String,
}

impl<'a> Mint<'a> {
    async fn new(app: &'a TestApp) -> Self {
        let parts = app.app();
        let key = auth::signing_key(&parts.db, &parts.master_key, Purpose::AccessTokens).await.unwrap();
        let person = app.sign_up().await;
        let password_hash = text(app, "SELECT password_hash FROM users WHERE id = $1", &person.user_id).await;
        Self { app, key, password_hash }
    }

    async fn actor(&self, tenant: &str, role: Role) -> Actor {
        let user_id = UserId::new().to_string();
        let now = Timestamp::now();
        let email = format!("{user_id}@example.com");
        self.app
            .sql(
                "INSERT INTO users (id, email, name, password_hash, created_at) VALUES ($1, $2, 'Ada', $3, $4)",
                [user_id.as_str().into(), email.into(), self.password_hash.as_str().into(), now.into()],
            )
            .await;
        self.app
            .sql(
                "INSERT INTO members (tenant_id, user_id, role, created_at) VALUES ($1, $2, $3, $4)",
                [tenant.into(), user_id.as_str().into(), role.as_str().into(), now.into()],
            )
            .await;
        let login = self.login(tenant, &user_id).await;
        Actor { token: self.token(tenant, &user_id, &login, 900), user_id }
    }

    async fn login(&self, tenant: &str, user: &str) -> String {
        let id = LoginId::new().to_string();
        let end = Timestamp::now().as_millis() + 3_600_000;
        let insert = "INSERT INTO logins (id, user_id, tenant_id, created_at, expires_at) VALUES ($1, $2, $3, 0, $4)";
        self.app.sql(insert, [id.as_str().into(), user.into(), tenant.into(), end.into()]).await;
        id
    }

    fn token(&self, tenant: &str, user: &str, login: &str, lives: i64) -> String {
        let now = Timestamp::now().as_millis() / 1000;
        let claims = json!({"iss": "switchboard", "aud": "switchboard-api", "sub": user, "tenant": tenant,
                            "login": login, "iat": now - 3600, "exp": now + lives});
        self.key.sign(&claims).unwrap()
    }
}

async fn text(app: &TestApp, query: &str, id: &str) -> String {
    use sea_orm::{ConnectionTrait, Statement};
    let db = &app.app().db;
    let statement = Statement::from_sql_and_values(db.engine(), query, [id.into()]);
    db.read().query_one_raw(statement).await.unwrap().unwrap().try_get_by_index(0).unwrap()
}

/// A tenant with an owner and one of everything.
struct World {
    tenant: String,
    owner: Actor,
    /// By the prefix of their kind.
    ids: BTreeMap<&'static str, String>,
}

impl World {
    /// Without anything but the owner.
    async fn bare(mint: &Mint<'_>) -> Self {
        let tenant = parts::tenant(mint.app.app()).await.id().to_string();
        let owner = mint.actor(&tenant, Role::Owner).await;
        Self { tenant, owner, ids: BTreeMap::new() }
    }

    async fn new(mint: &Mint<'_>) -> Self {
        let mut world = Self::bare(mint).await;
        let app = mint.app;
        let tenant = world.tenant.as_str();
        let colleague = mint.actor(tenant, Role::Viewer).await;
        let offer =
            "INSERT INTO ownership_offers (tenant_id, to_user_id, created_at, expires_at) VALUES ($1, $2, 0, $3)";
        let later = Timestamp::now().as_millis() + 3_600_000;
        app.sql(offer, [tenant.into(), colleague.user_id.as_str().into(), later.into()]).await;
        let login = mint.login(tenant, &world.owner.user_id).await;
        let session = world.make(app, "/api/v1/sessions", session_body()).await;
        let key = world.make(app, "/api/v1/api-keys", key_body(&Scope::ALL)).await;
        let invitation = json!({"email": "grace@example.com", "role": "viewer"});
        let invitation = world.make(app, "/api/v1/invitations", invitation).await;
        let webhook = json!({"url": "https://93.184.216.34/hook", "event_types": ["message.received"]});
        let webhook = world.make(app, "/api/v1/webhooks", webhook).await;
        let message = MessageId::new().to_string();
        let insert = "INSERT INTO messages (id, tenant_id, session_id, direction, wa_id, chat, sender, kind, status, \
                      created_at) VALUES ($1, $2, $3, 'inbound', $1, 'c', 'c', 'text', 'delivered', 0)";
        app.sql(insert, [message.as_str().into(), tenant.into(), session.as_str().into()]).await;
        let export = ExportId::new().to_string();
        let insert = "INSERT INTO exports (id, tenant_id, requested_by, status, created_at, expires_at) \
                      VALUES ($1, $2, $3, 'failed', 0, $4)";
        let by = world.owner.user_id.as_str();
        app.sql(insert, [export.as_str().into(), tenant.into(), by.into(), later.into()]).await;
        let delivery = DeliveryId::new().to_string();
        let insert = "INSERT INTO deliveries (id, tenant_id, webhook_id, event_id, event_type, status, created_at, \
                      completed_at) VALUES ($1, $2, $3, $1, 'message.received', 'failed', 0, 1)";
        app.sql(insert, [delivery.as_str().into(), tenant.into(), webhook.as_str().into()]).await;
        world.ids = BTreeMap::from([
            ("ten", world.tenant.clone()),
            ("usr", colleague.user_id),
            ("lgn", login),
            ("ses", session),
            ("key", key),
            ("ivt", invitation),
            ("whk", webhook),
            ("msg", message),
            ("dlv", delivery),
            ("exp", export),
        ]);
        world
    }

    async fn make(&self, app: &TestApp, path: &str, body: Value) -> String {
        let made = Answer::of(app.post(path, &body).bearer_auth(&self.owner.token)).await;
        assert_eq!(made.status, 201, "{path}: {made:?}");
        made.json()["id"].as_str().unwrap().to_owned()
    }

    async fn api_key(&self, app: &TestApp, body: Value) -> (String, String) {
        let made = Answer::of(app.post("/api/v1/api-keys", &body).bearer_auth(&self.owner.token)).await;
        assert_eq!(made.status, 201, "{made:?}");
        let text = |name: &str| made.json()[name].as_str().unwrap().to_owned();
        (text("id"), text("key"))
    }

    fn id(&self, prefix: &str) -> String {
        self.ids.get(prefix).unwrap_or_else(|| panic!("a world has nothing with the prefix {prefix}: add one")).clone()
    }
}

fn session_body() -> Value {
    json!({"name": "s", "network": "sandbox", "start": false})
}

fn key_body(scopes: &[Scope]) -> Value {
    json!({"name": "k", "network": "sandbox", "scopes": scopes})
}

/// An id of that kind that nothing has.
fn unknown(prefix: &str) -> String {
    let other = KeyId::new().to_string();
    format!("{prefix}_{}", other.strip_prefix("key_").unwrap())
}

/// The prefix of a text that is an id.
fn prefix_of(text: &str) -> Option<&str> {
    let (prefix, rest) = text.split_once('_')?;
    (prefix.len() == 3 && rest.len() == 26 && rest.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(prefix)
}

impl Operation {
    /// The prefix of the ids of a parameter, by the pattern of its schema.
    fn kind_of(parameter: &Value) -> Option<String> {
        let name = parameter["schema"]["$ref"].as_str()?.rsplit('/').next().unwrap();
        let pattern = DOCUMENT["components"]["schemas"][name]["pattern"].as_str()?;
        Some(pattern.strip_prefix('^')?.split('_').next()?.to_owned())
    }

    fn example(&self) -> Option<Value> {
        let content = self.document.get("requestBody")?["content"]["application/json"].clone();
        let first =
            || content["examples"].as_object().and_then(|all| all.values().next()).map(|one| one["value"].clone());
        Some(content.get("example").cloned().or_else(first).unwrap_or_else(|| panic!("{} has no example", self.id)))
    }

    /// Whether it names anything by an id.
    fn has_ids(&self) -> bool {
        let seen = std::cell::Cell::new(false);
        self.request_parts(&|prefix| {
            seen.set(true);
            unknown(prefix)
        });
        seen.get()
    }

    /// Path with query, and body, with ids in place of their kinds.
    fn request_parts(&self, id: &dyn Fn(&str) -> String) -> (String, Option<Value>) {
        let mut path = self.path.clone();
        let mut query = Vec::new();
        for parameter in self.document["parameters"].as_array().into_iter().flatten() {
            let (name, place) = (parameter["name"].as_str().unwrap(), parameter["in"].as_str().unwrap());
            let kind = Self::kind_of(parameter);
            match (place, kind) {
                ("path", Some(kind)) => path = path.replace(&format!("{{{name}}}"), &id(&kind)),
                // A name that people choose.
                ("path", None) => match parameter["example"].as_str() {
                    Some(example) => path = path.replace(&format!("{{{name}}}"), example),
                    None => panic!("{}: the path's {name} is no id of a known kind", self.id),
                },
                ("query", Some(kind)) => query.push(format!("{name}={}", id(&kind))),
                _ => {}
            }
        }
        assert!(!path.contains('{'), "{}: {path} has a parameter that isn't documented", self.id);
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        let mut body = self.example();
        if let Some(body) = &mut body {
            replace(body, id);
        }
        (path, body)
    }

    /// The request as the document describes it.
    fn request(&self, app: &TestApp, id: &dyn Fn(&str) -> String, token: Option<&str>) -> reqwest::RequestBuilder {
        let (path, body) = self.request_parts(id);
        let mut request = app.request(self.method.clone(), &path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The answer, which must be one that the document knows.
    async fn call(&self, app: &TestApp, id: &dyn Fn(&str) -> String, token: Option<&str>) -> Answer {
        let answer = Answer::of(self.request(app, id, token)).await;
        let documented = self.document["responses"].get(answer.status.as_str());
        assert!(documented.is_some(), "{}: {answer:?} is not documented", self.id);
        assert!(!answer.status.is_server_error(), "{}: {answer:?}", self.id);
        answer
    }

    const fn writes(&self) -> bool {
        !matches!(self.method, Method::GET | Method::HEAD)
    }

    /// Whether the document says that it can answer with this problem.
    fn may_answer(&self, kind: Kind) -> bool {
        let response = &self.document["responses"][kind.status().to_string()];
        response["content"]["application/problem+json"]["examples"].get(kind.slug()).is_some()
    }
}

fn replace(value: &mut Value, id: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => {
            if let Some(prefix) = prefix_of(text) {
                *text = id(prefix);
            } else {
                // No test asks a name server.
                *text = text.replace("https://example.com", "https://93.184.216.34");
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, id)),
        Value::Object(map) => map.values_mut().for_each(|item| replace(item, id)),
        _ => {}
    }
}

fn is_problem(answer: &Answer, kind: Kind) -> bool {
    answer.status.as_u16() == kind.status() && answer.json()["type"] == kind.uri()
}

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
    let (_, key) = world.api_key(&app, key_body(&Scope::ALL)).await;
    let (_, real_key) = world.api_key(&app, json!({"name": "k", "network": "whatsapp", "scopes": Scope::ALL})).await;
    let list = async |key: &str, path: &str| Answer::of(app.get(&format!("/api/v1/{path}")).bearer_auth(key)).await;
    assert!(list(&key, "sessions").await.text.contains(&world.id("ses")), "while it is one of the sandbox");
    assert!(list(&key, "messages").await.text.contains(&world.id("msg")));
    app.sql("UPDATE sessions SET network = 'whatsapp' WHERE id = $1", [world.id("ses").into()]).await;
    let mut by_id = 0;
    for operation in operations() {
        let what = &operation.id;
        let Access::Tenant { permission: Some(permission), keys: true, .. } = &operation.access else { continue };
        if !permission.scope().is_some_and(Scope::is_of_sessions) {
            continue;
        }
        let real = |prefix: &str| world.id(prefix);
        let answer = operation.call(&app, &real, Some(&key)).await;
        if operation.has_ids() {
            by_id += 1;
            let none = operation.call(&app, &unknown, Some(&key)).await;
            assert_eq!(seen(&answer), seen(&none), "{what}");
        } else {
            for prefix in ["ses", "msg"] {
                assert!(!answer.text.contains(&world.id(prefix)), "{what}: {answer:?}");
            }
        }
    }
    assert!(by_id >= 10, "{by_id}");
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
