//! Hands queued messages to the worker that holds their session. See the folder's essay.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use async_trait::async_trait;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, DbErr, EntityTrait, ExprTrait, IntoActiveModel, QueryFilter,
    QuerySelect, sea_query::Expr,
};
use shared::{
    ids::{MessageId, SessionId},
    time::Timestamp,
    wire::{
        outbox::InboundBody,
        send::{MAX_BATCH, SendBatch, SendItem, SendOutcome},
        session::Observed,
    },
};

use super::{
    entity::{self, Body, Model},
    policy::{MessageStatus, Word, pause},
    revive::revive,
    service::learn,
    verdict::{BLOCKED, NOT_CONNECTED, OURS, Pauses, verdict, verdict_of_failure},
    waiting::messages_of,
};
use crate::{
    auth::TenantScope,
    error::{ApiError, ApiResult, database_error_kind},
    events::{self, NewEvent, RecordError},
    jobs::{self, Claimed, DeadJob, Handler, JobKind, Outcome},
    sessions::{
        self,
        entity::DesiredColumn,
        worker_route::{self, WorkerRoute},
    },
    state::App,
    tenants::{TenantStatus, TenantTable},
    workers::{
        self,
        client::{Peer, WorkerCallError},
    },
};

/// How long a worker waits for acknowledgements before it answers: the lane is taken for so long.
const WAIT: Duration = Duration::from_secs(5);
/// After so many bytes of JSON a batch takes no further message. A worker takes four MiB.
const BATCH_BYTES: usize = 2 << 20;
/// How long what a tenant that may not write has queued waits before it is looked at again.
const FROZEN: Duration = Duration::from_secs(15);
/// How long after its expiry a message with an open try is asked for.
const OPEN_FOR: Duration = Duration::from_secs(24 * 3600);

/// The lane of a session's messages.
#[must_use]
pub fn lane(session: &SessionId) -> String {
    format!("session:{session}")
}

/// The handler of [`JobKind::SendMessages`].
#[derive(Debug, Clone, Copy, Default)]
pub struct SendHandler;

/// A batch could not be worked on. Its jobs are tried again.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Database(#[from] DbErr),
    #[error(transparent)]
    Event(#[from] RecordError),
}

#[async_trait]
impl Handler for SendHandler {
    fn kind(&self) -> JobKind {
        JobKind::SendMessages
    }

    fn batch(&self) -> usize {
        MAX_BATCH
    }

    async fn run(&self, app: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        told(&jobs, work(app, &jobs).await)
    }

    async fn give_up(&self, app: &App, job: &Claimed) -> Result<(), DbErr> {
        match fail(app, job).await {
            Ok(()) => Ok(()),
            Err(SendError::Database(error) | SendError::Event(RecordError::Database(error))) => Err(error),
            Err(SendError::Event(_)) => Err(DbErr::Custom("an event could not be made".into())),
        }
    }

    async fn hand_back(&self, tx: &DatabaseTransaction, job: &Claimed) -> Result<(), DbErr> {
        close_first_try(tx, &TenantScope::of_row(job.tenant_id.clone()), &job.subject).await
    }

    async fn revive(&self, app: &App, tx: &DatabaseTransaction, job: &DeadJob) -> ApiResult<()> {
        let id = job.subject.parse().map_err(|_| ApiError::Defect("a message's job has no message"))?;
        revive(app, tx, &TenantScope::of_row(job.tenant_id.clone()), &id).await
    }
}

/// How each job ended; if that isn't known, they are tried again.
fn told(jobs: &[Claimed], worked: Result<Vec<Outcome>, SendError>) -> Vec<Outcome> {
    worked.unwrap_or_else(|error| {
        let kind = match &error {
            SendError::Database(error) | SendError::Event(RecordError::Database(error)) => database_error_kind(error),
            SendError::Event(_) => "event",
        };
        tracing::warn!(kind, jobs = jobs.len(), "a batch of messages could not be worked on");
        jobs.iter().map(|job| retry(job, OURS, "internal")).collect()
    })
}

