//! Idempotency keys: a request that is sent again has one effect and one answer.
//!
//! **Owns** the table `idempotency_keys`: for each `(tenant, principal, key)` the request's digest and the sealed
//! answer that was committed.
//!
//! **How.** [`Idempotent::run`] opens the write transaction, writes the key's row first, runs the handler's work in the
//! same transaction, puts the answer into the row, and commits all of it together. So an answer is stored exactly if
//! its effect is, and a crash at any point leaves either both or nothing. An answer that is an error rolls
//! everything back: the same key may then be used again.
//!
//! **Two at once.** On PostgreSQL the row's key is locked with a transaction-level advisory lock, tried and not waited for: the
//! second caller gets 409 with `Retry-After` while the first works. On SQLite there is one writer, so the second
//! waits for it and then finds the row. Either way a caller who asks again gets the stored answer, marked
//! `Idempotent-Replayed: true`.
//!
//! **Compared.** The digest covers method, path and canonical body; another request under the same key is 422. The principal is part
//! of the key, so an API key never sees an answer that was made for another.

mod entity;

use std::time::Duration;

use axum::{
    extract::FromRequestParts,
    http::{HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use sea_orm::{
    ActiveModelTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, Set, Statement,
    sea_query::OnConflict,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use shared::{seal::Place, time::Timestamp};
use utoipa::IntoParams;

use crate::{
    auth::{self, Principal, TenantScope},
    error::{ApiError, ApiResult, Kind},
    extract::BodyDigest,
    state::App,
    sweep, tenants,
};

/// How long an answer is kept, unless the operation says otherwise.
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// The longest key, in bytes.
const MAX_KEY_LEN: usize = 255;
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// How many expired rows one statement takes.
const PRUNE_BATCH: i64 = 1000;

/// The header as the OpenAPI document lists it: `params(IdempotencyKey)`.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "a description; the extractor is Idempotent")]
pub struct IdempotencyKey {
    /// 1 to 255 visible ASCII characters. The same key with the same request is answered as the first time, and has
    /// no second effect.
    #[param(
        rename = "Idempotency-Key",
        required = false,
        min_length = 1,
        max_length = 255,
        pattern = "^[!-~]+$",
        example = "order-4711"
    )]
    idempotency_key: Option<String>,
}

/// The `Idempotency-Key` of a request, or its absence. Stands before the body in a handler's signature.
#[derive(Debug, Clone)]
pub struct Idempotent {
    principal: Principal,
    key: Option<String>,
    operation: String,
    body: BodyDigest,
}

/// An answer that can be stored.
#[derive(Debug, Clone)]
pub struct Reply {
    status: StatusCode,
    body: Vec<u8>,
}

impl Reply {
    /// With a JSON body.
    ///
    /// # Errors
    /// A defect, if `body` has no JSON form.
    pub fn json<T: Serialize>(status: StatusCode, body: &T) -> ApiResult<Self> {
        let body = serde_json::to_vec(body).map_err(|_| ApiError::Defect("an answer has no JSON form"))?;
        Ok(Self { status, body })
    }

    /// 204, without a body.
    #[must_use]
    pub const fn no_content() -> Self {
        Self { status: StatusCode::NO_CONTENT, body: Vec::new() }
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        if self.body.is_empty() {
            return self.status.into_response();
        }
        (self.status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], self.body).into_response()
    }
}

impl FromRequestParts<App> for Idempotent {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let principal = auth::authenticate(parts, app).await?;
        let key = match parts.headers.get("idempotency-key") {
            None => None,
            Some(value) => match value.to_str() {
                Ok(text) if (1..=MAX_KEY_LEN).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) => {
                    Some(text.to_owned())
                }
                _ => {
                    return Err(Kind::BadRequest
                        .because("Idempotency-Key must be 1 to 255 visible ASCII characters")
                        .into());
                }
            },
        };
        let operation = format!("{} {}", parts.method, parts.uri.path());
        let body = parts.extensions.get_or_insert_default::<BodyDigest>().clone();
        Ok(Self { principal, key, operation, body })
    }
}

impl Idempotent {
    /// Runs `work` once for this key, in one transaction with the record of its answer. Without a key it is just the
    /// transaction. What rings a bell is to be rung by the caller afterwards: a replay rings it once too often, which is harmless.
    ///
    /// # Errors
    /// Those of `work`, after rolling back; 409 while another request with this key is in flight; 422 if the key was
    /// used for another request.
    pub async fn run<F>(self, app: &App, ttl: Duration, work: F) -> ApiResult<Response>
    where
        F: AsyncFnOnce(&DatabaseTransaction) -> ApiResult<Reply>,
    {
        let tx = app.db.write().await?;
        match self.run_in(app, &tx, ttl, work).await {
            Ok(response) => {
                tx.commit().await?;
                Ok(response)
            }
            Err(error) => {
                // A failed roll-back ends the connection, and with it the transaction.
                if tx.rollback().await.is_err() {
                    tracing::warn!("a transaction could not be rolled back");
                }
                Err(error)
            }
        }
    }

