//! Drives every operation of the OpenAPI document, made from the document alone: the path's and the query's ids by their schemas, the
//! body from the documented example, who may call it from `x-access` and the security schemes.
//!
//! An operation that can't be driven so fails the test that tries: one that takes an id of a kind that [`World`] has none of, or doesn't
//! say who may call it.

use std::{collections::BTreeMap, sync::LazyLock};

use control_plane::{
    app,
    auth::{self, Permission, Purpose, Role, Scope},
    error::Kind,
};
use reqwest::Method;
use serde_json::{Value, json};
use shared::{
    identity::SigningKey,
    ids::{DeliveryId, ExportId, JobId, KeyId, LoginId, MessageId, UserId},
    time::Timestamp,
};

use crate::{
    harness::{Answer, TestApp},
    parts,
};

/// Whom an operation lets in, as the document says.
pub enum Access {
    /// Anybody.
    Open,
    /// Those of a tenant, by permission.
    Tenant { permission: Option<Permission>, roles: Vec<Role>, keys: bool },
    /// Nobody of a tenant.
    Others,
}

pub struct Operation {
    pub id: String,
    pub method: Method,
    pub path: String,
    pub access: Access,
    pub document: Value,
}

pub static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(app::document()).unwrap());

pub fn operations() -> Vec<Operation> {
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
pub struct Actor {
    pub user_id: String,
    pub token: String,
}

/// What makes callers cheaply: no password is hashed, and tokens are signed here.
pub struct Mint<'a> {
    pub app: &'a TestApp,
    pub key: SigningKey,
    /// Of the password of the document's examples.
    pub password_hash: String,
}

impl<'a> Mint<'a> {
    pub async fn new(app: &'a TestApp) -> Self {
        let parts = app.app();
        let key = auth::signing_key(&parts.db, &parts.master_key, Purpose::AccessTokens).await.unwrap();
        let person = app.sign_up().await;
        let password_hash = text(app, "SELECT password_hash FROM users WHERE id = $1", &person.user_id).await;
        Self { app, key, password_hash }
    }

    pub async fn actor(&self, tenant: &str, role: Role) -> Actor {
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

    pub async fn login(&self, tenant: &str, user: &str) -> String {
        let id = LoginId::new().to_string();
        let end = Timestamp::now().as_millis() + 3_600_000;
        let insert = "INSERT INTO logins (id, user_id, tenant_id, created_at, expires_at) VALUES ($1, $2, $3, 0, $4)";
        self.app.sql(insert, [id.as_str().into(), user.into(), tenant.into(), end.into()]).await;
        id
    }

    pub fn token(&self, tenant: &str, user: &str, login: &str, lives: i64) -> String {
        let now = Timestamp::now().as_millis() / 1000;
        let claims = json!({"iss": "switchboard", "aud": "switchboard-api", "sub": user, "tenant": tenant,
                            "login": login, "iat": now - 3600, "exp": now + lives});
        self.key.sign(&claims).unwrap()
    }
}

pub async fn text(app: &TestApp, query: &str, id: &str) -> String {
    use sea_orm::{ConnectionTrait, Statement};
    let db = &app.app().db;
    let statement = Statement::from_sql_and_values(db.engine(), query, [id.into()]);
    db.read().query_one_raw(statement).await.unwrap().unwrap().try_get_by_index(0).unwrap()
}

/// A tenant with an owner and one of everything.
pub struct World {
    pub tenant: String,
    pub owner: Actor,
    /// By the prefix of their kind.
    pub ids: BTreeMap<&'static str, String>,
}

impl World {
    /// Without anything but the owner.
    pub async fn bare(mint: &Mint<'_>) -> Self {
        let tenant = parts::tenant(mint.app.app()).await.id().to_string();
        let owner = mint.actor(&tenant, Role::Owner).await;
        Self { tenant, owner, ids: BTreeMap::new() }
    }

