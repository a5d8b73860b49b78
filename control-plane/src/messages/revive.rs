//! A message whose job was given up, and that the operator has sent after all.
//!
//! It is taken as a message that is sent now: its session must run, a unit of the quota is taken, and it has a day. It keeps its id,
//! its id on WhatsApp and its place in its chat; and it goes only if WhatsApp certainly never saw it
//! ([`may_be_queued_again`]).

use sea_orm::{ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, Set};
use serde_json::json;
use shared::{ids::MessageId, time::Timestamp};

use super::{
    entity,
    policy::{MessageStatus, may_be_queued_again},
    service::{EXPIRES_AFTER, holder_for_sends},
};
use crate::{
    auth::TenantScope,
    error::{ApiError, ApiResult, Kind},
    events::{self, EventType, NewEvent},
    plans::{self, Limit, quota},
    sessions,
    state::App,
    tenants::{TenantStatus, TenantTable},
};

/// Queues a message again, in the transaction that makes its job ready.
pub(super) async fn revive(app: &App, tx: &DatabaseTransaction, scope: &TenantScope, id: &MessageId) -> ApiResult<()> {
    let refused = |why: &str| -> ApiError { Kind::Conflict.because(why).into() };
    let gone = || refused("there is no such message any more");
    let found = entity::Entity::of_tenant(scope, id).one(tx).await?.ok_or_else(gone)?;
    let session = sessions::entity::lock(tx, &found.session_id).await?.filter(|row| row.deleted_at.is_none());
    // Again, now that nobody else changes it.
    let row = entity::Entity::of_tenant(scope, id).one(tx).await?.ok_or_else(gone)?;
    may_be_queued_again(&row.progress(), row.try_open).map_err(refused)?;
    if row.status == MessageStatus::Queued {
        return Ok(());
    }
    let now = Timestamp::now();
    let session = session.ok_or_else(|| refused("its session was deleted"))?;
    let tenant = TenantTable::find_by_id(scope.id().clone()).one(tx).await?;
    if tenant.is_none_or(|tenant| tenant.status != TenantStatus::Active) {
        return Err(refused("its account is not active"));
    }
    holder_for_sends(tx, &session, now).await?;
    let entitlements = plans::entitlements(tx, scope, now).await?;
    // Retention takes what a message says without the session's lock, so that is compared here.
    let queued = entity::Entity::update_many()
        .set(entity::ActiveModel {
            status: Set(MessageStatus::Queued),
            reason: Set(None),
            failed_at: Set(None),
            expires_at: Set(Some(now.plus(EXPIRES_AFTER))),
            reserved_in: Set(entitlements.limit(Limit::MessagesPerMonth).map(|_| quota::month_of(now))),
            ..Default::default()
        })
        .filter(entity::Column::Id.eq(id.clone()))
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::Content.is_not_null())
        .exec(tx)
        .await?;
    if queued.rows_affected == 0 {
        return Err(refused("what it said was erased"));
    }
    let mut told = vec![NewEvent {
        kind: EventType::MessageStatus,
        session_id: Some(row.session_id),
        occurred_at: now,
        data: json!({
            "message_id": row.id,
            "wa_id": row.wa_id,
            "status": MessageStatus::Queued,
            "reason": null,
            "previous": row.status,
        }),
    }];
    told.extend(quota::reserve(tx, scope, &entitlements, now).await?);
    events::record(tx, app, scope, told).await?;
    Ok(())
}
