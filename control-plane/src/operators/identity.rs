//! Who is an operator, and how they show it.

use std::time::Duration;

use axum::{extract::FromRequestParts, http::request::Parts};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter, QuerySelect, Set,
    sea_query::{LockType, OnConflict},
};
use secrecy::{ExposeSecret, SecretString};
use shared::{ids::OperatorId, time::Timestamp};
use validator::Validate;

use super::{
    dto::{OperatorLogIn, OperatorLogInCode, OperatorToken},
    entity::{login, operator},
};
use crate::{
    audit::{self, ActorType},
    auth::{self, Attempt, Caller, EmailAddress, MIN_PASSWORD, SecondFactorRequired, Shown, second_factor},
    error::{ApiError, ApiResult, Kind, Refusal},
    internal::bearer,
    state::App,
    sweep,
};

/// What a token of an operator begins with.
const PREFIX: &str = "sbo_";
/// How long a login lasts.
pub(super) const LOGIN_TTL: Duration = Duration::from_secs(12 * 3600);
/// How many ended logins one statement forgets.
const PRUNE_BATCH: i64 = 500;

/// An operator to be made.
pub struct NewOperator {
    /// The address to log in with.
    pub email: String,
    /// What to call them.
    pub name: String,
    /// At least 10 characters.
    pub password: SecretString,
    /// Whether one who exists gets this name and password, and all their logins end.
    pub replace: bool,
}

/// An operator could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// Not an address.
    #[error("the e-mail address isn't one")]
    Email,
    /// Too short or too long.
    #[error("the name must have 1 to 100 characters")]
    Name,
    /// Too short or too long.
    #[error("the password must have 10 to 200 characters")]
    Password,
    /// There is one, and replacing wasn't asked for.
    #[error("there is an operator with this address: --replace gives them this password")]
    Exists,
    /// There is none.
    #[error("there is no operator with this address")]
    Unknown,
    /// It could not be hashed.
    #[error("the password could not be hashed")]
    Hash,
    /// The database said no.
    #[error("the database said no ({})", crate::error::database_error_kind(.0))]
    Database(#[from] DbErr),
}

fn address(email: String) -> Result<EmailAddress, OperatorError> {
    let email = EmailAddress::from(email);
    email.validate().map_err(|_| OperatorError::Email)?;
    Ok(email)
}

/// Makes an operator.
///
/// # Errors
/// [`OperatorError`].
pub async fn create(app: &App, new: NewOperator) -> Result<OperatorId, OperatorError> {
    let email = address(new.email)?;
    if !(1..=100).contains(&new.name.trim().chars().count()) {
        return Err(OperatorError::Name);
    }
    let password = Shown::<MIN_PASSWORD>::from(new.password);
    password.validate().map_err(|_| OperatorError::Password)?;
    let hash = app.keyring.hash_password(password.into_secret()).await.map_err(|_| OperatorError::Hash)?;
    let id = OperatorId::new();
    let tx = app.db.write().await?;
    let inserted = operator::Entity::insert(operator::ActiveModel {
        id: Set(id.clone()),
        email: Set(email.as_str().into()),
        name: Set(new.name.trim().into()),
        password_hash: Set(hash.clone()),
        created_at: Set(Timestamp::now()),
    })
    .on_conflict(OnConflict::column(operator::Column::Email).do_nothing().to_owned())
    .exec_without_returning(&tx)
    .await?;
    if inserted == 1 {
        tx.commit().await?;
        return Ok(id);
    }
    if !new.replace {
        return Err(OperatorError::Exists);
    }
    let present = find(&tx, &email).await?.ok_or(OperatorError::Unknown)?;
    operator::Entity::update(operator::ActiveModel {
        id: Set(present.id.clone()),
        name: Set(new.name.trim().into()),
        password_hash: Set(hash),
        ..Default::default()
    })
    .exec(&tx)
    .await?;
    // After the change, which a login that begins waits for, or is waited for.
    end_logins(&tx, &present.id).await?;
    second_factor::end_challenges(&tx, &present.id).await?;
    tx.commit().await?;
    Ok(present.id)
}