/// Hands over one message that was committed with its try already open: the first of an idle session.
pub(super) struct HandOver {
    pub(super) scope: TenantScope,
    pub(super) message: Model,
    pub(super) holder: Holder,
}

#[async_trait]
impl Handler for HandOver {
    fn kind(&self) -> JobKind {
        JobKind::SendMessages
    }

    fn batch(&self) -> usize {
        1
    }

    async fn run(&self, app: &App, jobs: Vec<Claimed>) -> Vec<Outcome> {
        let prepared = Prepared {
            outcomes: vec![None; jobs.len()],
            items: vec![(0, self.message.clone(), false)],
            holder: Some(self.holder.clone()),
        };
        told(&jobs, hand_over(app, &self.scope, &self.message.session_id, &jobs, prepared).await)
    }
}

/// Ends a message whose job was called off: what it has reserved is given back, and its chat goes on.
async fn fail(app: &App, job: &Claimed) -> Result<(), SendError> {
    let Some((scope, session)) = whose(app, std::slice::from_ref(job)).await? else { return Ok(()) };
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    sessions::entity::lock(&tx, &session).await?;
    let mut told = Vec::new();
    for (_, message) in load(&tx, &scope, &session, std::slice::from_ref(job)).await? {
        // What may have been written already isn't called off.
        let reason = if message.try_open { "outcome_unknown" } else { "cancelled" };
        told.extend(learn(&tx, &scope, message, &Word::Failed(reason.into(), now), now).await?.1);
    }
    finish(app, tx, &scope, told).await
}

fn retry(job: &Claimed, pauses: Pauses, why: &'static str) -> Outcome {
    Outcome::RetryAt(Timestamp::now().plus(pause(job.attempts, pauses.0, pauses.1)), why)
}

/// The worker that holds a session, and the generation it holds.
#[derive(Clone)]
pub(super) struct Holder {
    peer: Peer,
    generation: i64,
}

impl Holder {
    /// If the worker would send: else the call is spared.
    pub(super) fn of(session: &sessions::entity::Model, worker: Option<&workers::entity::Model>) -> Option<Self> {
        worker.filter(|_| sends(session)).map(|worker| Self { peer: worker.peer(), generation: session.generation })
    }
}

/// Whether a session's worker would send.
fn sends(session: &sessions::entity::Model) -> bool {
    session.desired == DesiredColumn::Running
        && session.observed_generation == session.generation
        && session.observed.as_ref().is_some_and(|observed| observed.0 == Observed::Connected)
}

/// What is to be handed over, and to whom.
struct Prepared {
    /// For each job, how it ends; nothing for those that are handed over.
    outcomes: Vec<Option<Outcome>>,
    /// Those that are handed over: the job's place, the message, and whether an earlier try was open.
    items: Vec<(usize, Model, bool)>,
    /// To whom.
    holder: Option<Holder>,
}

async fn work(app: &App, jobs: &[Claimed]) -> Result<Vec<Outcome>, SendError> {
    let Some((scope, session)) = whose(app, jobs).await? else {
        return Ok(vec![Outcome::Dead("no such message"); jobs.len()]);
    };
    let remembered = worker_route::remembered(app, &session).await;
    let prepared = prepare(app, &scope, &session, jobs, remembered).await?;
    hand_over(app, &scope, &session, jobs, prepared).await
}