    pub async fn new(mint: &Mint<'_>) -> Self {
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
        let job = JobId::new().to_string();
        let insert = "INSERT INTO jobs (id, tenant_id, kind, lane, state, run_at, attempts, max_attempts, subject, created_at, \
                      finished_at) VALUES ($1, $2, 'webhooks.deliver', $3, 'dead', 0, 8, 8, $3, 0, $4)";
        let now = Timestamp::now().as_millis();
        app.sql(insert, [job.as_str().into(), tenant.into(), delivery.as_str().into(), now.into()]).await;
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
            ("job", job),
        ]);
        world
    }

    pub async fn make(&self, app: &TestApp, path: &str, body: Value) -> String {
        let made = Answer::of(app.post(path, &body).bearer_auth(&self.owner.token)).await;
        assert_eq!(made.status, 201, "{path}: {made:?}");
        made.json()["id"].as_str().unwrap().to_owned()
    }

    pub async fn api_key(&self, app: &TestApp, body: Value) -> (String, String) {
        let made = Answer::of(app.post("/api/v1/api-keys", &body).bearer_auth(&self.owner.token)).await;
        assert_eq!(made.status, 201, "{made:?}");
        let text = |name: &str| made.json()[name].as_str().unwrap().to_owned();
        (text("id"), text("key"))
    }

    pub fn id(&self, prefix: &str) -> String {
        self.ids.get(prefix).unwrap_or_else(|| panic!("a world has nothing with the prefix {prefix}: add one")).clone()
    }
}

pub fn session_body() -> Value {
    json!({"name": "s", "network": "sandbox", "start": false})
}

pub fn key_body(scopes: &[Scope]) -> Value {
    json!({"name": "k", "network": "whatsapp", "scopes": scopes})
}

/// An id of that kind that nothing has.
pub fn unknown(prefix: &str) -> String {
    let other = KeyId::new().to_string();
    format!("{prefix}_{}", other.strip_prefix("key_").unwrap())
}

/// The prefix of a text that is an id.
pub fn prefix_of(text: &str) -> Option<&str> {
    let (prefix, rest) = text.split_once('_')?;
    (prefix.len() == 3 && rest.len() == 26 && rest.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(prefix)
}

impl Operation {
    /// The prefix of the ids of a parameter, by the pattern of its schema.
    pub fn kind_of(parameter: &Value) -> Option<String> {
        let name = parameter["schema"]["$ref"].as_str()?.rsplit('/').next().unwrap();
        let pattern = DOCUMENT["components"]["schemas"][name]["pattern"].as_str()?;
        Some(pattern.strip_prefix('^')?.split('_').next()?.to_owned())
    }

    pub fn example(&self) -> Option<Value> {
        let content = self.document.get("requestBody")?["content"]["application/json"].clone();
        let first =
            || content["examples"].as_object().and_then(|all| all.values().next()).map(|one| one["value"].clone());
        Some(content.get("example").cloned().or_else(first).unwrap_or_else(|| panic!("{} has no example", self.id)))
    }

    /// Whether it names anything by an id.
    pub fn has_ids(&self) -> bool {
        let seen = std::cell::Cell::new(false);
        self.request_parts(&|prefix| {
            seen.set(true);
            unknown(prefix)
        });
        seen.get()
    }

    /// Path with query, and body, with ids in place of their kinds.
    pub fn request_parts(&self, id: &dyn Fn(&str) -> String) -> (String, Option<Value>) {
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

    /// Called with another body than the documented example.
    #[must_use]
    pub fn with_body(mut self, body: Value) -> Self {
        self.document["requestBody"]["content"]["application/json"] = json!({"example": body});
        self
    }

    /// The request as the document describes it.
    pub fn request(&self, app: &TestApp, id: &dyn Fn(&str) -> String, token: Option<&str>) -> reqwest::RequestBuilder {
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
    pub async fn call(&self, app: &TestApp, id: &dyn Fn(&str) -> String, token: Option<&str>) -> Answer {
        let answer = Answer::of(self.request(app, id, token)).await;
        let documented = self.document["responses"].get(answer.status.as_str());
        assert!(documented.is_some(), "{}: {answer:?} is not documented", self.id);
        assert!(!answer.status.is_server_error(), "{}: {answer:?}", self.id);
        answer
    }

    pub const fn writes(&self) -> bool {
        !matches!(self.method, Method::GET | Method::HEAD)
    }

    /// Whether the document says that it can answer with this problem.
    pub fn may_answer(&self, kind: Kind) -> bool {
        let response = &self.document["responses"][kind.status().to_string()];
        response["content"]["application/problem+json"]["examples"].get(kind.slug()).is_some()
    }
}

pub fn replace(value: &mut Value, id: &dyn Fn(&str) -> String) {
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

pub fn is_problem(answer: &Answer, kind: Kind) -> bool {
    answer.status.as_u16() == kind.status() && answer.json()["type"] == kind.uri()
}
