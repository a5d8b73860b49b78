//! What can be done with API keys.

use std::time::Duration;

use ipnet::IpNet;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, FromQueryResult, IntoActiveModel,
    QueryFilter, QueryOrder, QuerySelect, Set, Statement, sea_query::Expr,
};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use shared::{
    ids::{KeyId, SessionId, TenantId, UserId},
    time::Timestamp,
    wire::session::Network,
};

use super::{
    dto::{AddressRange, ApiKey, CreateApiKey, CreatedApiKey, RotateApiKey},
    entity, token,
};
use crate::{
    audit,
    auth::{Scope, TenantScope},
    db::to_json,
    error::{ApiError, ApiResult, Kind, Refusal},
    extract::page::{Page, PageQuery},
    plans::{self, Limit},
    sessions,
    state::App,
};

/// How exactly a key's last use is known.
pub(super) const LAST_USED_STEP: Duration = Duration::from_secs(60);
/// How long the present key works on, unless the caller says.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);

/// A key that works until it expires, and its tenant's status.
#[derive(Clone)]
pub(crate) struct WorkingKey {
    pub(crate) id: KeyId,
    pub(crate) tenant_id: TenantId,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) network: Network,
    pub(crate) session_ids: Option<Vec<SessionId>>,
    pub(crate) allowed_ips: Option<Vec<IpNet>>,
    pub(crate) tenant_status: String,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) last_used_at: Option<Timestamp>,
}

impl WorkingKey {
    fn works_at(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now < at)
    }
}

/// Notes a use of a key that was let in, if that is to be known more exactly than it is.
pub(crate) fn note_use(app: &App, key: &WorkingKey) {
    if key.last_used_at.is_none_or(|at| at <= Timestamp::now().minus(LAST_USED_STEP)) {
        app.keyring.key_uses().note(&key.id);
    }
}

#[derive(FromQueryResult)]
struct KeyRow {
    id: KeyId,
    tenant_id: TenantId,
    scopes: String,
    network: String,
    expires_at: Option<Timestamp>,
    session_ids: Option<String>,
    allowed_ips: Option<String>,
    last_used_at: Option<Timestamp>,
    tenant_status: String,
}

/// Finds the key that a caller sent; nothing if it isn't known, has expired or was deleted.
pub(crate) async fn find_by_token(app: &App, token: &str) -> ApiResult<Option<WorkingKey>> {
    let now = Timestamp::now();
    let hash = app.keyring.api_key_hash().of(token);
    if let Some(found) = app.key_cache.get(&hash).filter(|found| found.works_at(now)) {
        return Ok(Some(found));
    }
    let mark = app.key_cache.mark();
    let row = KeyRow::find_by_statement(Statement::from_sql_and_values(
        app.db.engine(),
        "SELECT api_keys.id AS id, api_keys.tenant_id AS tenant_id, api_keys.scopes AS scopes, \
         api_keys.network AS network, api_keys.session_ids AS session_ids, api_keys.allowed_ips AS allowed_ips, \
         api_keys.expires_at AS expires_at, api_keys.last_used_at AS last_used_at, tenants.status AS tenant_status \
         FROM api_keys JOIN tenants ON tenants.id = api_keys.tenant_id \
         WHERE api_keys.secret_hash = $1 AND api_keys.revoked_at IS NULL \
         AND (api_keys.expires_at IS NULL OR api_keys.expires_at > $2)",
        [hash.clone().into(), now.into()],
    ))
    .one(app.db.read())
    .await?;
    let Some(row) = row else {
        app.limits.note_bad(&hash);
        return Ok(None);
    };
    let allowed_ips: Option<Vec<AddressRange>> = row.allowed_ips.as_deref().map(stored).transpose()?;
    let key = WorkingKey {
        id: row.id,
        tenant_id: row.tenant_id,
        scopes: stored(&row.scopes)?,
        network: network_from_stored(&row.network)?,
        session_ids: row.session_ids.as_deref().map(stored).transpose()?,
        allowed_ips: allowed_ips.map(|ranges| ranges.into_iter().map(|range| range.0).collect()),
        tenant_status: row.tenant_status,
        expires_at: row.expires_at,
        last_used_at: row.last_used_at,
    };
    app.key_cache.put(hash, key.clone(), mark);
    Ok(Some(key))
}