/// Hands over what is prepared, and settles all jobs with what came of it.
async fn hand_over(
    app: &App,
    scope: &TenantScope,
    session: &SessionId,
    jobs: &[Claimed],
    prepared: Prepared,
) -> Result<Vec<Outcome>, SendError> {
    let Prepared { outcomes, items, holder } = prepared;
    let Some(Holder { peer, generation }) = holder.filter(|_| !items.is_empty()) else {
        return Ok(closed(jobs, outcomes));
    };
    let batch = SendBatch {
        generation,
        items: items.iter().filter_map(|(_, row, _)| item(row)).collect(),
        wait_ms: WAIT.as_millis().try_into().unwrap_or(u64::MAX),
    };
    metrics::histogram!("control_plane_send_batch_size").record(batch.items.len() as f64);
    let answer = match app.fleet.client.send(&peer, session, &batch).await {
        Ok(results) => Ok(results.results.into_iter().map(|result| (result.message_id, result.outcome)).collect()),
        Err(error) => {
            metrics::counter!("control_plane_worker_call_errors_total", "call" => "send").increment(1);
            tracing::warn!(%session, worker = %peer.id, %error, "a worker did not take a batch");
            Err(error)
        }
    };
    conclude(app, scope, session, jobs, items, &answer, outcomes).await
}

/// A job of which nothing was said is tried again.
fn closed(jobs: &[Claimed], outcomes: Vec<Option<Outcome>>) -> Vec<Outcome> {
    let outcomes = outcomes.into_iter().zip(jobs);
    outcomes.map(|(outcome, job)| outcome.unwrap_or_else(|| retry(job, OURS, "not answered"))).collect()
}

async fn whose(app: &App, jobs: &[Claimed]) -> Result<Option<(TenantScope, SessionId)>, SendError> {
    for job in jobs {
        let Ok(id) = job.subject.parse::<MessageId>() else { continue };
        let scope = TenantScope::of_row(job.tenant_id.clone());
        if let Some(row) = entity::Entity::of_tenant(&scope, &id).one(app.db.read()).await? {
            return Ok(Some((scope, row.session_id)));
        }
    }
    Ok(None)
}

/// Ends what is at its end, and marks a try as open for each message that is handed over.
async fn prepare(
    app: &App,
    scope: &TenantScope,
    session: &SessionId,
    jobs: &[Claimed],
    remembered: Option<WorkerRoute>,
) -> Result<Prepared, SendError> {
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    let row = sessions::entity::lock(&tx, session).await?.filter(|row| row.deleted_at.is_none());
    let (route, found) = match row.as_ref().filter(|row| sends(row)) {
        None => (None, false),
        Some(row) => match remembered.filter(|route| route.is_of(row)) {
            Some(route) => (Some(route), false),
            None => {
                let holder = sessions::service::holder(&tx, row).await?;
                (holder.and_then(|holder| WorkerRoute::of(row, &holder)), true)
            }
        },
    };
    let holder = route.as_ref().map(|route| Holder { peer: route.peer(), generation: route.generation });
    // One that is suspended or being deleted sends nothing, not even what it had queued before.
    let tenant = TenantTable::find_by_id(scope.id().clone()).one(&tx).await?;
    let frozen = tenant.is_none_or(|tenant| tenant.status != TenantStatus::Active);
    let messages = load(&tx, scope, session, jobs).await?;
    let blocked = blocked_chats(&tx, session, messages.values()).await?;
    let mut prepared = Prepared { outcomes: vec![None; jobs.len()], items: Vec::new(), holder };
    let mut held_up: HashSet<String> = HashSet::new();
    let mut told = Vec::new();
    // In the order of the messages: their jobs, committed beside each other, may lie in another. Were a newer message looked
    // at first that waits for one outside of the batch, it would hold up the oldest, and both batches wait for each other.
    let mut bytes = 0;
    let mut in_order: Vec<(usize, &Claimed)> = jobs.iter().enumerate().collect();
    in_order.sort_by(|(_, a), (_, b)| a.subject.cmp(&b.subject));
    for (place, job) in in_order {
        let Some(message) = messages.get(&job.subject).cloned() else {
            prepared.outcomes[place] = Some(Outcome::Dead("no such message"));
            continue;
        };
        if message.status.through() {
            prepared.outcomes[place] = Some(Outcome::Done);
            continue;
        }
        if let Some(end) = end_of(&message, row.is_some(), now) {
            told.extend(learn(&tx, scope, message, &end, now).await?.1);
            prepared.outcomes[place] = Some(Outcome::Done);
        } else if frozen {
            prepared.outcomes[place] = Some(Outcome::WaitUntil(now.plus(FROZEN)));
        } else if blocked.contains(&message.id) || held_up.contains(&message.chat) {
            held_up.insert(message.chat.clone());
            prepared.outcomes[place] = Some(retry(job, BLOCKED, "an older message of the chat waits"));
        } else if prepared.holder.is_none() {
            held_up.insert(message.chat.clone());
            prepared.outcomes[place] = Some(retry(job, NOT_CONNECTED, "the session is not connected"));
        } else if bytes > BATCH_BYTES {
            held_up.insert(message.chat.clone());
            prepared.outcomes[place] = Some(Outcome::WaitUntil(now));
        } else {
            bytes += item(&message).and_then(|item| serde_json::to_vec(&item).ok()).map_or(0, |json| json.len());
            let open = message.try_open;
            prepared.items.push((place, Model { tries: message.tries + 1, try_open: true, ..message }, open));
        }
    }
    begin_tries(&tx, scope, prepared.items.iter().map(|(_, message, _)| &message.id)).await?;
    finish(app, tx, scope, told).await?;
    if let Some(route) = route.filter(|_| found) {
        worker_route::remember(app, session, &route).await;
    }
    Ok(prepared)
}