/// Removes an operator and ends their logins; says who that was.
///
/// # Errors
/// [`OperatorError`].
pub async fn remove(app: &App, email: String) -> Result<OperatorId, OperatorError> {
    let email = address(email)?;
    let tx = app.db.write().await?;
    let present = find(&tx, &email).await?.ok_or(OperatorError::Unknown)?;
    hold(&tx, &present.id, LockType::Update).await?;
    end_logins(&tx, &present.id).await?;
    second_factor::disable(&tx, &present.id).await?;
    operator::Entity::delete_by_id(present.id.clone()).exec(&tx).await?;
    tx.commit().await?;
    Ok(present.id)
}

/// Switches an operator's second factor off and ends their logins: they have lost their device and their recovery codes. Says whether
/// it was on.
///
/// # Errors
/// [`OperatorError`].
pub async fn reset_second_factor(app: &App, email: String) -> Result<bool, OperatorError> {
    let email = address(email)?;
    let tx = app.db.write().await?;
    let present = find(&tx, &email).await?.ok_or(OperatorError::Unknown)?;
    hold(&tx, &present.id, LockType::Update).await?;
    let was_on = second_factor::is_on(&tx, &present.id).await?;
    end_logins(&tx, &present.id).await?;
    second_factor::disable(&tx, &present.id).await?;
    tx.commit().await?;
    audit::about(present.id.as_str());
    Ok(was_on)
}

async fn find<C: ConnectionTrait>(connection: &C, email: &EmailAddress) -> Result<Option<operator::Model>, DbErr> {
    operator::Entity::find().filter(operator::Column::Email.eq(email.as_str())).one(connection).await
}

/// An operator, who stays as they are until the transaction ends.
async fn hold(tx: &DatabaseTransaction, id: &OperatorId, lock: LockType) -> Result<Option<operator::Model>, DbErr> {
    let mut query = operator::Entity::find_by_id(id.clone());
    if tx.get_database_backend() == DbBackend::Postgres {
        query = query.lock(lock);
    }
    query.one(tx).await
}

async fn end_logins<C: ConnectionTrait>(connection: &C, operator: &OperatorId) -> Result<(), DbErr> {
    login::Entity::delete_many().filter(login::Column::OperatorId.eq(operator.clone())).exec(connection).await.map(drop)
}

/// Where a right password leads.
pub(super) enum LoggedIn {
    /// In.
    Token(OperatorToken),
    /// To the second step.
    CodeRequired(SecondFactorRequired),
}

/// Compares the password, and begins a login or asks for the second factor.
pub(super) async fn log_in(app: &App, caller: Caller, wanted: OperatorLogIn) -> ApiResult<LoggedIn> {
    let OperatorLogIn { email, password } = wanted;
    let account = format!("operator {}", email.as_str());
    auth::admit(app, Attempt::LogIn, caller.address(), Some(&account)).await?;
    let found = find(app.db.read(), &email).await?;
    let stored = found.as_ref().map(|operator| operator.password_hash.clone());
    let fits = app.keyring.verify_password(password.into_secret(), stored).await?;
    let Some(operator) = found.filter(|_| fits) else { return Err(Kind::InvalidCredentials.into()) };
    audit::by(ActorType::Operator, operator.id.as_str());
    auth::forgive(app, Attempt::LogIn, &account).await?;
    let tx = app.db.write().await?;
    // As with people: the password may have been changed while it was compared.
    let present = hold(&tx, &operator.id, LockType::Share).await?;
    if present.is_none_or(|present| present.password_hash != operator.password_hash) {
        return Err(Kind::InvalidCredentials.into());
    }
    let outcome = if second_factor::is_on(&tx, &operator.id).await? {
        LoggedIn::CodeRequired(second_factor::challenge(app, &tx, &operator.id).await?)
    } else {
        LoggedIn::Token(begin(app, &tx, operator).await?)
    };
    tx.commit().await?;
    Ok(outcome)
}

