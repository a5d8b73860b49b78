//! What can be done with API keys.

use std::time::Duration;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, FromQueryResult, QueryFilter,
    QueryOrder, QuerySelect, Set, Statement,
};
use secrecy::ExposeSecret;
use shared::{
    ids::{KeyId, TenantId, UserId},
    time::Timestamp,
    wire::session::Network,
};

use super::{
    dto::{ApiKey, CreateApiKey, CreatedApiKey},
    entity, token,
};
use crate::{
    auth::{Scope, TenantScope},
    error::{ApiError, ApiResult, Kind, database_error_kind},
    extract::page::{Page, PageQuery},
    plans::{self, Limit},
    state::App,
};

/// How exactly a key's last use is known.
const LAST_USED_STEP: Duration = Duration::from_secs(60);

/// A key that works until it expires, and its tenant's status.
#[derive(Clone)]
pub(crate) struct WorkingKey {
    pub(crate) id: KeyId,
    pub(crate) tenant_id: TenantId,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) network: Network,
    pub(crate) tenant_status: String,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) last_used_at: Option<Timestamp>,
}

impl WorkingKey {
    /// Whether it works now, and its use needn't be noted.
    fn needs_nothing(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now < at) && self.last_used_at.is_some_and(|at| now < at.plus(LAST_USED_STEP))
    }
}

#[derive(FromQueryResult)]
struct KeyRow {
    id: KeyId,
    tenant_id: TenantId,
    scopes: String,
    network: String,
    expires_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
    tenant_status: String,
}

/// Finds the key that a caller sent; nothing if it isn't known, has expired or was deleted.
pub(crate) async fn find_by_token(app: &App, token: &str) -> ApiResult<Option<WorkingKey>> {
    let now = Timestamp::now();
    let hash = app.keyring.api_key_hash().of(token);
    if let Some(found) = app.key_cache.get(&hash).filter(|found| found.needs_nothing(now)) {
        return Ok(Some(found));
    }
    let mark = app.key_cache.mark();
    let row = KeyRow::find_by_statement(Statement::from_sql_and_values(
        app.db.engine(),
        "SELECT api_keys.id AS id, api_keys.tenant_id AS tenant_id, api_keys.scopes AS scopes, \
         api_keys.network AS network, api_keys.expires_at AS expires_at, api_keys.last_used_at AS last_used_at, tenants.status AS tenant_status \
         FROM api_keys JOIN tenants ON tenants.id = api_keys.tenant_id \
         WHERE api_keys.secret_hash = $1 AND api_keys.revoked_at IS NULL \
         AND (api_keys.expires_at IS NULL OR api_keys.expires_at > $2)",
        [hash.clone().into(), now.into()],
    ))
    .one(app.db.read())
    .await?;
    let Some(mut row) = row else { return Ok(None) };
    if row.last_used_at.is_none_or(|at| at <= now.minus(LAST_USED_STEP)) {
        touch(app, &row.id, now).await;
        row.last_used_at = Some(now);
    }
    let key = WorkingKey {
        id: row.id,
        tenant_id: row.tenant_id,
        scopes: scopes_from_stored(&row.scopes)?,
        network: network_from_stored(&row.network)?,
        tenant_status: row.tenant_status,
        expires_at: row.expires_at,
        last_used_at: row.last_used_at,
    };
    app.key_cache.put(hash, key.clone(), mark);
    Ok(Some(key))
}

/// Notes the use. Failing to is no reason to refuse the caller.
async fn touch(app: &App, id: &KeyId, now: Timestamp) {
    let done = app
        .db
        .autocommit()
        .execute_raw(Statement::from_sql_and_values(
            app.db.engine(),
            "UPDATE api_keys SET last_used_at = $1 WHERE id = $2 AND (last_used_at IS NULL OR last_used_at <= $3)",
            [now.into(), id.clone().into(), now.minus(LAST_USED_STEP).into()],
        ))
        .await;
    if let Err(error) = done {
        tracing::warn!(kind = database_error_kind(&error), "the last use of an API key was not noted");
    }
}

/// Makes a key.
pub(super) async fn create(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    maker: &UserId,
    mut wanted: CreateApiKey,
) -> ApiResult<CreatedApiKey> {
    plans::admit(tx, scope, Limit::ApiKeys).await?;
    wanted.scopes.sort_unstable();
    wanted.scopes.dedup();
    let scopes = serde_json::to_string(&wanted.scopes).map_err(|_| ApiError::Defect("scopes have no JSON form"))?;
    let key = token::generate(wanted.network);
    let row = entity::ActiveModel {
        id: Set(KeyId::new()),
        tenant_id: Set(scope.id().clone()),
        name: Set(wanted.name),
        network: Set(wanted.network.as_str().into()),
        secret_hash: Set(app.keyring.api_key_hash().of(key.expose_secret())),
        last_four: Set(token::last_four(&key)),
        scopes: Set(scopes),
        created_by: Set(maker.clone()),
        created_at: Set(Timestamp::now()),
        expires_at: Set(wanted.expires_at),
        last_used_at: Set(None),
        revoked_at: Set(None),
    }
    .insert(tx)
    .await?;
    Ok(CreatedApiKey { api_key: dto(row)?, key })
}

/// The tenant's keys that aren't deleted.
pub(super) async fn list<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    page: &PageQuery,
) -> ApiResult<Page<ApiKey>> {
    let mut query = entity::Entity::find()
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::RevokedAt.is_null());
    if let Some(before) = page.before::<KeyId>()? {
        query = query.filter(entity::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(entity::Column::Id).limit(page.rows()).all(connection).await?;
    let keys = rows.into_iter().map(dto).collect::<ApiResult<Vec<_>>>()?;
    Ok(page.page(keys, |key| &key.id, |key| key))
}

/// Ends a key.
pub(super) async fn delete(tx: &DatabaseTransaction, scope: &TenantScope, id: &KeyId) -> ApiResult<()> {
    let done = entity::Entity::update_many()
        .col_expr(entity::Column::RevokedAt, sea_orm::sea_query::Expr::value(Timestamp::now()))
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::Id.eq(id.clone()))
        .filter(entity::Column::RevokedAt.is_null())
        .exec(tx)
        .await?;
    if done.rows_affected == 0 { Err(Kind::NotFound.into()) } else { Ok(()) }
}

fn dto(row: entity::Model) -> ApiResult<ApiKey> {
    Ok(ApiKey {
        id: row.id,
        name: row.name,
        network: network_from_stored(&row.network)?,
        scopes: scopes_from_stored(&row.scopes)?,
        last_four: row.last_four,
        created_by: row.created_by,
        created_at: row.created_at,
        expires_at: row.expires_at,
        last_used_at: row.last_used_at,
    })
}

fn network_from_stored(text: &str) -> ApiResult<Network> {
    [Network::Whatsapp, Network::Sandbox]
        .into_iter()
        .find(|network| network.as_str() == text)
        .ok_or(ApiError::Defect("a stored network is not known"))
}

fn scopes_from_stored(text: &str) -> ApiResult<Vec<Scope>> {
    serde_json::from_str(text).map_err(|_| ApiError::Defect("stored scopes can't be read"))
}