async fn begin_tries(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    messages: impl Iterator<Item = &MessageId>,
) -> Result<(), DbErr> {
    let messages: Vec<MessageId> = messages.cloned().collect();
    if messages.is_empty() {
        return Ok(());
    }
    entity::Entity::update_many()
        .col_expr(entity::Column::Tries, Expr::col(entity::Column::Tries).add(1))
        .col_expr(entity::Column::TryOpen, Expr::value(true))
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::Id.is_in(messages))
        .exec(tx)
        .await?;
    Ok(())
}

/// The first try of a message, committed with it, was never begun.
async fn close_first_try(tx: &DatabaseTransaction, scope: &TenantScope, message: &str) -> Result<(), DbErr> {
    entity::Entity::update_many()
        .col_expr(entity::Column::Tries, Expr::value(0))
        .col_expr(entity::Column::TryOpen, Expr::value(false))
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::Id.eq(message))
        .filter(entity::Column::Tries.eq(1))
        .exec(tx)
        .await?;
    Ok(())
}

/// Whether a message ends before it is handed over.
fn end_of(message: &Model, session_exists: bool, now: Timestamp) -> Option<Word> {
    let expires_at = message.expires_at.unwrap_or(now);
    if !session_exists {
        Some(Word::Failed("session_deleted".into(), now))
    } else if now < expires_at {
        None
    } else if !message.try_open {
        Some(Word::Expired(now))
    } else {
        (now.since(expires_at) >= OPEN_FOR).then(|| Word::Failed("outcome_unknown".into(), now))
    }
}

async fn load(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    session: &SessionId,
    jobs: &[Claimed],
) -> Result<HashMap<String, Model>, DbErr> {
    let ids: Vec<&str> = jobs.iter().map(|job| job.subject.as_str()).collect();
    let rows = entity::Entity::all_of_tenant(scope)
        .filter(entity::Column::SessionId.eq(session.clone()))
        .filter(entity::Column::Id.is_in(ids))
        .all(tx)
        .await?;
    Ok(rows.into_iter().map(|row| (row.id.to_string(), row)).collect())
}

