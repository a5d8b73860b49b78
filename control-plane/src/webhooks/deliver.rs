//! One try to deliver one event to one endpoint.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sea_orm::{ColumnTrait, DatabaseTransaction, DbErr, EntityTrait, QueryFilter, Set, sea_query::Expr};
use serde_json::json;
use shared::{ids::DeliveryId, seal::SealError, time::Timestamp};
use url::Url;

use super::{
    entity::{
        delivery::{self, DeliveryStatus},
        webhook::{self, DisabledReason, WebhookStatus},
    },
    metrics,
    policy::{self, Answer, FAILING_LIMIT, Verdict},
    secret::{self, SignError},
    service,
};
use crate::{
    auth::TenantScope,
    error::{ApiError, ApiResult, database_error_kind},
    events::{self, EventType, FindError, NewEvent, RecordError},
    jobs::{self, Claimed, DeadJob, Handler, JobKind, Outcome},
    state::App,
    tenants,
};

/// How long an endpoint has to answer, all told.
pub const DEADLINE: Duration = Duration::from_secs(15);
/// How many deliveries this process tries at once.
pub const CONCURRENCY: usize = 512;
/// How long a delivery waits that could not be tried for a reason of ours.
const OUR_FAULT_WAIT: Duration = Duration::from_secs(5);

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// The words for deliveries that were not tried.
mod untried {
    pub(super) const DISABLED: &str = "endpoint_disabled";
    pub(super) const NO_EVENT: &str = "event_expired";
    pub(super) const NO_ATTEMPTS: &str = "interrupted_too_often";
}

/// Runs the jobs of deliveries.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deliverer;

#[async_trait]
impl Handler for Deliverer {
    fn kind(&self) -> JobKind {
        JobKind::DeliverWebhook
    }

    fn batch(&self) -> usize {
        1
    }

    fn concurrency(&self) -> usize {
        CONCURRENCY
    }

    async fn run(&self, app: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(jobs.len());
        for job in jobs {
            let outcome = deliver(app, &job).await.unwrap_or_else(|error| {
                error.log();
                Outcome::RetryAt(Timestamp::now().plus(OUR_FAULT_WAIT), "our fault")
            });
            outcomes.push(outcome);
        }
        outcomes
    }

    async fn give_up(&self, app: &App, job: &Claimed) -> Result<(), DbErr> {
        let scope = TenantScope::of_row(job.tenant_id.clone());
        let Ok(id) = job.subject.parse::<DeliveryId>() else { return Ok(()) };
        fail(app.db.autocommit(), &scope, &id, untried::NO_ATTEMPTS).await
    }

    async fn revive(&self, _: &App, tx: &DatabaseTransaction, job: &DeadJob) -> ApiResult<()> {
        let id = job.subject.parse().map_err(|_| ApiError::Defect("a delivery's job has no delivery"))?;
        service::revive(tx, &TenantScope::of_row(job.tenant_id.clone()), &id).await
    }
}

/// Why a delivery could not be tried, or its result not noted.
#[derive(Debug, thiserror::Error)]
enum DeliverError {
    #[error(transparent)]
    Database(#[from] DbErr),
    #[error(transparent)]
    Event(#[from] FindError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("a stored value can't be used")]
    Defect,
}

impl From<ApiError> for DeliverError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Database(error) => Self::Database(error),
            ApiError::Refused(_) | ApiError::Defect(_) => Self::Defect,
        }
    }
}

impl DeliverError {
    fn log(&self) {
        let (what, kind) = match self {
            Self::Database(error)
            | Self::Event(FindError::Database(error))
            | Self::Record(RecordError::Database(error)) => ("database", database_error_kind(error)),
            Self::Event(FindError::Seal(_)) | Self::Record(RecordError::Seal(_)) | Self::Seal(_) => ("seal", ""),
            Self::Event(FindError::Unreadable) => ("event", ""),
            Self::Record(RecordError::Json(_)) => ("event_json", ""),
            Self::Sign(_) => ("signature", ""),
            Self::Defect => ("defect", ""),
        };
        tracing::warn!(what, kind, "a delivery could not be tried or noted; trying again");
    }
}

