//! Endpoints and deliveries as the API shows them.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;
use shared::{
    ids::{DeliveryId, EventId, WebhookId},
    time::Timestamp,
    wire::session::Network,
};
use url::Url;
use utoipa::{
    IntoParams, ToSchema,
    openapi::{Array, ArrayBuilder, ObjectBuilder, Type, schema::SchemaType},
};
use validator::{Validate, ValidationError};

use super::entity::{
    delivery::{self, DeliveryStatus},
    webhook::{self, DisabledReason, EventTypes, WebhookStatus},
};
use crate::events::EventType;

/// How many types of events an endpoint can list.
const MAX_TYPES: u64 = 50;

/// An endpoint to be made.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateWebhook {
    /// Where events are posted: `http` or `https`, a public address, port 80, 443 or one that the operator allows.
    #[schema(value_type = String, format = "uri", max_length = 2048, example = "https://example.com/hooks/switchboard")]
    pub url: Url,
    /// Which types of events; `[]` or `["*"]` means all.
    #[serde(default)]
    #[validate(length(max = MAX_TYPES), custom(function = "known_types"))]
    #[schema(schema_with = wanted_types)]
    pub event_types: Vec<String>,
}

/// What of an endpoint can be changed. What is absent stays.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateWebhook {
    /// Another URL.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = "uri", max_length = 2048, example = "https://example.com/hooks/two")]
    pub url: Option<Url>,
    /// Other types of events; `[]` or `["*"]` means all.
    #[serde(default)]
    #[validate(length(max = MAX_TYPES), custom(function = "known_types"))]
    #[schema(schema_with = other_types)]
    pub event_types: Option<Vec<String>>,
    /// `enabled` ends a disablement, also ours.
    #[serde(default)]
    pub status: Option<WebhookStatus>,
}

fn wanted_types() -> Array {
    types(Type::Array.into(), "Which types of events; `[]` or `[\"*\"]` means all.")
}

fn other_types() -> Array {
    types(SchemaType::from_iter([Type::Array, Type::Null]), "Other types of events; `[]` or `[\"*\"]` means all.")
}

fn types(of: SchemaType, description: &str) -> Array {
    let names = EventType::ALL.iter().map(|kind| kind.as_str()).chain(["*"]);
    ArrayBuilder::new()
        .schema_type(of)
        .items(ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names)))
        .max_items(usize::try_from(MAX_TYPES).ok())
        .description(Some(description))
        .examples([json!(["message.received", "message.status"])])
        .build()
}

fn known_types(names: &[String]) -> Result<(), ValidationError> {
    if names.iter().all(|name| name == "*" || EventType::named(name).is_some()) {
        return Ok(());
    }
    let known: Vec<_> = EventType::ALL.iter().map(|kind| kind.as_str()).collect();
    Err(ValidationError::new("event_type").with_message(format!("must be * or of {}", known.join(", ")).into()))
}

/// Validated names as a filter.
pub(super) fn filter(names: &[String]) -> EventTypes {
    if names.iter().any(|name| name == "*") {
        return EventTypes::default();
    }
    let mut kinds: Vec<_> = names.iter().filter_map(|name| EventType::named(name)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    EventTypes(kinds)
}

/// A webhook endpoint.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Webhook {
    /// Its id.
    pub id: WebhookId,
    /// The only network whose sessions it is told of; null: of all. An endpoint that a key of the sandbox made is for the sandbox.
    pub network: Option<Network>,
    /// Where events are posted.
    #[schema(format = "uri", example = "https://example.com/hooks/switchboard")]
    pub url: String,
    /// Which types of events it is told; empty means all.
    pub event_types: Vec<EventType>,
    /// Whether it is delivered to.
    pub status: WebhookStatus,
    /// Why we disabled it, if we did.
    pub disabled_reason: Option<DisabledReason>,
    /// Since when no delivery has succeeded although one was tried.
    pub failing_since: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its owner last changed it.
    pub updated_at: Timestamp,
}

impl From<webhook::Model> for Webhook {
    fn from(row: webhook::Model) -> Self {
        Self {
            id: row.id,
            network: row.network.map(Network::from),
            url: row.url,
            event_types: row.event_types.0,
            status: row.status,
            disabled_reason: row.disabled_reason,
            failing_since: row.failing_since,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// A new endpoint. The only time, besides a rotation, that the secret is shown.
#[derive(Debug, Serialize, ToSchema)]
pub struct CreatedWebhook {
    /// The endpoint.
    #[serde(flatten)]
    pub webhook: Webhook,
    /// What deliveries are signed with (Standard Webhooks, HMAC-SHA256).
    #[serde(serialize_with = "shown_once")]
    #[schema(value_type = String, example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    pub secret: SecretString,
}

/// The new secret of an endpoint.
#[derive(Debug, Serialize, ToSchema)]
pub struct RotatedSecret {
    /// What deliveries are signed with from now on.
    #[serde(serialize_with = "shown_once")]
    #[schema(value_type = String, example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    pub secret: SecretString,
    /// Until then deliveries are signed with the previous secret, too.
    pub previous_secret_valid_until: Timestamp,
}

fn shown_once<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

/// A test event on its way.
#[derive(Debug, Serialize, ToSchema)]
pub struct TestSent {
    /// The event, of type `webhook.test`.
    pub event_id: EventId,
}

/// One event on its way to one endpoint.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Delivery {
    /// Its id.
    pub id: DeliveryId,
    /// The endpoint.
    pub webhook_id: WebhookId,
    /// The event: the header `webhook-id` of every try.
    pub event_id: EventId,
    /// The event's type.
    #[schema(value_type = EventType)]
    pub event_type: String,
    /// How far it is.
    pub status: DeliveryStatus,
    /// How often it was tried since it was made or replayed.
    #[schema(minimum = 0, example = 1)]
    pub attempts: i64,
    /// When it is tried next.
    pub next_attempt_at: Option<Timestamp>,
    /// The HTTP status of the last try.
    #[schema(example = 200)]
    pub last_status: Option<i64>,
    /// Why the last try got no status: `timeout`, `connection_failed`, `connection_broken`, `url_not_allowed`; or why there was none:
    /// `endpoint_disabled`, `event_expired`, `interrupted_too_often`.
    #[schema(example = "timeout")]
    pub last_error: Option<String>,
    /// How long the last try took, in milliseconds.
    #[schema(example = 84)]
    pub last_duration_ms: Option<i64>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it succeeded, or was given up.
    pub completed_at: Option<Timestamp>,
}

impl From<delivery::Model> for Delivery {
    fn from(row: delivery::Model) -> Self {
        Self {
            id: row.id,
            webhook_id: row.webhook_id,
            event_id: row.event_id,
            event_type: row.event_type,
            status: row.status,
            attempts: row.attempts,
            next_attempt_at: row.next_attempt_at,
            last_status: row.last_status,
            last_error: row.last_error,
            last_duration_ms: row.last_duration_ms,
            created_at: row.created_at,
            completed_at: row.completed_at,
        }
    }
}

/// `?status=`.
#[derive(Debug, Clone, Copy, Default, Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeliveryFilter {
    /// Only deliveries that are so far.
    #[param(example = "failed", inline)]
    pub status: Option<DeliveryStatus>,
}
