//! What operators see.

use std::{borrow::Cow, collections::BTreeMap};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use shared::{
    ids::{JobId, OperatorId, SessionId, TenantId, WorkerId},
    time::Timestamp,
    wire::session::Network,
};
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};
use validator::Validate;

use super::entity::operator;
use crate::{
    auth::{EmailAddress, Shown},
    health::{QueueHealth, WorkersHealth},
    jobs::{DeadJob, JobKind, schedule::installation},
    sessions::{
        entity::{self, DesiredColumn},
        status::State,
    },
    tenants::{Tenant, TenantStatus},
    workers::{entity::Schedulability, policy::Availability},
};

/// An operator who logs in.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OperatorLogIn {
    /// E-mail address.
    #[schema(value_type = String, format = Email, example = "operator@example.com", max_length = 254)]
    #[validate(nested)]
    pub email: EmailAddress,
    /// Password.
    #[validate(nested)]
    #[schema(value_type = String, format = Password, example = "correct horse battery", max_length = 200)]
    pub password: Shown<0>,
}

/// The second step of an operator's logging in.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OperatorLogInCode {
    /// From the answer of the first step.
    #[validate(nested)]
    #[schema(value_type = String, example = "sbc_q2Zx…", max_length = 200)]
    pub challenge_token: Shown<0>,
    /// Six digits of the device, or a recovery code.
    #[validate(nested)]
    #[schema(value_type = String, example = "492039", max_length = 200)]
    pub code: Shown<0>,
}

/// The token of an operator's login.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperatorToken {
    /// To be sent as `Authorization: Bearer …`, to `/api/v1/admin` only.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String, example = "sbo_q2Zx…")]
    pub access_token: SecretString,
    /// Always `Bearer`.
    #[schema(example = "Bearer")]
    pub token_type: &'static str,
    /// How long it lives, in seconds. Then log in again.
    #[schema(example = 43200)]
    pub expires_in: u64,
    /// Who is logged in.
    pub operator: OperatorDto,
}

fn expose<S: Serializer>(secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(secret.expose_secret())
}

/// An operator.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Operator)]
pub struct OperatorDto {
    /// Who.
    pub id: OperatorId,
    /// The address that they log in with.
    #[schema(example = "operator@example.com")]
    pub email: String,
    /// What to call them.
    #[schema(example = "Grace Hopper")]
    pub name: String,
    /// When they were made.
    pub created_at: Timestamp,
}

impl From<operator::Model> for OperatorDto {
    fn from(row: operator::Model) -> Self {
        Self { id: row.id, email: row.email, name: row.name, created_at: row.created_at }
    }
}

/// Which tenants to list.
#[derive(Debug, Default, Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TenantFilter {
    /// In this status only.
    pub status: Option<TenantStatus>,
}

/// A tenant, as operators see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdminTenant {
    /// Which.
    pub id: TenantId,
    /// As its owner wrote it.
    #[schema(example = "Acme")]
    pub name: String,
    /// Whether it may write.
    pub status: TenantStatus,
    /// While it is being deleted: whether it is suspended should its owner take that back.
    pub suspended_meanwhile: bool,
    /// When its owner signed up.
    pub created_at: Timestamp,
}

impl From<Tenant> for AdminTenant {
    fn from(row: Tenant) -> Self {
        Self {
            id: row.id,
            name: row.name,
            status: row.status,
            suspended_meanwhile: row.suspended_meanwhile,
            created_at: row.created_at,
        }
    }
}

/// A tenant, and how much it has.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdminTenantDetail {
    /// The tenant.
    #[serde(flatten)]
    pub tenant: AdminTenant,
    /// People who belong to it.
    #[schema(example = 3)]
    pub members: u64,
    /// API keys that aren't deleted.
    #[schema(example = 2)]
    pub api_keys: u64,
    /// Sessions that aren't deleted.
    #[schema(example = 5)]
    pub sessions: u64,
    /// Of them, placed on a worker.
    #[schema(example = 4)]
    pub placed_sessions: u64,
    /// The position of its newest event.
    #[schema(example = 1204)]
    pub last_event_position: i64,
}

/// A worker, as operators see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdminWorker {
    /// The name that it was given.
    #[schema(value_type = String, example = "worker-1")]
    pub id: WorkerId,
    /// Which WhatsApp it speaks to; null if this version doesn't know it.
    #[schema(value_type = Option<String>, example = "whatsapp")]
    pub network: Option<Network>,
    /// Where the control plane reaches it.
    #[schema(example = "http://10.0.3.7:7300")]
    pub endpoint: String,
    /// Availability zone.
    #[schema(example = "eu-central-1a")]
    pub zone: Option<String>,
    /// Pool.
    pub pool: Option<String>,
    /// Whether it is heard.
    #[schema(example = "active")]
    pub availability: Availability,
    /// Whether it may take sessions.
    pub schedulability: Schedulability,
    /// Whether it is being drained, and holds no session any more.
    pub drained: bool,
    /// The most sessions that it takes.
    #[schema(example = 1000)]
    pub capacity: i64,
    /// Sessions placed on it.
    #[schema(example = 12)]
    pub assigned: i64,
    /// Sessions that it says it holds.
    #[schema(example = 12)]
    pub sessions: i64,
    /// Of them, connected.
    #[schema(example = 11)]
    pub connected: i64,
    /// Rows that wait in its store's outbox.
    #[schema(example = 0)]
    pub outbox_rows: i64,
    /// When this run of it joined.
    pub joined_at: Timestamp,
    /// When it was last heard.
    pub last_beat_at: Timestamp,
}