/// Makes a key.
pub(crate) async fn create(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    maker: &UserId,
    mut wanted: CreateApiKey,
) -> ApiResult<CreatedApiKey> {
    plans::admit(tx, scope, Limit::ApiKeys).await?;
    wanted.scopes.sort_unstable();
    wanted.scopes.dedup();
    if let Some(ids) = &mut wanted.session_ids {
        // A key of the sandbox would never reach a session of the real network.
        let reach = match wanted.network {
            Network::Sandbox => scope.clone().of_network(Network::Sandbox),
            Network::Whatsapp => scope.clone(),
        };
        check_limited(tx, &reach, &wanted.scopes, ids).await?;
        ids.sort_unstable();
        ids.dedup();
    }
    if let Some(ranges) = &mut wanted.allowed_ips {
        ranges.sort_unstable();
        ranges.dedup();
    }
    let key = token::generate(wanted.network);
    let row = entity::Model {
        id: KeyId::new(),
        tenant_id: scope.id().clone(),
        name: wanted.name,
        network: wanted.network.as_str().into(),
        secret_hash: app.keyring.api_key_hash().of(key.expose_secret()),
        last_four: token::last_four(&key),
        scopes: to_json(&wanted.scopes),
        created_by: maker.clone(),
        created_at: Timestamp::now(),
        expires_at: wanted.expires_at,
        last_used_at: None,
        revoked_at: None,
        session_ids: wanted.session_ids.as_ref().map(to_json),
        allowed_ips: wanted.allowed_ips.as_ref().map(to_json),
        replaced_by: None,
    };
    insert(tx, row, key).await
}

/// A key that is limited to sessions has only scopes that are about sessions, and the sessions are the tenant's.
async fn check_limited(
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    scopes: &[Scope],
    ids: &[SessionId],
) -> ApiResult<()> {
    if let Some(other) = scopes.iter().find(|scope| !scope.is_of_sessions()) {
        let detail = format!("{} is about more than single sessions: leave it or session_ids out", other.as_str());
        return Err(Refusal::field("/scopes", "limited-to-sessions", &detail).into());
    }
    let known = sessions::service::known(tx, scope, ids).await?;
    if let Some(at) = ids.iter().position(|id| !known.contains(id)) {
        return Err(Refusal::field(
            &format!("/session_ids/{at}"),
            "unknown",
            "is no session of this account that the key could reach",
        )
        .into());
    }
    Ok(())
}

async fn insert(tx: &DatabaseTransaction, row: entity::Model, key: SecretString) -> ApiResult<CreatedApiKey> {
    entity::Entity::insert(row.clone().into_active_model()).exec_without_returning(tx).await?;
    Ok(CreatedApiKey { api_key: dto(row)?, key })
}

/// Replaces a key by one like it. The present one works on for the overlap, or until it would have ended anyway.
pub(super) async fn rotate(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    maker: &UserId,
    id: &KeyId,
    wanted: &RotateApiKey,
) -> ApiResult<CreatedApiKey> {
    let now = Timestamp::now();
    let present = find(tx, scope, id).await?;
    if present.expires_at.is_some_and(|end| end <= now) {
        return Err(Kind::Conflict.because("this key has expired: make a new one").into());
    }
    // Else each rotation made one more key that works beside those that the plan allows.
    let before = entity::Entity::find()
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::ReplacedBy.eq(id.clone()))
        .filter(entity::Column::RevokedAt.is_null())
        .filter(entity::Column::ExpiresAt.gt(now))
        .one(tx)
        .await?;
    if before.is_some() {
        return Err(Kind::Conflict
            .because("the key that this one replaced still works: delete it, or wait until it has ended")
            .into());
    }
    let overlap = wanted.overlap_seconds.map_or(OVERLAP, |seconds| Duration::from_secs(seconds.into()));
    let ends = now.plus(overlap);
    let lived = present.expires_at.map(|end| end.since(present.created_at));
    let key = token::generate(network_from_stored(&present.network)?);
    let new_id = KeyId::new();
    let done = entity::Entity::update_many()
        .col_expr(entity::Column::ReplacedBy, Expr::value(new_id.clone()))
        .col_expr(entity::Column::ExpiresAt, Expr::value(present.expires_at.map_or(ends, |end| end.min(ends))))
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::Id.eq(id.clone()))
        .filter(entity::Column::ReplacedBy.is_null())
        .filter(entity::Column::RevokedAt.is_null())
        .exec(tx)
        .await?;
    if done.rows_affected == 0 {
        return Err(Kind::Conflict.because("this key was rotated before: rotate the one that replaced it").into());
    }
    let row = entity::Model {
        id: new_id,
        secret_hash: app.keyring.api_key_hash().of(key.expose_secret()),
        last_four: token::last_four(&key),
        created_by: maker.clone(),
        created_at: now,
        expires_at: wanted.expires_at.or_else(|| lived.map(|lived| now.plus(lived))),
        last_used_at: None,
        replaced_by: None,
        ..present
    };
    insert(tx, row, key).await
}