async fn deliver(app: &App, job: &Claimed) -> Result<Outcome, DeliverError> {
    let scope = TenantScope::of_row(job.tenant_id.clone());
    let id: DeliveryId = job.subject.parse().map_err(|_| DeliverError::Defect)?;
    let read = app.db.read();
    let Some(delivery) = delivery::find(read, &scope, &id).await? else { return Ok(Outcome::Done) };
    if delivery.status != DeliveryStatus::Pending {
        return Ok(Outcome::Done);
    }
    let Some(endpoint) = webhook::find(read, &scope, &delivery.webhook_id).await? else { return Ok(Outcome::Done) };
    if endpoint.status == WebhookStatus::Disabled {
        fail(app.db.autocommit(), &scope, &id, untried::DISABLED).await?;
        return Ok(Outcome::Done);
    }
    let key = tenants::data_key(app, read, &scope).await?;
    let Some(event) = events::find(&app.db, &scope, &key, &delivery.event_id).await? else {
        fail(app.db.autocommit(), &scope, &id, untried::NO_EVENT).await?;
        return Ok(Outcome::Done);
    };
    let body = serde_json::to_vec(&event).map_err(|_| DeliverError::Defect)?;
    let signed_at = Timestamp::now();
    let signature = secret::signature(&key, &scope, &endpoint, event.id.as_str(), signed_at, &body)?;
    let headers = headers(event.id.as_str(), signed_at, &signature)?;
    let url = Url::parse(&endpoint.url).map_err(|_| DeliverError::Defect)?;

    let started = Instant::now();
    let reply = app.outbound.post(url, headers, body.into(), DEADLINE).await;
    let took = started.elapsed();
    let answer = match reply {
        Ok(reply) => Answer::Status {
            status: reply.status,
            retry_after: reply
                .headers
                .get(header::RETRY_AFTER)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| policy::retry_after(value, Timestamp::now().as_millis())),
        },
        Err(error) => Answer::NoReply(error),
    };
    note(app, job, &scope, &delivery, &endpoint, Try { answer, took }).await
}

fn headers(id: &str, at: Timestamp, signature: &str) -> Result<HeaderMap, DeliverError> {
    let seconds = (at.as_millis() / 1000).to_string();
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in [(WEBHOOK_ID, id), (WEBHOOK_TIMESTAMP, seconds.as_str()), (WEBHOOK_SIGNATURE, signature)] {
        headers.insert(name, HeaderValue::from_str(value).map_err(|_| DeliverError::Defect)?);
    }
    Ok(headers)
}

/// What came of one try.
#[derive(Debug, Clone, Copy)]
struct Try {
    answer: Answer,
    took: Duration,
}

impl Try {
    fn status(self) -> Option<i64> {
        match self.answer {
            Answer::Status { status, .. } => Some(i64::from(status.as_u16())),
            Answer::NoReply(_) => None,
        }
    }

    fn error(self) -> Option<&'static str> {
        match self.answer {
            Answer::Status { .. } => None,
            Answer::NoReply(error) => Some(error.code()),
        }
    }
}

/// Notes the result of a try: job, delivery and endpoint in one commit, if the lease still holds.
async fn note(
    app: &App,
    job: &Claimed,
    scope: &TenantScope,
    delivery: &delivery::Model,
    endpoint: &webhook::Model,
    tried: Try,
) -> Result<Outcome, DeliverError> {
    let now = Timestamp::now();
    let attempts = delivery.attempts + 1;
    let attempt = u32::try_from(attempts).unwrap_or(u32::MAX);
    let verdict = policy::verdict(tried.answer, attempt, rand::random::<f64>());
    let outcome = match verdict {
        Verdict::Delivered => Outcome::Done,
        Verdict::Retry(wait) => Outcome::RetryAt(now.plus(wait), "the endpoint failed"),
        Verdict::Exhausted | Verdict::Gone => Outcome::Dead("the delivery failed"),
    };
    let (status, next_attempt_at) = match outcome {
        Outcome::Done => (DeliveryStatus::Succeeded, None),
        Outcome::RetryAt(at, _) if !job.is_last_attempt() => (DeliveryStatus::Pending, Some(at)),
        _ => (DeliveryStatus::Failed, None),
    };
    let tx = app.db.write().await?;
    if !jobs::settle(&tx, job, outcome).await? {
        tx.rollback().await?;
        return Ok(Outcome::LEASE_LOST);
    }
    delivery::Entity::update_many()
        .set(delivery::ActiveModel {
            status: Set(status),
            attempts: Set(attempts),
            next_attempt_at: Set(next_attempt_at),
            last_status: Set(tried.status()),
            last_error: Set(tried.error().map(str::to_owned)),
            last_duration_ms: Set(Some(i64::try_from(tried.took.as_millis()).unwrap_or(i64::MAX))),
            completed_at: Set((status != DeliveryStatus::Pending).then_some(now)),
            ..Default::default()
        })
        .filter(delivery::Column::Id.eq(delivery.id.clone()))
        .filter(delivery::Column::TenantId.eq(scope.id().clone()))
        .exec(&tx)
        .await?;
    let disabled = judge_endpoint(&tx, scope, endpoint, verdict, now).await?;
    if let Some(reason) = disabled {
        let event = NewEvent {
            kind: EventType::WebhookDisabled,
            session_id: None,
            occurred_at: now,
            data: json!({"webhook_id": endpoint.id, "reason": reason}),
        };
        events::record(&tx, app, scope, vec![event]).await?;
    }
    tx.commit().await?;
    metrics::tried(word(verdict), tried.took);
    match (verdict, disabled) {
        (Verdict::Delivered, _) => metrics::delivered(now.since(delivery.created_at)),
        (_, Some(DisabledReason::Gone)) => metrics::disabled("gone"),
        (_, Some(DisabledReason::Failing)) => metrics::disabled("failing"),
        (_, None) => {}
    }
    Ok(outcome.settled())
}

