//! Signing up, logging in, staying logged in.

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter,
    QuerySelect, Set, Statement,
    sea_query::{Expr, OnConflict},
};
use secrecy::{ExposeSecret, SecretString};
use shared::{
    ids::{LoginId, TenantId, UserId},
    seal::Place,
    time::Timestamp,
};

use super::{
    Role, TenantScope,
    dto::{LogIn, Me, SignUp, Tokens},
    entity::{login, refresh_token, user},
    passwords::PasswordError,
    tokens::{self, ACCESS_TTL, LOGIN_TTL, REUSE_WINDOW},
};
use crate::{
    error::{ApiError, ApiResult, Kind},
    state::App,
    tenants,
};

/// How many ended logins one sweep forgets.
const PRUNE_BATCH: i64 = 500;

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => Kind::Unavailable.because("too many people log in at this moment").into(),
            PasswordError::Defect => Self::Defect("a password could not be hashed"),
        }
    }
}

/// Makes a tenant with its owner, and logs the owner in.
pub(super) async fn sign_up(app: &App, wanted: SignUp) -> ApiResult<Tokens> {
    let SignUp { email, password, name, tenant_name } = wanted;
    // Before the transaction, which mustn't hold SQLite's writer for as long as a hash takes.
    let password_hash = app.keyring.passwords.hash(password.into_secret()).await?;
    let tx = app.db.write().await?;
    let now = Timestamp::now();
    let user_id = UserId::new();
    let inserted = user::Entity::insert(user::ActiveModel {
        id: Set(user_id.clone()),
        email: Set(email.as_str().into()),
        name: Set(name),
        password_hash: Set(password_hash),
        created_at: Set(now),
    })
    .on_conflict(OnConflict::column(user::Column::Email).do_nothing().to_owned())
    .exec_without_returning(&tx)
    .await?;
    if inserted == 0 {
        tx.rollback().await?;
        return Err(Kind::EmailTaken.into());
    }
    let tenant = tenants::service::create(app, &tx, &tenant_name, &user_id, now).await?;
    let tokens = start_login(app, &tx, &user_id, &tenant.id, now).await?;
    tx.commit().await?;
    tracing::info!(tenant = %tenant.id, user = %user_id, "a tenant signed up");
    Ok(tokens)
}

/// Compares the password and starts a login.
pub(super) async fn log_in(app: &App, wanted: LogIn) -> ApiResult<Tokens> {
    let LogIn { email, password } = wanted;
    let user = user::Entity::find().filter(user::Column::Email.eq(email.as_str())).one(app.db.read()).await?;
    let stored = user.as_ref().map(|user| user.password_hash.clone());
    let fits = app.keyring.passwords.verify(password.into_secret(), stored).await?;
    let Some(user) = user.filter(|_| fits) else { return Err(Kind::InvalidCredentials.into()) };
    let tx = app.db.write().await?;
    let (tenant, _) =
        tenants::service::home_of(&tx, &user.id).await?.ok_or(ApiError::Defect("a person belongs to no tenant"))?;
    let tokens = start_login(app, &tx, &user.id, &tenant.id, Timestamp::now()).await?;
    tx.commit().await?;
    Ok(tokens)
}

async fn start_login(
    app: &App,
    tx: &DatabaseTransaction,
    user: &UserId,
    tenant: &TenantId,
    now: Timestamp,
) -> ApiResult<Tokens> {
    let login = login::ActiveModel {
        id: Set(LoginId::new()),
        user_id: Set(user.clone()),
        tenant_id: Set(tenant.clone()),
        created_at: Set(now),
        expires_at: Set(now.plus(LOGIN_TTL)),
        revoked_at: Set(None),
    }
    .insert(tx)
    .await?;
    let refresh = tokens::refresh_token();
    store_refresh_token(app, tx, &login.id, &refresh, now).await?;
    answer(app, &login, refresh, now)
}

async fn store_refresh_token(
    app: &App,
    tx: &DatabaseTransaction,
    login: &LoginId,
    token: &SecretString,
    now: Timestamp,
) -> ApiResult<()> {
    refresh_token::Entity::insert(refresh_token::ActiveModel {
        token_hash: Set(app.keyring.refresh_hash.of(token.expose_secret())),
        login_id: Set(login.clone()),
        created_at: Set(now),
        used_at: Set(None),
        sealed_successor: Set(None),
    })
    .exec_without_returning(tx)
    .await?;
    Ok(())
}

fn answer(app: &App, login: &login::Model, refresh: SecretString, now: Timestamp) -> ApiResult<Tokens> {
    let access = tokens::access_token(&app.keyring.access, &login.user_id, &login.tenant_id, &login.id, now)
        .map_err(|_| ApiError::Defect("an access token could not be signed"))?;
    Ok(Tokens {
        access_token: access.into(),
        token_type: "Bearer",
        expires_in: ACCESS_TTL.as_secs(),
        refresh_token: refresh,
        refresh_expires_at: login.expires_at,
        user_id: login.user_id.clone(),
        tenant_id: login.tenant_id.clone(),
    })
}

