//! Entries as the API tells them.

use serde::{Deserialize, Serialize};
use shared::{
    ids::{AuditId, TenantId},
    time::Timestamp,
};
use utoipa::{IntoParams, ToSchema};
use validator::Validate;

use super::entity::{ActorType, AuditResult};

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AuditOutcome {
    /// It was done.
    Succeeded,
    /// It was not done: the caller may not, or asked for something impossible.
    Refused,
    /// Something of ours failed.
    Failed,
    /// It began, and nobody knows how it ended: it still runs, the process died, or the caller went away.
    Unknown,
}

impl From<Option<AuditResult>> for AuditOutcome {
    fn from(result: Option<AuditResult>) -> Self {
        match result {
            Some(AuditResult::Succeeded) => Self::Succeeded,
            Some(AuditResult::Refused) => Self::Refused,
            Some(AuditResult::Failed) => Self::Failed,
            None => Self::Unknown,
        }
    }
}

/// Who acted.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditActor {
    /// Of what kind.
    #[serde(rename = "type")]
    pub(super) kind: ActorType,
    /// Their id; a command and the installation itself have none.
    #[schema(example = "usr_01h455vb4pex5vsknk084sn02q")]
    pub(super) id: Option<String>,
}

/// What it was about.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditResource {
    /// Of what kind.
    #[serde(rename = "type")]
    #[schema(example = "session")]
    pub(super) kind: String,
    /// Which.
    #[schema(example = "ses_01h455vb4pex5vsknk084sn02q")]
    pub(super) id: String,
}

/// One entry: what somebody asked for, and what came of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditEntry {
    /// Which.
    pub(super) id: AuditId,
    /// Whose; null for what belongs to no account.
    pub(super) tenant_id: Option<TenantId>,
    /// When it began.
    pub(super) occurred_at: Timestamp,
    /// When it ended.
    pub(super) completed_at: Option<Timestamp>,
    /// Who acted; null if that never became known.
    pub(super) actor: Option<AuditActor>,
    /// The operation's id in the OpenAPI document; of commands and of what happens by itself, its name.
    #[schema(example = "create_session")]
    pub(super) operation: String,
    /// What it was about, as far as that has an id.
    pub(super) resource: Option<AuditResource>,
    /// What came of it.
    pub(super) outcome: AuditOutcome,
    /// The HTTP status of the answer.
    #[schema(example = 201)]
    pub(super) status: Option<u16>,
    /// The problem that it was answered with: the last part of its `type`.
    #[schema(example = "missing-scope")]
    pub(super) problem: Option<String>,
    /// Whether the answer was that of an earlier request with the same idempotency key, so that nothing was done.
    pub(super) replayed: bool,
    /// The `X-Request-Id` of the request, which its sender may have chosen.
    pub(super) request_id: Option<String>,
    /// The network that it came from.
    #[schema(example = "203.0.113.0/24")]
    pub(super) address: Option<String>,
    /// Its place in the log, given within seconds: 1, 2, 3 and so on, without gaps over all of an entry's parts.
    #[schema(example = 4711)]
    pub(super) position: Option<i64>,
}

/// Which entries.
#[derive(Debug, Clone, Default, Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditFilter {
    /// Of this actor only, by id.
    #[validate(length(max = 50))]
    #[param(max_length = 50, example = "usr_01h455vb4pex5vsknk084sn02q")]
    pub(super) actor: Option<String>,
    /// Of this operation only.
    #[validate(length(max = 100))]
    #[param(max_length = 100, example = "create_session")]
    pub(super) operation: Option<String>,
    /// About this thing only, by id.
    #[validate(length(max = 50))]
    #[param(max_length = 50, example = "ses_01h455vb4pex5vsknk084sn02q")]
    pub(super) resource: Option<String>,
    /// Since when, inclusive.
    #[param(value_type = Option<String>, format = DateTime, example = "2026-01-01T00:00:00Z")]
    pub(super) from: Option<Timestamp>,
    /// Until when, exclusive.
    #[param(value_type = Option<String>, format = DateTime, example = "2026-02-01T00:00:00Z")]
    pub(super) to: Option<Timestamp>,
    /// With this outcome only.
    #[param(inline)]
    pub(super) outcome: Option<AuditOutcome>,
}

/// Whose log an operator reads.
#[derive(Debug, Clone, Deserialize, Validate, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditLogOf {
    /// This tenant's; without it, the installation's.
    pub(super) tenant_id: Option<TenantId>,
}