async fn find<C: ConnectionTrait>(connection: &C, scope: &TenantScope, id: &KeyId) -> ApiResult<entity::Model> {
    Ok(entity::Entity::find_by_id(id.clone())
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::RevokedAt.is_null())
        .one(connection)
        .await?
        .ok_or(Kind::NotFound)?)
}

/// One of the tenant's keys.
pub(super) async fn get<C: ConnectionTrait>(connection: &C, scope: &TenantScope, id: &KeyId) -> ApiResult<ApiKey> {
    dto(find(connection, scope, id).await?)
}

/// Sees to it that the tenant has this key, with all scopes, and no other that was made so before.
pub(crate) async fn ensure(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    key: &SecretString,
) -> ApiResult<()> {
    let (maker, now) = (UserId::nil(), Timestamp::now());
    let hash = app.keyring.api_key_hash().of(key.expose_secret());
    entity::Entity::update_many()
        .col_expr(entity::Column::RevokedAt, Expr::value(now))
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::CreatedBy.eq(maker.clone()))
        .filter(entity::Column::SecretHash.ne(hash.clone()))
        .filter(entity::Column::RevokedAt.is_null())
        .exec(tx)
        .await?;
    if let Some(row) = entity::Entity::find().filter(entity::Column::SecretHash.eq(hash.clone())).one(tx).await? {
        if row.tenant_id != *scope.id() || row.created_by != maker {
            return Err(Kind::Conflict.because("this key is another's").into());
        }
        if row.revoked_at.is_some() {
            let again = entity::ActiveModel { id: Set(row.id), revoked_at: Set(None), ..Default::default() };
            let again = again.update(tx).await?;
            audit::system(&app.audit, tx, scope.id(), "set_api_key", ("api_key", again.id.as_str())).await?;
        }
        return Ok(());
    }
    let network = token::network(key.expose_secret()).ok_or(ApiError::Defect("a key of the settings isn't one"))?;
    let row = entity::Model {
        id: KeyId::new(),
        tenant_id: scope.id().clone(),
        name: "API_KEY".into(),
        network: network.as_str().into(),
        secret_hash: hash,
        last_four: token::last_four(key),
        scopes: to_json(&Scope::ALL.to_vec()),
        created_by: maker,
        created_at: now,
        expires_at: None,
        last_used_at: None,
        revoked_at: None,
        session_ids: None,
        allowed_ips: None,
        replaced_by: None,
    };
    audit::system(&app.audit, tx, scope.id(), "set_api_key", ("api_key", row.id.as_str())).await?;
    entity::Entity::insert(row.into_active_model()).exec_without_returning(tx).await?;
    Ok(())
}

/// The tenant's keys that aren't deleted.
pub(crate) async fn list<C: ConnectionTrait>(
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
        .col_expr(entity::Column::RevokedAt, Expr::value(Timestamp::now()))
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
        scopes: stored(&row.scopes)?,
        session_ids: row.session_ids.as_deref().map(stored).transpose()?,
        allowed_ips: row.allowed_ips.as_deref().map(stored).transpose()?,
        last_four: row.last_four,
        created_by: row.created_by,
        created_at: row.created_at,
        expires_at: row.expires_at,
        last_used_at: row.last_used_at,
        replaced_by: row.replaced_by,
    })
}

fn network_from_stored(text: &str) -> ApiResult<Network> {
    [Network::Whatsapp, Network::Sandbox]
        .into_iter()
        .find(|network| network.as_str() == text)
        .ok_or(ApiError::Defect("a stored network is not known"))
}

fn stored<T: DeserializeOwned>(text: &str) -> ApiResult<T> {
    serde_json::from_str(text).map_err(|_| ApiError::Defect("a stored list of a key can't be read"))
}