/// The messages that must wait for an older one of their chat that is not in this batch.
async fn blocked_chats(
    tx: &DatabaseTransaction,
    session: &SessionId,
    batch: impl Iterator<Item = &Model>,
) -> Result<HashSet<MessageId>, DbErr> {
    let batch: Vec<&Model> = batch.filter(|row| !row.status.through()).collect();
    let ids: HashSet<&MessageId> = batch.iter().map(|row| &row.id).collect();
    let chats: HashSet<&str> = batch.iter().map(|row| row.chat.as_str()).collect();
    let mut oldest: HashMap<String, MessageId> = HashMap::new();
    for chat in chats {
        let waiting: Vec<MessageId> = entity::Entity::find()
            .select_only()
            .column(entity::Column::Id)
            .filter(entity::Column::SessionId.eq(session.clone()))
            .filter(entity::Column::Chat.eq(chat))
            .filter(entity::Column::Status.eq(MessageStatus::Queued))
            .order_by_id_asc()
            .limit(MAX_BATCH as u64 + 1)
            .into_tuple()
            .all(tx)
            .await?;
        if let Some(other) = waiting.into_iter().find(|id| !ids.contains(id)) {
            oldest.insert(chat.to_owned(), other);
        }
    }
    Ok(batch
        .into_iter()
        .filter(|row| oldest.get(&row.chat).is_some_and(|other| *other < row.id))
        .map(|row| row.id.clone())
        .collect())
}

fn item(row: &Model) -> Option<SendItem> {
    let Some(Body(InboundBody::Content { content })) = &row.content else { return None };
    Some(SendItem {
        message_id: row.id.clone(),
        wa_id: row.wa_id.clone(),
        to: row.chat.clone(),
        content: content.clone(),
        expires_at: row.expires_at.unwrap_or(row.created_at).to_utc(),
    })
}

type Answer = Result<HashMap<MessageId, SendOutcome>, WorkerCallError>;

/// Writes what came of a batch, and settles its jobs, in one commit.
async fn conclude(
    app: &App,
    scope: &TenantScope,
    session: &SessionId,
    jobs: &[Claimed],
    items: Vec<(usize, Model, bool)>,
    answer: &Answer,
    mut outcomes: Vec<Option<Outcome>>,
) -> Result<Vec<Outcome>, SendError> {
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    sessions::entity::lock(&tx, session).await?;
    let fresh = load(&tx, scope, session, jobs).await?;
    let mut told = Vec::new();
    for (place, handed, was_open) in items {
        let verdict = match answer {
            Ok(results) => verdict(results.get(&handed.id), was_open, now),
            Err(error) => verdict_of_failure(*error, was_open),
        };
        let Some(row) = fresh.get(handed.id.as_str()).cloned() else { continue };
        // The outbox may have been faster: then there is nothing to come back for.
        let mut through = row.status.through();
        match &verdict.word {
            Some(word) => {
                let (row, events) = learn(&tx, scope, row, word, now).await?;
                through = row.status.through();
                told.extend(events);
            }
            None if !through && row.try_open != verdict.open => {
                let row = Model { try_open: verdict.open, ..row };
                row.into_active_model().reset_all().update(&tx).await?;
            }
            None => {}
        }
        outcomes[place] = Some(match verdict.again {
            Some((pauses, why)) if !through => retry(&jobs[place], pauses, why),
            _ => Outcome::Done,
        });
    }
    let settled: Vec<_> = jobs.iter().cloned().zip(closed(jobs, outcomes)).collect();
    if !jobs::settle_all(&tx, &settled).await? {
        // Somebody else works on these messages by now; what WhatsApp said comes with the outbox too.
        tx.rollback().await?;
        return Ok(vec![Outcome::LEASE_LOST; jobs.len()]);
    }
    finish(app, tx, scope, told).await?;
    Ok(settled.into_iter().map(|(_, outcome)| outcome.settled()).collect())
}

/// Records events, commits, and rings for their deliveries.
async fn finish(app: &App, tx: DatabaseTransaction, scope: &TenantScope, told: Vec<NewEvent>) -> Result<(), SendError> {
    let moved = messages_of(&told);
    let recorded = events::record(&tx, app, scope, told).await?;
    tx.commit().await?;
    app.waiting.wake(&moved);
    if recorded.deliveries {
        app.bell.ring(JobKind::DeliverWebhook);
    }
    Ok(())
}
