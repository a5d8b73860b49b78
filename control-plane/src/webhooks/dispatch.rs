//! From an event to its deliveries, in the event's own transaction.

use std::collections::HashSet;

use sea_orm::{ColumnTrait, DatabaseTransaction, DbErr, EntityTrait, QueryFilter, Set};
use shared::{
    ids::{DeliveryId, EventId, SessionId, WebhookId},
    time::Timestamp,
};

use super::{
    SLOTS,
    entity::{
        delivery::{self, DeliveryStatus},
        webhook::{self, WebhookStatus},
    },
};
use crate::{
    auth::TenantScope,
    events::{Audience, EventType},
    jobs::{self, JobKind, NewJob},
    sessions::{self, entity::NetworkColumn},
};

/// How often a delivery's job may be claimed. More than the tries of the schedule: a process that dies takes one, too.
const JOB_ATTEMPTS: u32 = 40;

/// An event that was recorded in this transaction.
pub(crate) struct NewlyRecorded {
    pub(crate) id: EventId,
    pub(crate) kind: EventType,
    pub(crate) session: Option<SessionId>,
}

/// Makes a delivery and a job for each event and each enabled endpoint that is to be told; gives their number. An endpoint of one network is
/// told of its sessions, and of what is about none.
pub(crate) async fn dispatch(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    events: &[NewlyRecorded],
    audience: Audience<'_>,
) -> Result<usize, DbErr> {
    let endpoints = webhook::of_scope(scope).filter(webhook::Column::Status.eq(WebhookStatus::Enabled)).all(tx).await?;
    let mut made = 0;
    for endpoint in &endpoints {
        let reached = match endpoint.network {
            Some(network) => Some(of_network(tx, scope, events, network).await?),
            None => None,
        };
        for event in events {
            let told = match audience {
                Audience::Subscribers => {
                    endpoint.event_types.want(event.kind)
                        && event.session.as_ref().zip(reached.as_ref()).is_none_or(|(id, reached)| reached.contains(id))
                }
                Audience::Only(id) => endpoint.id == *id,
            };
            if told {
                create(tx, scope, endpoint, &event.id, event.kind).await?;
                made += 1;
            }
        }
    }
    Ok(made)
}

/// The sessions of a network, of those that these events are about.
async fn of_network(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    events: &[NewlyRecorded],
    network: NetworkColumn,
) -> Result<HashSet<SessionId>, DbErr> {
    let about: HashSet<SessionId> = events.iter().filter_map(|event| event.session.clone()).collect();
    sessions::service::of_network(tx, scope, about, network.into()).await
}

async fn create(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    endpoint: &webhook::Model,
    event: &EventId,
    kind: EventType,
) -> Result<(), DbErr> {
    let now = Timestamp::now();
    let id = DeliveryId::new();
    let row = delivery::ActiveModel {
        id: Set(id.clone()),
        tenant_id: Set(scope.id().clone()),
        webhook_id: Set(endpoint.id.clone()),
        event_id: Set(event.clone()),
        event_type: Set(kind.as_str().into()),
        status: Set(DeliveryStatus::Pending),
        attempts: Set(0),
        next_attempt_at: Set(Some(now)),
        last_status: Set(None),
        last_error: Set(None),
        last_duration_ms: Set(None),
        created_at: Set(now),
        completed_at: Set(None),
    };
    delivery::Entity::insert(row).exec_without_returning(tx).await?;
    enqueue(tx, scope, endpoint, &id, now).await
}

/// Commits the job of a delivery.
pub(super) async fn enqueue(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    endpoint: &webhook::Model,
    delivery: &DeliveryId,
    now: Timestamp,
) -> Result<(), DbErr> {
    // A failing endpoint gets one lane, so that it holds up one place of the runner and not all that it may have.
    let slot = if endpoint.failing_since.is_some() { 0 } else { crc32fast::hash(delivery.as_str().as_bytes()) % SLOTS };
    jobs::enqueue(
        tx,
        NewJob {
            tenant_id: scope.id().clone(),
            kind: JobKind::DeliverWebhook,
            lane: lane(&endpoint.id, slot),
            subject: delivery.as_str().to_owned(),
            run_at: now,
            max_attempts: JOB_ATTEMPTS,
        },
    )
    .await
    .map(|_| ())
}

/// One of the lanes of an endpoint.
pub(super) fn lane(webhook: &WebhookId, slot: u32) -> String {
    format!("webhook:{webhook}:{slot}")
}
