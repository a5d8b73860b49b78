//! The OpenAPI document: gathered from the routes themselves, so a route that isn't in it can't be reached.
//!
//! What a handler says of itself (summary, tag, security with its scopes, request example, answers) stands at the
//! handler. What is the same for all of them is said once here: which problems a kind of handler can answer with
//! ([`problem_responses!`]), the security schemes, and the `X-Request-Id` of every answer.

mod inputs;

use std::collections::BTreeMap;

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest, Sha256};
use shared::problem::{FieldError, MEDIA_TYPE, Problem};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        self, ContentBuilder, Ref, RefOr, ResponseBuilder, Type,
        example::ExampleBuilder,
        header::HeaderBuilder,
        path::{Operation, PathItem},
        schema::ObjectBuilder,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::{
    auth::{Permission, Role},
    error::Kind,
    limits,
};

/// What any operation can answer with.
pub const ALWAYS: &[Kind] = &[Kind::BadRequest, Kind::RateLimited, Kind::Internal, Kind::Unavailable];
/// What an operation that takes [`Auth`](crate::auth::Auth) can answer with.
pub const CALLER: &[Kind] = &[Kind::Unauthenticated, Kind::MissingScope, Kind::AddressNotAllowed];
/// What a writing operation that takes [`Auth`](crate::auth::Auth) can answer with, besides [`CALLER`].
pub const WRITE: &[Kind] = &[Kind::TenantSuspended];
/// What an operation that takes [`ValidJson`](crate::extract::ValidJson) can answer with.
pub const BODY: &[Kind] =
    &[Kind::MalformedJson, Kind::RequestTimeout, Kind::BodyTooLarge, Kind::UnsupportedMediaType, Kind::Validation];
/// What an operation that takes [`PathId`](crate::extract::PathId) can answer with.
pub const BY_ID: &[Kind] = &[Kind::NotFound];
/// What an operation that takes [`Idempotent`](crate::idempotency::Idempotent) can answer with.
pub const IDEMPOTENT: &[Kind] = &[Kind::IdempotencyInFlight, Kind::IdempotencyMismatch];
/// What an operation that takes [`Expected`](crate::extract::entity_tag::Expected) can answer with.
pub const CONDITIONAL: &[Kind] = &[Kind::PreconditionFailed];

/// What an operation can answer with that makes something which the plan limits.
pub const LIMITED: &[Kind] = &[Kind::QuotaExceeded];

/// What an operation can answer with whose attempts are limited, by address and by account.
pub const THROTTLED: &[Kind] = &[Kind::RateLimited];

/// Declares a type for `responses(…)` of `#[utoipa::path]` that lists problems: `problem_responses!(SendProblems =
/// CALLER, WRITE, BODY, IDEMPOTENT, &[Kind::SessionNotRunning]);`. [`ALWAYS`] is added.
macro_rules! problem_responses {
    ($(#[$meta:meta])* $name:ident = $($set:expr),+ $(,)?) => {
        $(#[$meta])*
        pub(crate) struct $name;

        impl ::utoipa::IntoResponses for $name {
            fn responses() -> ::std::collections::BTreeMap<
                ::std::string::String,
                ::utoipa::openapi::RefOr<::utoipa::openapi::Response>,
            > {
                $crate::openapi::responses_of(&[$crate::openapi::ALWAYS, $($set),+])
            }
        }
    };
}
pub(crate) use problem_responses;

problem_responses!(
    /// Of an operation that only reads, by anybody with credentials.
    ReadProblems = CALLER
);
problem_responses!(
    /// Of an operation that only reads one thing, named in the path.
    ReadByIdProblems = CALLER, BY_ID
);

/// `/openapi.json`. It is large, and the same until another version runs: who has it asks whether it has changed.
pub fn served<S: Clone + Send + Sync + 'static>(document: &openapi::OpenApi) -> Router<S> {
    // A document that has no JSON form doesn't pass the contract's test.
    let json = Bytes::from(document.to_json().unwrap_or_default());
    let digest: [u8; 32] = Sha256::digest(&json).into();
    // Weak: it stands for the document in whatever compression.
    let tag = format!("W/\"{}\"", URL_SAFE_NO_PAD.encode(&digest[..12]));
    let answer = async move |headers: HeaderMap| -> Response {
        let cached = [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, "no-cache".to_owned())];
        let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        if known.flat_map(|line| line.split(',')).any(|known| matches!(known.trim(), "*") || known.trim() == tag) {
            return (StatusCode::NOT_MODIFIED, cached).into_response();
        }
        (cached, [(header::CONTENT_TYPE, "application/json")], json.clone()).into_response()
    };
    Router::new().route("/openapi.json", get(answer))
}

