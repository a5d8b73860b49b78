//! Logging in, staying logged in, and seeing and ending one's logins.

use axum::http::{HeaderValue, header};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect, Set, Statement, sea_query::Expr,
};
use secrecy::{ExposeSecret, SecretString};
use shared::{
    ids::{LoginId, TenantId, UserId},
    seal::Place,
    time::Timestamp,
};

use super::{
    Person, TenantScope,
    caller::Caller,
    dto::{LogIn, LogInCode, Login, LoginRecord, SecondFactorRequired, Tokens},
    email_tokens,
    entity::{login, refresh_token, user},
    passwords::PasswordError,
    second_factor,
    throttle::{self, Attempt},
    tokens::{self, REUSE_WINDOW},
};
use crate::{
    audit::{self, ActorType},
    error::{ApiError, ApiResult, Kind},
    extract::page::{Page, PageQuery},
    state::App,
    sweep, tenants,
};

/// How many rows of what has ended one statement takes.
const PRUNE_BATCH: i64 = 500;

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => Kind::Unavailable
                .because("too many people log in at this moment")
                .with_header(header::RETRY_AFTER, HeaderValue::from_static("5"))
                .into(),
            PasswordError::Defect => Self::Defect("a password could not be hashed"),
        }
    }
}

/// Where a right password leads.
pub(super) enum LoggedIn {
    /// In.
    Tokens(Box<Tokens>),
    /// To the second step.
    CodeRequired(SecondFactorRequired),
}

/// Compares the password, and starts a login or asks for the second factor.
pub(super) async fn log_in(app: &App, caller: Caller, wanted: LogIn) -> ApiResult<LoggedIn> {
    let LogIn { email, password, tenant_id, .. } = wanted;
    throttle::admit(app, Attempt::LogIn, caller.address, Some(email.as_str())).await?;
    let user = user::Entity::find().filter(user::Column::Email.eq(email.as_str())).one(app.db.read()).await?;
    let stored = user.as_ref().map(|user| user.password_hash.clone());
    let fits = app.keyring.passwords.verify(password.into_secret(), stored).await?;
    if let Some(user) = user.as_ref().filter(|_| !fits) {
        audit::about(user.id.as_str());
    }
    let Some(user) = user.filter(|_| fits) else { return Err(Kind::InvalidCredentials.into()) };
    audit::by(ActorType::User, user.id.as_str());
    throttle::forgive(app, Attempt::LogIn, email.as_str()).await?;
    let tx = app.db.write().await?;
    // Comparing took its time. Whoever changed the password meanwhile ended all logins that there were: this one wasn't yet.
    if hold(&tx, &user.id).await?.is_none_or(|now| now.password_hash != user.password_hash || now.email != user.email) {
        return Err(Kind::InvalidCredentials.into());
    }
    let outcome = if second_factor::is_on(&tx, &user.id).await? {
        LoggedIn::CodeRequired(second_factor::challenge(app, &tx, &user.id).await?)
    } else {
        LoggedIn::Tokens(Box::new(start_in(app, &tx, caller, &user.id, tenant_id.as_ref()).await?))
    };
    tx.commit().await?;
    Ok(outcome)
}

/// The person, who stays as they are until the transaction ends. What ends all of somebody's logins changes their row first; so it
/// either waits for a login that begins and then ends it too, or the login waits and finds what has changed.
async fn hold(tx: &DatabaseTransaction, user: &UserId) -> Result<Option<user::Model>, DbErr> {
    let mut query = user::Entity::find_by_id(user.clone());
    if tx.get_database_backend() == DbBackend::Postgres {
        query = query.lock_shared();
    }
    query.one(tx).await
}

/// The second step: a code of the device, or a recovery code.
pub(super) async fn log_in_with_code(app: &App, caller: Caller, wanted: LogInCode) -> ApiResult<Tokens> {
    let LogInCode { challenge_token, code, tenant_id, .. } = wanted;
    let challenge = challenge_token.into_secret();
    let over = || Kind::Unauthenticated.because("this challenge is over: log in again");
    let Some(user_id) = second_factor::challenged::<UserId>(app, &challenge).await? else {
        throttle::admit(app, Attempt::SecondFactor, caller.address, None).await?;
        return Err(over().into());
    };
    audit::by(ActorType::User, user_id.as_str());
    throttle::admit(app, Attempt::SecondFactor, caller.address, Some(user_id.as_str())).await?;
    let tx = app.db.write().await?;
    hold(&tx, &user_id).await?;
    if !second_factor::count_try::<UserId>(app, &tx, &challenge).await? {
        tx.commit().await?;
        return Err(over().into());
    }
    if !second_factor::accepts(app, &tx, &user_id, &code.into_secret()).await? {
        tx.commit().await?;
        return Err(Kind::WrongCode.into());
    }
    second_factor::end_challenges(&tx, &user_id).await?;
    let tokens = start_in(app, &tx, caller, &user_id, tenant_id.as_ref()).await?;
    tx.commit().await?;
    throttle::forgive(app, Attempt::SecondFactor, user_id.as_str()).await?;
    Ok(tokens)
}