/// What a try says about its endpoint: whether it fails, and whether that is enough to disable it.
async fn judge_endpoint(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    endpoint: &webhook::Model,
    verdict: Verdict,
    now: Timestamp,
) -> Result<Option<DisabledReason>, DbErr> {
    // The owner may have moved the endpoint meanwhile: then this try says nothing about it.
    let this = webhook::Entity::update_many()
        .filter(webhook::Column::Id.eq(endpoint.id.clone()))
        .filter(webhook::Column::TenantId.eq(scope.id().clone()))
        .filter(webhook::Column::Url.eq(endpoint.url.clone()));
    let reason = match verdict {
        Verdict::Delivered => {
            if endpoint.failing_since.is_some() {
                this.col_expr(webhook::Column::FailingSince, Expr::value(None::<i64>)).exec(tx).await?;
            }
            return Ok(None);
        }
        Verdict::Gone => DisabledReason::Gone,
        Verdict::Retry(_) | Verdict::Exhausted => match endpoint.failing_since {
            None => {
                this.col_expr(webhook::Column::FailingSince, Expr::value(now))
                    .filter(webhook::Column::FailingSince.is_null())
                    .exec(tx)
                    .await?;
                return Ok(None);
            }
            Some(since) if now.since(since) < FAILING_LIMIT => return Ok(None),
            // A success that came meanwhile has cleared or moved it, and the filter below finds nothing.
            Some(_) => DisabledReason::Failing,
        },
    };
    let mut disable = this
        .set(webhook::ActiveModel {
            status: Set(WebhookStatus::Disabled),
            disabled_reason: Set(Some(reason)),
            ..Default::default()
        })
        .filter(webhook::Column::Status.eq(WebhookStatus::Enabled));
    if let (DisabledReason::Failing, Some(since)) = (reason, endpoint.failing_since) {
        disable = disable.filter(webhook::Column::FailingSince.eq(since));
    }
    Ok((disable.exec(tx).await?.rows_affected == 1).then_some(reason))
}

/// Gives a delivery up without another try.
async fn fail<C: sea_orm::ConnectionTrait>(
    conn: &C,
    scope: &TenantScope,
    id: &DeliveryId,
    why: &'static str,
) -> Result<(), DbErr> {
    delivery::Entity::update_many()
        .set(delivery::ActiveModel {
            status: Set(DeliveryStatus::Failed),
            next_attempt_at: Set(None),
            last_error: Set(Some(why.to_owned())),
            completed_at: Set(Some(Timestamp::now())),
            ..Default::default()
        })
        .filter(delivery::Column::Id.eq(id.clone()))
        .filter(delivery::Column::TenantId.eq(scope.id().clone()))
        .filter(delivery::Column::Status.eq(DeliveryStatus::Pending))
        .exec(conn)
        .await
        .map(|_| ())
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Delivered => "delivered",
        Verdict::Retry(_) => "retry",
        Verdict::Exhausted => "exhausted",
        Verdict::Gone => "gone",
    }
}