    /// Whether there is an answer to repeat, so that nothing will be done: for what is counted before it is done.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) async fn is_repeated(&self, app: &App) -> ApiResult<bool> {
        let Some(key) = &self.key else { return Ok(false) };
        let id = (self.principal.tenant.id().clone(), self.principal.actor_id().to_owned(), key.clone());
        let found = entity::Entity::find_by_id(id).one(app.db.read()).await?;
        Ok(found.is_some_and(|row| row.expires_at > Timestamp::now() && row.request_hash == self.request_hash()))
    }

    async fn run_in<F>(&self, app: &App, tx: &DatabaseTransaction, ttl: Duration, work: F) -> ApiResult<Response>
    where
        F: AsyncFnOnce(&DatabaseTransaction) -> ApiResult<Reply>,
    {
        let Some(key) = &self.key else {
            return Ok(work(tx).await?.into_response());
        };
        let scope = &self.principal.tenant;
        if let Some(stored) = self.claim(app, tx, key, ttl).await? {
            let mut response = stored.into_response();
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
            return Ok(response);
        }
        let reply = work(tx).await?;
        let sealed_body = if reply.body.is_empty() {
            Vec::new()
        } else {
            tenants::data_key(app, tx, scope).await?.seal(&place(scope, key), &reply.body)?
        };
        entity::ActiveModel {
            tenant_id: Set(scope.id().clone()),
            principal: Set(self.principal.actor_id().into()),
            idempotency_key: Set(key.clone()),
            status: Set(i32::from(reply.status.as_u16())),
            sealed_body: Set(sealed_body),
            ..Default::default()
        }
        .update(tx)
        .await?;
        Ok(reply.into_response())
    }

    /// Writes the row of this key, or finds the answer that is stored under it.
    async fn claim(&self, app: &App, tx: &DatabaseTransaction, key: &str, ttl: Duration) -> ApiResult<Option<Reply>> {
        let scope = &self.principal.tenant;
        let principal = self.principal.actor_id();
        let request_hash = self.request_hash();
        if tx.get_database_backend() == DbBackend::Postgres && !try_lock(tx, scope, principal, key).await? {
            return Err(in_flight());
        }
        let id = (scope.id().clone(), principal.to_owned(), key.to_owned());
        let now = Timestamp::now();
        if let Some(row) = entity::Entity::find_by_id(id.clone()).one(tx).await? {
            if row.expires_at > now {
                return self.stored(app, tx, &row, &request_hash).await.map(Some);
            }
            entity::Entity::delete_by_id(id).exec(tx).await?;
        }
        let row = entity::ActiveModel {
            tenant_id: Set(scope.id().clone()),
            principal: Set(principal.into()),
            idempotency_key: Set(key.into()),
            operation: Set(self.operation.clone()),
            request_hash: Set(request_hash.to_vec()),
            status: Set(0),
            sealed_body: Set(Vec::new()),
            created_at: Set(now),
            expires_at: Set(now.plus(ttl)),
        };
        let inserted = entity::Entity::insert(row)
            .on_conflict(OnConflict::new().do_nothing().to_owned())
            .exec_without_returning(tx)
            .await?;
        if inserted == 0 { Err(in_flight()) } else { Ok(None) }
    }

    async fn stored(
        &self,
        app: &App,
        tx: &DatabaseTransaction,
        row: &entity::Model,
        request_hash: &[u8; 32],
    ) -> ApiResult<Reply> {
        if row.request_hash != request_hash {
            return Err(Kind::IdempotencyMismatch
                .because("this Idempotency-Key was sent before with another body or on another operation")
                .into());
        }
        let status = u16::try_from(row.status)
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok())
            .ok_or(ApiError::Defect("a stored answer has no status"))?;
        let scope = &self.principal.tenant;
        let body = if row.sealed_body.is_empty() {
            Vec::new()
        } else {
            tenants::data_key(app, tx, scope).await?.open(&place(scope, &row.idempotency_key), &row.sealed_body)?
        };
        Ok(Reply { status, body })
    }

    fn request_hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update((self.operation.len() as u64).to_be_bytes());
        hash.update(&self.operation);
        if let Some(digest) = self.body.get() {
            hash.update(digest);
        }
        hash.finalize().into()
    }
}

fn place<'a>(scope: &'a TenantScope, key: &'a str) -> Place<'a> {
    Place { owner: scope.id().as_str(), table: "idempotency_keys", row: key }
}

fn in_flight() -> ApiError {
    crate::error::Refusal::from(Kind::IdempotencyInFlight)
        .with_header(header::RETRY_AFTER, HeaderValue::from_static("1"))
        .into()
}

async fn try_lock(tx: &DatabaseTransaction, scope: &TenantScope, principal: &str, key: &str) -> ApiResult<bool> {
    let mut hash = Sha256::new();
    for part in ["idempotency", scope.id().as_str(), principal, key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    let (head, _) = digest.split_at(8);
    let number = head.iter().fold(0_i64, |number, byte| (number << 8) | i64::from(*byte));
    let row = tx
        .query_one_raw(Statement::from_sql_and_values(
            DbBackend::Postgres,
            "SELECT pg_try_advisory_xact_lock($1) AS locked",
            [number.into()],
        ))
        .await?
        .ok_or(ApiError::Defect("a lock function answered nothing"))?;
    Ok(row.try_get("", "locked")?)
}

/// Deletes rows that are past their time. Gives how many.
///
/// # Errors
/// As the driver.
pub async fn prune(app: &App) -> Result<u64, sea_orm::DbErr> {
    let statement = "DELETE FROM idempotency_keys WHERE (tenant_id, principal, idempotency_key) IN \
                     (SELECT tenant_id, principal, idempotency_key FROM idempotency_keys WHERE expires_at <= $1 LIMIT $2)";
    sweep::before(app, PRUNE_BATCH, statement, Timestamp::now()).await
}