/// Which sessions to list.
#[derive(Debug, Default, Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SessionFilter {
    /// Of this tenant only.
    pub tenant_id: Option<TenantId>,
    /// On this worker only.
    #[serde(default, deserialize_with = "exactly")]
    #[param(value_type = Option<String>, max_length = 50, pattern = "^[a-z0-9]+(-[a-z0-9]+)*$", example = "worker-1")]
    pub worker_id: Option<WorkerId>,
}

/// A worker's id as it is shown. What workers may call themselves is turned into it, but nobody looks for that.
fn exactly<'de, D: Deserializer<'de>>(from: D) -> Result<Option<WorkerId>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
    let id: WorkerId = text.parse().map_err(Error::custom)?;
    if id.as_str() == text { Ok(Some(id)) } else { Err(Error::custom("not a valid worker id")) }
}

/// Where a session runs. Nothing of what is in it.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdminSession {
    /// Which.
    pub id: SessionId,
    /// Whose.
    pub tenant_id: TenantId,
    /// Which WhatsApp it speaks to.
    #[schema(value_type = String, example = "whatsapp")]
    pub network: Network,
    /// What its owner wants.
    pub desired: DesiredColumn,
    /// The status that its owner was last told.
    pub status: State,
    /// Why, where the status alone doesn't say it.
    pub reason: Option<String>,
    /// The worker that it is placed on.
    #[schema(value_type = Option<String>, example = "worker-1")]
    pub worker_id: Option<WorkerId>,
    /// The worker that it is being moved to.
    #[schema(value_type = Option<String>, example = "worker-2")]
    pub move_to: Option<WorkerId>,
    /// Rises with each placement.
    #[schema(example = 3)]
    pub generation: i64,
    /// When it was placed.
    pub placed_at: Option<Timestamp>,
    /// Calls to its worker that failed in a row.
    #[schema(example = 0)]
    pub failures: i64,
    /// When it was made.
    pub created_at: Timestamp,
}

impl From<entity::Model> for AdminSession {
    fn from(row: entity::Model) -> Self {
        Self {
            id: row.id,
            tenant_id: row.tenant_id,
            network: row.network.into(),
            desired: row.desired,
            status: row.published_status.status,
            reason: row.published_status.reason,
            worker_id: row.worker_id,
            move_to: row.move_to,
            generation: row.generation,
            placed_at: row.placed_at,
            failures: row.reconcile_failures,
            created_at: row.created_at,
        }
    }
}

/// Where a session is to be moved.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveSession {
    /// The worker's name; null or absent: the one that placement prefers of the others.
    #[serde(default, deserialize_with = "exactly")]
    #[schema(value_type = Option<String>, max_length = 50, pattern = "^[a-z0-9]+(-[a-z0-9]+)*$", example = "worker-2")]
    pub worker_id: Option<WorkerId>,
}

/// A kind of job by its name.
#[derive(Debug, Clone, Copy)]
pub struct OfKind(pub JobKind);

impl<'de> Deserialize<'de> for OfKind {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        JobKind::named(&name).map(Self).ok_or_else(|| Error::custom("not a kind of job"))
    }
}

impl PartialSchema for OfKind {
    fn schema() -> RefOr<Schema> {
        let names = JobKind::ALL.map(JobKind::as_str);
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names)).into()
    }
}

impl ToSchema for OfKind {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("JobKind")
    }
}

/// Which of the jobs that were given up to list.
#[derive(Debug, Default, Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeadJobFilter {
    /// Of this kind only.
    #[param(inline)]
    pub kind: Option<OfKind>,
}

/// A job that was given up.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdminDeadJob {
    /// Which.
    pub id: JobId,
    /// Whose work it was; null: the installation's own.
    pub tenant_id: Option<TenantId>,
    /// What sort of work.
    #[schema(example = "webhooks.deliver")]
    pub kind: String,
    /// The id of what it is about.
    #[schema(example = "dlv_01h455vb4pex5vsknk084sn02q")]
    pub subject: String,
    /// How often it was tried.
    #[schema(example = 8)]
    pub attempts: i64,
    /// Why it was given up.
    pub reason: Option<String>,
    /// When.
    pub finished_at: Timestamp,
}

impl From<DeadJob> for AdminDeadJob {
    fn from(job: DeadJob) -> Self {
        Self {
            id: job.id,
            tenant_id: Some(job.tenant_id).filter(|tenant| *tenant != installation()),
            kind: job.kind,
            subject: job.subject,
            attempts: job.attempts,
            reason: job.why,
            finished_at: job.finished_at,
        }
    }
}

/// The installation at a glance.
#[derive(Debug, Serialize, ToSchema)]
pub struct Overview {
    /// The version that runs.
    #[schema(example = "0.1.0")]
    pub version: &'static str,
    /// Tenants, by status.
    #[schema(example = json!({"active": 12, "suspended": 1}))]
    pub tenants: BTreeMap<String, i64>,
    /// Sessions that aren't deleted, by status.
    #[schema(example = json!({"connected": 40, "stopped": 3}))]
    pub sessions: BTreeMap<&'static str, i64>,
    /// The workers, summed.
    pub workers: WorkersHealth,
    /// The queues of jobs.
    pub queues: Vec<QueueHealth>,
}
