//! From a request to a [`Principal`].

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, Method, header, request::Parts},
};
use sea_orm::{FromQueryResult, Statement};
use shared::{ids::TenantId, time::Timestamp, wire::session::Network};

use super::{Actor, Auth, Principal, Role, ScopeMarker, TenantScope, tokens};
use crate::{
    audit,
    error::{ApiError, ApiResult, Kind, Refusal},
    extract::ClientAddress,
    keys,
    state::App,
    tenants::TenantStatus,
};

impl<S: ScopeMarker> FromRequestParts<App> for Auth<S> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let principal = authenticate(parts, app).await?;
        Ok(Self::check(principal, !matches!(parts.method, Method::GET | Method::HEAD))?)
    }
}

/// Who sent this request. Asked once for each request, however many extractors want to know.
///
/// # Errors
/// 401 without credentials that hold now; 403 `address-not-allowed` for a key that holds elsewhere.
pub(crate) async fn authenticate(parts: &mut Parts, app: &App) -> ApiResult<Principal> {
    Ok(identify(parts, app).await?.ok_or_else(unauthenticated)?)
}

/// What the credentials of a request were found to be, so that they are looked up once.
#[derive(Clone)]
struct Found(Option<Principal>);

/// Who sent this request, if it has credentials that hold. Whether they may do it is another question.
///
/// # Errors
/// Without credentials, or with more than one; with a key that holds elsewhere; as the driver.
pub(crate) async fn identify(parts: &mut Parts, app: &App) -> ApiResult<Option<Principal>> {
    if let Some(Found(found)) = parts.extensions.get() {
        return Ok(found.clone());
    }
    let address = ClientAddress::from_request_parts(parts, app).await?;
    let token = credential(&parts.headers)?;
    let found = if keys::token::is_one(token) {
        by_key(app, token, address).await?
    } else {
        by_access_token(app, token).await?
    };
    parts.extensions.insert(Found(found.clone()));
    Ok(found)
}

/// Whether the credentials of a request may be good, as far as can be told without asking the database: a key that was good lately, or
/// a token that one of our keys has signed. `None`: there are none, so nothing would be asked.
pub(crate) fn looks_good(parts: &Parts, app: &App) -> Option<bool> {
    let token = credential(&parts.headers).ok()?;
    if keys::token::is_one(token) {
        return Some(app.limits.was_good(&app.keyring.api_key_hash().of(token)));
    }
    Some(
        app.keyring
            .access()
            .set
            .key_of(token)
            .is_some_and(|key| tokens::verify(key, &app.config.tokens, token).is_some()),
    )
}

fn unauthenticated() -> Refusal {
    Kind::Unauthenticated.into()
}

/// The one credential of the request. Two are refused: it would be a guess which of them was meant.
fn credential(headers: &HeaderMap) -> Result<&str, Refusal> {
    let count = headers.get_all(header::AUTHORIZATION).iter().count() + headers.get_all("x-api-key").iter().count();
    if count > 1 {
        return Err(Kind::BadRequest.because("send one credential: either Authorization or X-Api-Key, once"));
    }
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(unauthenticated)?;
        return if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(unauthenticated()) };
    }
    headers
        .get("x-api-key")
        .and_then(|value| value.to_str().ok())
        .filter(|token| keys::token::is_one(token))
        .ok_or_else(unauthenticated)
}

#[derive(FromQueryResult)]
struct LoginRow {
    tenant_status: String,
    role: String,
}

async fn by_access_token(app: &App, token: &str) -> ApiResult<Option<Principal>> {
    // No JWT (an operator's token, say): no key can be looked for.
    if !token.contains('.') {
        return Ok(None);
    }
    let Some(key) = app.keyring.key_of(app, token).await? else { return Ok(None) };
    let Some(claims) = tokens::verify(&key, &app.config.tokens, token) else { return Ok(None) };
    let row = LoginRow::find_by_statement(Statement::from_sql_and_values(
        app.db.engine(),
        "SELECT tenants.status AS tenant_status, members.role AS role FROM logins \
         JOIN tenants ON tenants.id = logins.tenant_id \
         JOIN members ON members.tenant_id = logins.tenant_id AND members.user_id = logins.user_id \
         WHERE logins.id = $1 AND logins.user_id = $2 AND logins.tenant_id = $3 \
         AND logins.revoked_at IS NULL AND logins.expires_at > $4",
        [claims.login.clone().into(), claims.sub.clone().into(), claims.tenant.clone().into(), Timestamp::now().into()],
    ))
    .one(app.db.read())
    .await?;
    let Some(row) = row else { return Ok(None) };
    let role = Role::from_stored(&row.role).ok_or(ApiError::Defect("a stored role is not known"))?;
    let actor = Actor::User { user_id: claims.sub, role, login_id: claims.login };
    principal(claims.tenant, actor, &row.tenant_status).map(Some)
}

async fn by_key(app: &App, token: &str, address: ClientAddress) -> ApiResult<Option<Principal>> {
    let Some(key) = keys::service::find_by_token(app, token).await? else { return Ok(None) };
    app.limits.note_good(app.keyring.api_key_hash().of(token));
    if key.allowed_ips.as_ref().is_some_and(|networks| !address.is_in(networks)) {
        metrics::counter!("api_key_address_refused_total").increment(1);
        audit::of(&key.tenant_id);
        audit::by(audit::ActorType::Key, key.id.as_str());
        return Err(Kind::AddressNotAllowed.into());
    }
    keys::service::note_use(app, &key);
    let actor = Actor::Key { key_id: key.id, scopes: key.scopes, network: key.network };
    let mut principal = principal(key.tenant_id, actor, &key.tenant_status)?;
    // What is tried out reaches no real conversation.
    if key.network == Network::Sandbox {
        principal.tenant = principal.tenant.of_network(Network::Sandbox);
    }
    if let Some(sessions) = key.session_ids {
        principal.tenant = principal.tenant.only(sessions);
    }
    Ok(Some(principal))
}

fn principal(tenant: TenantId, actor: Actor, status: &str) -> ApiResult<Principal> {
    let status = TenantStatus::from_stored(status).ok_or(ApiError::Defect("a stored tenant status is not known"))?;
    Ok(Principal { tenant: TenantScope::of_row(tenant), actor, frozen: status != TenantStatus::Active })
}