async fn start_in(
    app: &App,
    tx: &DatabaseTransaction,
    caller: Caller,
    user: &UserId,
    tenant: Option<&TenantId>,
) -> ApiResult<Tokens> {
    let tenant = tenants::choose(tx, user, tenant).await?;
    start(app, tx, caller, user, &tenant.id, Timestamp::now()).await
}

/// Ends a login and starts one to another of the person's tenants, which ends no later.
pub(super) async fn switch(app: &App, caller: Caller, person: Person<'_>, wanted: &TenantId) -> ApiResult<Tokens> {
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    hold(&tx, person.id).await?;
    let tenant = tenants::choose(&tx, person.id, Some(wanted)).await?;
    let present = login::Entity::find_by_id(person.login.clone()).one(&tx).await?;
    let present = present.ok_or(ApiError::Defect("a login that just worked is missing"))?;
    if !revoke(&tx, &present.id, now).await? {
        // Two at once: one of them has it.
        return Err(Kind::Unauthenticated.into());
    }
    let tokens = start_until(app, &tx, caller, person.id, &tenant.id, now, present.expires_at).await?;
    tx.commit().await?;
    Ok(tokens)
}

/// Starts a login.
pub(super) async fn start(
    app: &App,
    tx: &DatabaseTransaction,
    caller: Caller,
    user: &UserId,
    tenant: &TenantId,
    now: Timestamp,
) -> ApiResult<Tokens> {
    start_until(app, tx, caller, user, tenant, now, now.plus(app.config.tokens.refresh_ttl)).await
}

async fn start_until(
    app: &App,
    tx: &DatabaseTransaction,
    caller: Caller,
    user: &UserId,
    tenant: &TenantId,
    now: Timestamp,
    until: Timestamp,
) -> ApiResult<Tokens> {
    let login = login::ActiveModel {
        id: Set(LoginId::new()),
        user_id: Set(user.clone()),
        tenant_id: Set(tenant.clone()),
        created_at: Set(now),
        expires_at: Set(until),
        revoked_at: Set(None),
        device: Set(caller.device()),
        address: Set(caller.address.coarse()),
        last_used_at: Set(now),
    }
    .insert(tx)
    .await?;
    record(&login);
    let refresh = new_refresh_token(app, tx, &login.id, now).await?;
    answer(app, &login, refresh, now)
}

/// Whose login it is, for the audit log.
fn record(login: &login::Model) {
    audit::of(&login.tenant_id);
    audit::by(ActorType::User, login.user_id.as_str());
    audit::about(login.id.as_str());
}

async fn new_refresh_token(
    app: &App,
    tx: &DatabaseTransaction,
    login: &LoginId,
    now: Timestamp,
) -> ApiResult<SecretString> {
    let token = tokens::refresh_token(&app.keyring.refresh_seal, login);
    refresh_token::Entity::insert(refresh_token::ActiveModel {
        token_hash: Set(app.keyring.refresh_hash.of(token.expose_secret())),
        login_id: Set(login.clone()),
        created_at: Set(now),
        used_at: Set(None),
        sealed_successor: Set(None),
        names_login: Set(true),
    })
    .exec_without_returning(tx)
    .await?;
    Ok(token)
}