/// One response for each status, with an example for each type of problem.
#[must_use]
pub fn responses_of(sets: &[&[Kind]]) -> BTreeMap<String, RefOr<openapi::Response>> {
    let mut by_status: BTreeMap<u16, Vec<Kind>> = BTreeMap::new();
    for kind in sets.iter().copied().flatten().copied() {
        let kinds = by_status.entry(kind.status()).or_default();
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    by_status
        .into_iter()
        .map(|(status, kinds)| {
            let titles: Vec<_> = kinds.iter().map(|kind| format!("`{}`: {}.", kind.uri(), kind.title())).collect();
            let content = kinds.iter().fold(
                ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))),
                |content, kind| {
                    content.examples_from_iter([(
                        kind.slug(),
                        ExampleBuilder::new()
                            .summary(kind.title())
                            .value(Some(json!({
                                "type": kind.uri(),
                                "title": kind.title(),
                                "status": kind.status(),
                                "request_id": "0198c1a2-7a51-7c3e-9d7e-5d3f1f0a4b11",
                            })))
                            .build(),
                    )])
                },
            );
            let response =
                ResponseBuilder::new().description(titles.join(" ")).content(MEDIA_TYPE, content.build()).build();
            (status.to_string(), RefOr::T(response))
        })
        .collect()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Switchboard",
        description = "A WhatsApp gateway of one's own: sessions, messages, webhooks, usage.\n\nErrors are RFC 9457 problem documents; every `type` is explained in `docs/errors.md`.",
        license(name = "AGPL-3.0-only", identifier = "AGPL-3.0-only"),
    ),
    servers((url = "/", description = "This installation")),
    components(schemas(Problem, FieldError)),
    modifiers(&Security),
    tags(
        (name = "auth", description = "Signing up, logging in, and staying logged in."),
        (name = "tenant", description = "The account, and who one is in it."),
        (name = "members", description = "People of the account: invitations, roles, ownership."),
        (name = "api-keys", description = "Credentials for programs."),
        (name = "sessions", description = "Linked WhatsApp devices."),
        (name = "messages", description = "Sending, and the history in both directions."),
        (name = "webhooks", description = "Events, delivered to an endpoint of the tenant's."),
        (name = "events", description = "What happened, in order."),
        (name = "usage", description = "What was metered."),
        (name = "plans", description = "What a tenant may do, and how much."),
        (name = "audit", description = "Who changed what."),
        (name = "admin", description = "For the operators of the installation."),
        (name = "health", description = "Whether the installation works."),
    ),
)]
struct Base;

/// How callers prove who they are.
struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(
            "person",
            SecurityScheme::Http(
                HttpBuilder::new()
                    .scheme(HttpAuthScheme::Bearer)
                    .bearer_format("JWT")
                    .description(Some(
                        "The access token of a person, from `POST /api/v1/auth/login`. The name is the permission that \
                         their role must have; without one, that of the API key is meant.",
                    ))
                    .build(),
            ),
        );
        components.add_security_scheme(
            "operator",
            SecurityScheme::Http(
                HttpBuilder::new()
                    .scheme(HttpAuthScheme::Bearer)
                    .bearer_format("sbo_…")
                    .description(Some("The token of an operator, from `POST /api/v1/admin/auth/login`."))
                    .build(),
            ),
        );
        components.add_security_scheme(
            "metrics_token",
            SecurityScheme::Http(
                HttpBuilder::new()
                    .scheme(HttpAuthScheme::Bearer)
                    .description(Some("The setting `METRICS_TOKEN` of the installation."))
                    .build(),
            ),
        );
        components.add_security_scheme(
            "api_key",
            SecurityScheme::Http(
                HttpBuilder::new()
                    .scheme(HttpAuthScheme::Bearer)
                    .bearer_format("sb_live_… or sb_test_…")
                    .description(Some("An API key. The names are the scopes that it needs."))
                    .build(),
            ),
        );
        components.add_security_scheme(
            "api_key_header",
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
                "X-Api-Key",
                "An API key. The names are the scopes that it needs.",
            ))),
        );
    }
}

/// The document that the routes are gathered into.
#[must_use]
pub fn base() -> openapi::OpenApi {
    Base::openapi()
}

/// Adds what is the same everywhere: the `X-Request-Id` of every answer, and where a caller stands with its limits; and to each
/// operation, for programs, which permission it needs and which roles have it (`x-access`).
pub fn finish(document: &mut openapi::OpenApi) {
    inputs::complete(document);
    for (path, item) in &mut document.paths.paths {
        let limited = limits::covers(path);
        for operation in operations(item) {
            if !limited {
                operation.responses.responses.remove("429");
            }
            if let Some(access) = access(operation) {
                operation.extensions.get_or_insert_default().insert("x-access".into(), access);
            }
            for response in operation.responses.responses.values_mut() {
                if let RefOr::T(response) = response {
                    response.headers.insert(
                        "X-Request-Id".into(),
                        HeaderBuilder::new()
                            .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
                            .description(Some("The request's own id, or the one that was made for it."))
                            .build()
                            .into(),
                    );
                    if limited {
                        response.headers.extend(
                            RATE_LIMIT_HEADERS.map(|(name, what)| (name.to_owned(), integer_header(what).into())),
                        );
                    }
                }
            }
        }
    }
}

/// What tells a caller where it stands; left out where nothing is limited.
const RATE_LIMIT_HEADERS: [(&str, &str); 3] = [
    ("RateLimit-Limit", "How many requests can be sent at once."),
    ("RateLimit-Remaining", "How many more can be sent right now, of the limit that is nearest."),
    ("RateLimit-Reset", "In how many seconds as many as `RateLimit-Limit` can be sent again."),
];

fn integer_header(what: &str) -> openapi::header::Header {
    HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0))))
        .description(Some(what))
        .build()
}

/// What the security requirements of an operation come to; nothing for one that is open to all.
fn access(operation: &Operation) -> Option<serde_json::Value> {
    let requirements = serde_json::to_value(operation.security.as_ref()?).ok()?;
    let requirements = requirements.as_array()?;
    let of = |scheme: &str| requirements.iter().find_map(|requirement| requirement.get(scheme)?.as_array());
    let (people, keys) = (of("person")?, of("api_key"));
    let named = people.iter().chain(keys.into_iter().flatten()).find_map(|name| Permission::named(name.as_str()?));
    let roles: Vec<Role> = match named {
        Some(permission) => permission.roles().to_vec(),
        None => Role::ALL.to_vec(),
    };
    Some(json!({"permission": named, "roles": roles, "api_keys": keys.is_some()}))
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.options,
        &mut item.head,
        &mut item.patch,
        &mut item.trace,
    ]
    .into_iter()
    .flatten()
}