/// What a refresh token that was shown leads to.
enum Refresh {
    Tokens(Box<Tokens>),
    /// Not known, ended, or used before: 401, and what was written stays written.
    Refused,
}

/// Exchanges a refresh token for the next pair.
pub(super) async fn refresh(app: &App, token: SecretString) -> ApiResult<Tokens> {
    let tx = app.db.write().await?;
    let outcome = refresh_in(app, &tx, &token).await?;
    // Also when it is refused: a family that is revoked because of it must stay so.
    tx.commit().await?;
    match outcome {
        Refresh::Tokens(tokens) => Ok(*tokens),
        Refresh::Refused => Err(Kind::Unauthenticated.because("this refresh token doesn't work (any more)").into()),
    }
}

async fn refresh_in(app: &App, tx: &DatabaseTransaction, token: &SecretString) -> ApiResult<Refresh> {
    let now = Timestamp::now();
    let hash = app.keyring.refresh_hash.of(token.expose_secret());
    let mut query = refresh_token::Entity::find_by_id(hash.clone());
    if tx.get_database_backend() == DbBackend::Postgres {
        // Two tabs at once: the second waits, and then finds the successor.
        query = query.lock_exclusive();
    }
    let Some(row) = query.one(tx).await? else { return Ok(Refresh::Refused) };
    let login = login::Entity::find_by_id(row.login_id.clone())
        .one(tx)
        .await?
        .filter(|login| login.revoked_at.is_none() && login.expires_at > now);
    let Some(login) = login else { return Ok(Refresh::Refused) };
    let row_name = hex(&hash);
    let place = Place { owner: login.id.as_str(), table: "refresh_tokens", row: &row_name };
    let successor = match (row.used_at, &row.sealed_successor) {
        (None, _) => {
            let successor = tokens::refresh_token();
            store_refresh_token(app, tx, &login.id, &successor, now).await?;
            refresh_token::ActiveModel {
                token_hash: Set(hash),
                used_at: Set(Some(now)),
                sealed_successor: Set(Some(app.master_key.seal(&place, successor.expose_secret().as_bytes())?)),
                ..Default::default()
            }
            .update(tx)
            .await?;
            successor
        }
        (Some(used_at), Some(sealed)) if now.since(used_at) <= REUSE_WINDOW => {
            let bytes = app.master_key.open(&place, sealed)?;
            String::from_utf8(bytes).map_err(|_| ApiError::Defect("a stored refresh token is not text"))?.into()
        }
        (Some(_), _) => {
            revoke(tx, &login.id, now).await?;
            tracing::warn!(login = %login.id, "a used refresh token came again: its login is revoked");
            return Ok(Refresh::Refused);
        }
    };
    Ok(Refresh::Tokens(Box::new(answer(app, &login, successor, now)?)))
}

/// Ends the login that a refresh token belongs to, if there is one.
pub(super) async fn log_out(app: &App, token: &SecretString) -> ApiResult<()> {
    let tx = app.db.write().await?;
    let hash = app.keyring.refresh_hash.of(token.expose_secret());
    if let Some(row) = refresh_token::Entity::find_by_id(hash).one(&tx).await? {
        revoke(&tx, &row.login_id, Timestamp::now()).await?;
    }
    tx.commit().await?;
    Ok(())
}

async fn revoke(tx: &DatabaseTransaction, login: &LoginId, now: Timestamp) -> ApiResult<()> {
    login::Entity::update_many()
        .col_expr(login::Column::RevokedAt, Expr::value(now))
        .filter(login::Column::Id.eq(login.clone()))
        .filter(login::Column::RevokedAt.is_null())
        .exec(tx)
        .await?;
    Ok(())
}

/// The person, and the tenant that they are logged in to.
pub(super) async fn me<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    user: &UserId,
    role: Role,
) -> ApiResult<Me> {
    let user = user::Entity::find_by_id(user.clone())
        .one(connection)
        .await?
        .ok_or(ApiError::Defect("a person with a login is missing"))?;
    let tenant = tenants::service::find(connection, scope).await?;
    Ok(Me { id: user.id, email: user.email, name: user.name, role, tenant: tenant.into(), created_at: user.created_at })
}

/// Gives a person another name.
pub(super) async fn rename(tx: &DatabaseTransaction, user: &UserId, name: &str) -> ApiResult<()> {
    user::ActiveModel { id: Set(user.clone()), name: Set(name.to_owned()), ..Default::default() }.update(tx).await?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// Forgets logins that ended by themselves, a bounded number of them, with their tokens.
///
/// # Errors
/// As the driver.
pub async fn prune(app: &App) -> Result<(), DbErr> {
    let engine = app.db.engine();
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    for statement in [
        "DELETE FROM refresh_tokens WHERE login_id IN (SELECT id FROM logins WHERE expires_at <= $1 ORDER BY id LIMIT $2)",
        "DELETE FROM logins WHERE id IN (SELECT id FROM logins WHERE expires_at <= $1 ORDER BY id LIMIT $2)",
    ] {
        tx.execute_raw(Statement::from_sql_and_values(engine, statement, [now.into(), PRUNE_BATCH.into()])).await?;
    }
    tx.commit().await
}