fn answer(app: &App, login: &login::Model, refresh: SecretString, now: Timestamp) -> ApiResult<Tokens> {
    let keys = app.keyring.access();
    let rules = &app.config.tokens;
    let access = tokens::access_token(&keys.signing, rules, &login.user_id, &login.tenant_id, &login.id, now)
        .map_err(|_| ApiError::Defect("an access token could not be signed"))?;
    Ok(Tokens {
        access_token: access.into(),
        token_type: "Bearer",
        expires_in: rules.access_ttl.as_secs(),
        refresh_token: Some(refresh),
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
    let row = query.one(tx).await?;
    // A token of ours without a row was used, and its row was deleted since.
    let named = row.as_ref().map(|row| row.login_id.clone()).or_else(|| named_login(app, token));
    let Some(named) = named else { return Ok(Refresh::Refused) };
    let login = login::Entity::find_by_id(named)
        .one(tx)
        .await?
        .filter(|login| login.revoked_at.is_none() && login.expires_at > now);
    let Some(login) = login else { return Ok(Refresh::Refused) };
    record(&login);
    let Some(row) = row else { return used_again(tx, &login.id, now).await };
    let row_name = tokens::hex(&hash);
    let place = Place { owner: login.id.as_str(), table: "refresh_tokens", row: &row_name };
    let successor = match (row.used_at, &row.sealed_successor) {
        (None, _) => {
            let successor = new_refresh_token(app, tx, &login.id, now).await?;
            refresh_token::ActiveModel {
                token_hash: Set(hash),
                used_at: Set(Some(now)),
                sealed_successor: Set(Some(app.master_key.seal(&place, successor.expose_secret().as_bytes())?)),
                ..Default::default()
            }
            .update(tx)
            .await?;
            tidy(tx, &login.id, now).await?;
            successor
        }
        (Some(used_at), Some(sealed)) if now.since(used_at) <= REUSE_WINDOW => {
            let bytes = app.master_key.open(&place, sealed)?;
            String::from_utf8(bytes).map_err(|_| ApiError::Defect("a stored refresh token is not text"))?.into()
        }
        (Some(_), _) => return used_again(tx, &login.id, now).await,
    };
    login::ActiveModel { id: Set(login.id.clone()), last_used_at: Set(now), ..Default::default() }.update(tx).await?;
    Ok(Refresh::Tokens(Box::new(answer(app, &login, successor, now)?)))
}

/// Somebody shows a token that was exchanged before: there are two who have it, and it isn't known which of them is the person.
async fn used_again(tx: &DatabaseTransaction, login: &LoginId, now: Timestamp) -> ApiResult<Refresh> {
    revoke(tx, login, now).await?;
    tracing::warn!(%login, "a used refresh token came again: its login is revoked");
    Ok(Refresh::Refused)
}

/// The login that a token says it is of.
fn named_login(app: &App, token: &SecretString) -> Option<LoginId> {
    tokens::login_of(&app.keyring.refresh_seal, token.expose_secret())
}

/// Forgets, of a login that goes on, tokens whose successor isn't answered again. So a login has as many rows as tokens are used in ten
/// seconds, and no more: a token that comes later says itself whose it is. Those of the version before don't: their rows, as many as
/// were used in the day before the upgrade, stay as long as the login.
async fn tidy(tx: &DatabaseTransaction, login: &LoginId, now: Timestamp) -> Result<(), DbErr> {
    for statement in [
        "DELETE FROM refresh_tokens WHERE login_id = $1 AND used_at < $2 AND names_login",
        "UPDATE refresh_tokens SET sealed_successor = NULL \
         WHERE login_id = $1 AND used_at < $2 AND sealed_successor IS NOT NULL",
    ] {
        let values = [login.clone().into(), now.minus(REUSE_WINDOW).into()];
        tx.execute_raw(Statement::from_sql_and_values(tx.get_database_backend(), statement, values)).await?;
    }
    Ok(())
}

/// Ends the login that a refresh token belongs to, if there is one; also by a token that was used.
pub(super) async fn log_out(app: &App, token: &SecretString) -> ApiResult<()> {
    let tx = app.db.write().await?;
    let hash = app.keyring.refresh_hash.of(token.expose_secret());
    let row = refresh_token::Entity::find_by_id(hash).one(&tx).await?;
    if let Some(named) = row.map(|row| row.login_id).or_else(|| named_login(app, token))
        && let Some(login) = login::Entity::find_by_id(named).one(&tx).await?
    {
        record(&login);
        revoke(&tx, &login.id, Timestamp::now()).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Whether it went on until now.
async fn revoke(tx: &DatabaseTransaction, login: &LoginId, now: Timestamp) -> ApiResult<bool> {
    let done = login::Entity::update_many()
        .col_expr(login::Column::RevokedAt, Expr::value(now))
        .filter(login::Column::Id.eq(login.clone()))
        .filter(login::Column::RevokedAt.is_null())
        .exec(tx)
        .await?;
    Ok(done.rows_affected > 0)
}

/// Ends all logins of a person, in every tenant; but one, if one is named.
pub(super) async fn revoke_all(tx: &DatabaseTransaction, user: &UserId, but: Option<&LoginId>) -> ApiResult<()> {
    let mut update = login::Entity::update_many()
        .col_expr(login::Column::RevokedAt, Expr::value(Timestamp::now()))
        .filter(login::Column::UserId.eq(user.clone()))
        .filter(login::Column::RevokedAt.is_null());
    if let Some(but) = but {
        update = update.filter(login::Column::Id.ne(but.clone()));
    }
    update.exec(tx).await?;
    Ok(())
}

/// A person's logins that go on, in every tenant.
pub(super) async fn list<C: ConnectionTrait>(
    connection: &C,
    user: &UserId,
    current: &LoginId,
    page: &PageQuery,
) -> ApiResult<Page<Login>> {
    let mut query = login::Entity::find()
        .filter(login::Column::UserId.eq(user.clone()))
        .filter(login::Column::RevokedAt.is_null())
        .filter(login::Column::ExpiresAt.gt(Timestamp::now()));
    if let Some(before) = page.before::<LoginId>()? {
        query = query.filter(login::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(login::Column::Id).limit(page.rows()).all(connection).await?;
    Ok(page.page(
        rows,
        |row| &row.id,
        |row| Login {
            current: row.id == *current,
            id: row.id,
            tenant_id: row.tenant_id,
            device: row.device,
            address: row.address,
            created_at: row.created_at,
            last_used_at: row.last_used_at.max(row.created_at),
            expires_at: row.expires_at,
        },
    ))
}

/// The logins of people to one tenant, ended ones too, the newest first.
///
/// # Errors
/// As the driver; `bad-request` for a cursor of another list.
pub(crate) async fn of_tenant<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    page: &PageQuery,
) -> ApiResult<Page<LoginRecord>> {
    let mut query = login::Entity::find().filter(login::Column::TenantId.eq(scope.id().clone()));
    if let Some(before) = page.before::<LoginId>()? {
        query = query.filter(login::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(login::Column::Id).limit(page.rows()).all(connection).await?;
    Ok(page.page(
        rows,
        |row| &row.id,
        |row| LoginRecord {
            id: row.id,
            user_id: row.user_id,
            device: row.device,
            address: row.address,
            created_at: row.created_at,
            last_used_at: row.last_used_at.max(row.created_at),
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
        },
    ))
}

/// Ends one of a person's logins.
pub(super) async fn end(tx: &DatabaseTransaction, user: &UserId, login: &LoginId) -> ApiResult<()> {
    let now = Timestamp::now();
    let done = login::Entity::update_many()
        .col_expr(login::Column::RevokedAt, Expr::value(now))
        .filter(login::Column::Id.eq(login.clone()))
        .filter(login::Column::UserId.eq(user.clone()))
        .filter(login::Column::RevokedAt.is_null())
        .filter(login::Column::ExpiresAt.gt(now))
        .exec(tx)
        .await?;
    if done.rows_affected == 0 { Err(Kind::NotFound.into()) } else { Ok(()) }
}

/// Forgets logins that ended by themselves, and whatever else of identity is past its time.
///
/// # Errors
/// As the driver; the others are swept all the same.
pub async fn prune(app: &App) -> Result<(), DbErr> {
    let now = Timestamp::now();
    let mut done = Vec::new();
    for statement in [
        // Tokens first, and by themselves: one login can have many.
        "DELETE FROM refresh_tokens WHERE token_hash IN (SELECT refresh_tokens.token_hash FROM logins \
         JOIN refresh_tokens ON refresh_tokens.login_id = logins.id WHERE logins.expires_at <= $1 LIMIT $2)",
        "DELETE FROM logins WHERE id IN (SELECT id FROM logins WHERE expires_at <= $1 \
         AND NOT EXISTS (SELECT 1 FROM refresh_tokens WHERE refresh_tokens.login_id = logins.id) LIMIT $2)",
        "DELETE FROM login_challenges WHERE token_hash IN \
         (SELECT token_hash FROM login_challenges WHERE expires_at <= $1 LIMIT $2)",
    ] {
        done.push(sweep::before(app, PRUNE_BATCH, statement, now).await);
    }
    done.push(email_tokens::prune(app).await);
    done.push(throttle::prune(app).await);
    done.into_iter().try_for_each(|one| one.map(drop))
}
