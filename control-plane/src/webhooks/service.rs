//! What can be done with endpoints and deliveries.

use std::time::Duration;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, IntoActiveModel,
    QueryFilter, QueryOrder, QuerySelect, Set, SqlErr, sea_query::LockType,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use shared::{
    ids::{DeliveryId, EventId, WebhookId},
    time::Timestamp,
};
use url::Url;

use super::{
    SLOTS,
    dispatch::{self, lane},
    dto::{CreateWebhook, CreatedWebhook, Delivery, DeliveryFilter, RotatedSecret, UpdateWebhook, Webhook, filter},
    entity::{
        delivery::{self, DeliveryStatus},
        webhook::{self, WebhookStatus},
    },
    secret::{self, Secret},
};
use crate::{
    audit,
    auth::TenantScope,
    error::{ApiError, ApiResult, Kind},
    events::{self, Audience, EventType, NewEvent},
    extract::page::{Page, PageQuery},
    jobs,
    plans::{self, Feature, Limit},
    sessions::entity::NetworkColumn,
    state::App,
    tenants,
};

/// How long the previous secret is used besides the new one.
const ROTATION: Duration = Duration::from_secs(24 * 60 * 60);

/// Refuses a URL that we don't call. Asks the network, so it is not for a transaction.
pub(super) async fn check_url(app: &App, url: &Url) -> ApiResult<()> {
    app.outbound.check_target(url).await.map_err(|refused| {
        Kind::UrlNotAllowed
            .because(refused.to_string())
            .with_errors(vec![shared::problem::FieldError {
                pointer: "/url".into(),
                code: refused.code().into(),
                detail: refused.to_string(),
            }])
            .into()
    })
}

pub(super) async fn create(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    body: &CreateWebhook,
) -> ApiResult<CreatedWebhook> {
    plans::require(tx, scope, Feature::Webhooks).await?;
    let taken = webhook::own_of_scope(scope).one(tx).await?;
    // Before the plan is asked: with a larger one there could be no second either.
    if taken.is_some() {
        return Err(Kind::WebhookExists.into());
    }
    plans::admit(tx, scope, Limit::Webhooks).await?;
    let key = tenants::data_key(app, tx, scope).await?;
    let (id, secret, now) = (WebhookId::new(), Secret::generate(), Timestamp::now());
    let row = webhook::ActiveModel {
        sealed_secret: Set(secret.seal(&key, scope, &id)?),
        id: Set(id),
        tenant_id: Set(scope.id().clone()),
        network: Set(scope.network().map(NetworkColumn::from)),
        url: Set(body.url.to_string()),
        sealed_previous_secret: Set(None),
        previous_secret_until: Set(None),
        event_types: Set(filter(&body.event_types)),
        status: Set(WebhookStatus::Enabled),
        disabled_reason: Set(None),
        failing_since: Set(None),
        created_at: Set(now),
        updated_at: Set(now),
    };
    // The tenant's other request may have made one since the look above: the unique index decides.
    let row = row.insert(tx).await.map_err(|error| match error.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(_)) => ApiError::from(Kind::WebhookExists),
        _ => ApiError::Database(error),
    })?;
    Ok(CreatedWebhook { webhook: row.into(), secret: secret.shown() })
}

/// Whether a text can be the secret of an endpoint.
pub(crate) fn is_secret(text: &str) -> bool {
    Secret::of(text).is_some()
}

/// Sees to it that the tenant has an endpoint for all events at this URL, with this secret if one is chosen: else with the one that it
/// has, or a new one that its owner gets by rotating it.
pub(crate) async fn ensure(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    url: &Url,
    chosen: Option<&SecretString>,
) -> ApiResult<()> {
    let no_secret = ApiError::Defect("a webhook secret of the settings isn't one");
    let chosen = chosen.map(|chosen| Secret::of(chosen.expose_secret()).ok_or(no_secret)).transpose()?;
    let key = tenants::data_key(app, tx, scope).await?;
    let mut present = webhook::own_of_scope(scope).one(tx).await?;
    if present.is_none() {
        // That of a key of the other network, whose place this one takes.
        present = webhook::Entity::find()
            .filter(webhook::Column::TenantId.eq(scope.id().clone()))
            .filter(webhook::Column::Url.eq(url.as_str()))
            .one(tx)
            .await?;
    }
    let network = scope.network().map(NetworkColumn::from);
    let now = Timestamp::now();
    let Some(row) = present else {
        let (id, secret) = (WebhookId::new(), chosen.unwrap_or_else(Secret::generate));
        audit::system(&app.audit, tx, scope.id(), "set_webhook", ("webhook", id.as_str())).await?;
        webhook::ActiveModel {
            sealed_secret: Set(secret.seal(&key, scope, &id)?),
            id: Set(id),
            tenant_id: Set(scope.id().clone()),
            network: Set(network),
            url: Set(url.to_string()),
            sealed_previous_secret: Set(None),
            previous_secret_until: Set(None),
            event_types: Set(filter(&["*".to_owned()])),
            status: Set(WebhookStatus::Enabled),
            disabled_reason: Set(None),
            failing_since: Set(None),
            created_at: Set(now),
            updated_at: Set(now),
        }
        .insert(tx)
        .await?;
        return Ok(());
    };
    let chosen = match chosen {
        Some(secret) if !secret.is_of(&key, scope, &row)? => Some(secret.seal(&key, scope, &row.id)?),
        _ => None,
    };
    if row.url == url.as_str() && row.network == network && chosen.is_none() {
        return Ok(());
    }
    audit::system(&app.audit, tx, scope.id(), "set_webhook", ("webhook", row.id.as_str())).await?;
    let mut change = row.into_active_model();
    change.url = Set(url.to_string());
    change.network = Set(network);
    if let Some(sealed) = chosen {
        change.sealed_secret = Set(sealed);
    }
    change.failing_since = Set(None);
    change.updated_at = Set(now);
    change.update(tx).await?;
    Ok(())
}