/// The second step: a code of the device, or a recovery code.
pub(super) async fn log_in_with_code(app: &App, caller: Caller, wanted: OperatorLogInCode) -> ApiResult<OperatorToken> {
    let OperatorLogInCode { challenge_token, code } = wanted;
    let challenge = challenge_token.into_secret();
    let over = || Kind::Unauthenticated.because("this challenge is over: log in again");
    let challenged = second_factor::challenged::<OperatorId>(app, &challenge).await?;
    let who = challenged.as_ref().map(OperatorId::as_str);
    auth::admit(app, Attempt::SecondFactor, caller.address(), who).await?;
    let Some(id) = challenged else { return Err(over().into()) };
    let tx = app.db.write().await?;
    hold(&tx, &id, LockType::Share).await?;
    if !second_factor::count_try::<OperatorId>(app, &tx, &challenge).await? {
        tx.commit().await?;
        return Err(over().into());
    }
    if !second_factor::accepts(app, &tx, &id, &code.into_secret()).await? {
        tx.commit().await?;
        return Err(Kind::WrongCode.into());
    }
    second_factor::end_challenges(&tx, &id).await?;
    let operator = operator::Entity::find_by_id(id).one(&tx).await?.ok_or_else(over)?;
    audit::by(ActorType::Operator, operator.id.as_str());
    let token = begin(app, &tx, operator).await?;
    tx.commit().await?;
    auth::forgive(app, Attempt::SecondFactor, token.operator.id.as_str()).await?;
    Ok(token)
}

async fn begin(app: &App, tx: &DatabaseTransaction, operator: operator::Model) -> ApiResult<OperatorToken> {
    let (token, now) = (auth::opaque_token(PREFIX), Timestamp::now());
    login::Entity::insert(login::ActiveModel {
        token_hash: Set(app.keyring.operator_hash().of(token.expose_secret())),
        operator_id: Set(operator.id.clone()),
        created_at: Set(now),
        expires_at: Set(now.plus(LOGIN_TTL)),
    })
    .exec_without_returning(tx)
    .await?;
    tracing::info!(operator = %operator.id, "an operator logged in");
    Ok(OperatorToken {
        access_token: token,
        token_type: "Bearer",
        expires_in: LOGIN_TTL.as_secs(),
        operator: operator.into(),
    })
}

/// Makes sure that an operator who is logged in knows their password.
pub(super) async fn confirm_password(
    app: &App,
    caller: Caller,
    operator: &operator::Model,
    password: SecretString,
) -> ApiResult<()> {
    let account = operator.id.as_str();
    auth::admit(app, Attempt::Confirm, caller.address(), Some(account)).await?;
    if !app.keyring.verify_password(password, Some(operator.password_hash.clone())).await? {
        return Err(Kind::WrongPassword.into());
    }
    auth::forgive(app, Attempt::Confirm, account).await?;
    Ok(())
}

/// The token of a request, if it looks like an operator's.
fn token(parts: &Parts) -> ApiResult<&str> {
    let token = bearer(parts).map_err(|_| unauthenticated())?;
    if parts.headers.contains_key("x-api-key") || !token.starts_with(PREFIX) {
        return Err(unauthenticated().into());
    }
    Ok(token)
}

fn unauthenticated() -> Refusal {
    Kind::Unauthenticated.into()
}

impl FromRequestParts<App> for operator::Model {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let hash = app.keyring.operator_hash().of(token(parts)?);
        let login = login::Entity::find_by_id(hash)
            .filter(login::Column::ExpiresAt.gt(Timestamp::now()))
            .one(app.db.read())
            .await?
            .ok_or_else(unauthenticated)?;
        Ok(operator::Entity::find_by_id(login.operator_id).one(app.db.read()).await?.ok_or_else(unauthenticated)?)
    }
}

/// Ends the login of a request.
pub(super) async fn log_out(app: &App, parts: &Parts) -> ApiResult<()> {
    let hash = app.keyring.operator_hash().of(token(parts)?);
    login::Entity::delete_by_id(hash).exec(app.db.autocommit()).await?;
    Ok(())
}

/// Forgets logins and challenges that ended by themselves.
///
/// # Errors
/// As the driver.
pub async fn prune(app: &App) -> Result<(), DbErr> {
    let mut done = Vec::new();
    for table in ["operator_logins", "operator_login_challenges"] {
        let statement = format!(
            "DELETE FROM {table} WHERE token_hash IN (SELECT token_hash FROM {table} WHERE expires_at <= $1 LIMIT $2)"
        );
        done.push(sweep::before(app, PRUNE_BATCH, &statement, Timestamp::now()).await);
    }
    done.into_iter().try_for_each(|one| one.map(drop))
}