pub(crate) async fn list<C: ConnectionTrait>(
    conn: &C,
    scope: &TenantScope,
    page: &PageQuery,
) -> ApiResult<Page<Webhook>> {
    let mut query = webhook::of_scope(scope);
    if let Some(before) = page.before::<WebhookId>()? {
        query = query.filter(webhook::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(webhook::Column::Id).limit(page.rows()).all(conn).await?;
    Ok(page.page(rows, |row| &row.id, Webhook::from))
}

pub(super) async fn get<C: ConnectionTrait>(conn: &C, scope: &TenantScope, id: &WebhookId) -> ApiResult<Webhook> {
    Ok(webhook::find(conn, scope, id).await?.ok_or(Kind::NotFound)?.into())
}

pub(super) async fn update(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    id: &WebhookId,
    body: &UpdateWebhook,
) -> ApiResult<Webhook> {
    let row = locked(tx, scope, id).await?;
    let moved = body.url.as_ref().is_some_and(|url| url.as_str() != row.url);
    let enabled = body.status == Some(WebhookStatus::Enabled) && row.status == WebhookStatus::Disabled;
    let mut change = row.into_active_model();
    if let Some(url) = &body.url {
        change.url = Set(url.to_string());
    }
    if let Some(names) = &body.event_types {
        change.event_types = Set(filter(names));
    }
    if let Some(status) = body.status {
        change.status = Set(status);
    }
    if moved || enabled {
        // What was said of the old place, or before it was mended, says nothing of this one.
        change.failing_since = Set(None);
    }
    if enabled {
        change.disabled_reason = Set(None);
    }
    change.updated_at = Set(Timestamp::now());
    Ok(change.update(tx).await?.into())
}

/// Deletes an endpoint with its deliveries. One that is being tried now may still arrive.
pub(super) async fn delete(tx: &DatabaseTransaction, scope: &TenantScope, id: &WebhookId) -> ApiResult<()> {
    webhook::find(tx, scope, id).await?.ok_or(Kind::NotFound)?;
    // In the order in which a delivery's result is noted, so that neither waits for the other.
    for slot in 0..SLOTS {
        jobs::drop_waiting(tx, &lane(id, slot)).await?;
    }
    delivery::Entity::delete_many()
        .filter(delivery::Column::TenantId.eq(scope.id().clone()))
        .filter(delivery::Column::WebhookId.eq(id.clone()))
        .exec(tx)
        .await?;
    webhook::Entity::delete_many()
        .filter(webhook::Column::TenantId.eq(scope.id().clone()))
        .filter(webhook::Column::Id.eq(id.clone()))
        .exec(tx)
        .await?;
    Ok(())
}

pub(super) async fn rotate_secret(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    id: &WebhookId,
) -> ApiResult<RotatedSecret> {
    let row = locked(tx, scope, id).await?;
    let key = tenants::data_key(app, tx, scope).await?;
    let (secret, now) = (Secret::generate(), Timestamp::now());
    let until = now.plus(ROTATION);
    let retired = secret::retire(&key, scope, &row)?;
    let mut change = row.into_active_model();
    change.sealed_previous_secret = Set(Some(retired));
    change.previous_secret_until = Set(Some(until));
    change.sealed_secret = Set(secret.seal(&key, scope, id)?);
    change.updated_at = Set(now);
    change.update(tx).await?;
    Ok(RotatedSecret { secret: secret.shown(), previous_secret_valid_until: until })
}

/// Records a test event for this endpoint alone.
pub(super) async fn test(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    id: &WebhookId,
) -> ApiResult<EventId> {
    let row = locked(tx, scope, id).await?;
    refuse_disabled(&row)?;
    let event = NewEvent {
        kind: EventType::WebhookTest,
        session_id: None,
        occurred_at: Timestamp::now(),
        data: json!({"webhook_id": id}),
    };
    let recorded = events::record_for(tx, app, scope, vec![event], Audience::Only(id)).await?;
    recorded.events.into_iter().next().ok_or(ApiError::Defect("an event was not recorded"))
}

pub(super) async fn deliveries<C: ConnectionTrait>(
    conn: &C,
    scope: &TenantScope,
    id: &WebhookId,
    only: DeliveryFilter,
    page: &PageQuery,
) -> ApiResult<Page<Delivery>> {
    webhook::find(conn, scope, id).await?.ok_or(Kind::NotFound)?;
    let mut query = delivery::Entity::find()
        .filter(delivery::Column::TenantId.eq(scope.id().clone()))
        .filter(delivery::Column::WebhookId.eq(id.clone()));
    if let Some(status) = only.status {
        query = query.filter(delivery::Column::Status.eq(status));
    }
    if let Some(before) = page.before::<DeliveryId>()? {
        query = query.filter(delivery::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(delivery::Column::Id).limit(page.rows()).all(conn).await?;
    Ok(page.page(rows, |row| &row.id, Delivery::from))
}

/// Deliveries of a tenant, of whichever endpoint.
pub(crate) async fn all_deliveries<C: ConnectionTrait>(
    conn: &C,
    scope: &TenantScope,
    page: &PageQuery,
) -> ApiResult<Page<Delivery>> {
    let mut query = delivery::Entity::find().filter(delivery::Column::TenantId.eq(scope.id().clone()));
    if let Some(before) = page.before::<DeliveryId>()? {
        query = query.filter(delivery::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(delivery::Column::Id).limit(page.rows()).all(conn).await?;
    Ok(page.page(rows, |row| &row.id, Delivery::from))
}

/// Makes a delivery that ended pending again.
pub(super) async fn replay(tx: &DatabaseTransaction, scope: &TenantScope, id: &DeliveryId) -> ApiResult<Delivery> {
    let found = delivery::find(tx, scope, id).await?.ok_or(Kind::NotFound)?;
    let endpoint = webhook::find(tx, scope, &found.webhook_id).await?.ok_or(Kind::NotFound)?;
    refuse_disabled(&endpoint)?;
    let now = Timestamp::now();
    if !begin_anew(tx, scope, id, now).await? {
        return Err(Kind::Conflict.because("this delivery is pending: it will be tried anyway").into());
    }
    dispatch::enqueue(tx, scope, &endpoint, id, now).await?;
    Ok(delivery::find(tx, scope, id).await?.ok_or(Kind::NotFound)?.into())
}

/// Makes a delivery pending again whose job was given up and is being redriven.
pub(super) async fn revive(tx: &DatabaseTransaction, scope: &TenantScope, id: &DeliveryId) -> ApiResult<()> {
    let refused = |why: &str| Err(Kind::Conflict.because(why).into());
    let Some(found) = delivery::find(tx, scope, id).await? else {
        return refused("the delivery or its endpoint was deleted");
    };
    let Some(endpoint) = webhook::find(tx, scope, &found.webhook_id).await? else {
        return refused("the delivery or its endpoint was deleted");
    };
    if found.status == DeliveryStatus::Succeeded {
        return refused("it was delivered since");
    }
    refuse_disabled(&endpoint)?;
    if !events::is_kept(tx, scope, &found.event_id).await? {
        return refused("its event is not kept any more");
    }
    // A replay has a job of its own.
    if !begin_anew(tx, scope, id, Timestamp::now()).await? {
        return refused("it is pending: it will be tried anyway");
    }
    Ok(())
}

/// Gives a delivery that ended all its tries again; no, if it is pending.
async fn begin_anew(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    id: &DeliveryId,
    now: Timestamp,
) -> Result<bool, DbErr> {
    // The status is compared in the statement: of two replays at once, one wins.
    let won = delivery::Entity::update_many()
        .set(delivery::ActiveModel {
            status: Set(DeliveryStatus::Pending),
            attempts: Set(0),
            next_attempt_at: Set(Some(now)),
            completed_at: Set(None),
            ..Default::default()
        })
        .filter(delivery::Column::Id.eq(id.clone()))
        .filter(delivery::Column::TenantId.eq(scope.id().clone()))
        .filter(delivery::Column::Status.ne(DeliveryStatus::Pending))
        .exec(tx)
        .await?;
    Ok(won.rows_affected == 1)
}

fn refuse_disabled(endpoint: &webhook::Model) -> ApiResult<()> {
    match endpoint.status {
        WebhookStatus::Enabled => Ok(()),
        WebhookStatus::Disabled => Err(Kind::Conflict.because("this webhook is disabled: enable it first").into()),
    }
}

/// The endpoint, locked until the transaction ends. SQLite's single writer needs no lock.
/// As [`get`], with the row locked.
pub(super) async fn get_locked(tx: &DatabaseTransaction, scope: &TenantScope, id: &WebhookId) -> ApiResult<Webhook> {
    Ok(locked(tx, scope, id).await?.into())
}

async fn locked(tx: &DatabaseTransaction, scope: &TenantScope, id: &WebhookId) -> ApiResult<webhook::Model> {
    let mut query = webhook::of_scope(scope).filter(webhook::Column::Id.eq(id.clone()));
    if tx.get_database_backend() == sea_orm::DbBackend::Postgres {
        query = query.lock(LockType::Update);
    }
    Ok(query.one(tx).await?.ok_or(Kind::NotFound)?)
}
