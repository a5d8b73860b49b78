//! Signing up, and showing that an e-mail address is one's own.
//!
//! With `EMAIL_VERIFICATION=required` a sign-up does the same work and answers the same for every address: it hashes the
//! password and asks for a mail. Whether the address has an account is looked up when the mail is written, and only the mail
//! says so. The account is made when its link is opened.

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, QueryFilter, QuerySelect,
    sea_query::Expr,
};
use secrecy::SecretString;
use shared::{ids::UserId, time::Timestamp};

use super::{
    caller::Caller,
    dto::{SignUp, Tokens},
    email_tokens::{self, Purpose},
    entity::user,
    letters::{self, AboutUser, PendingSignUp},
    logins, people,
    throttle::{self, Attempt},
};
use crate::{
    audit::{self, ActorType},
    error::{ApiError, ApiResult, Kind},
    jobs::JobKind,
    mail,
    state::App,
    tenants::{self, Tenant},
};

/// Makes a tenant with its owner, and logs the owner in; or, where addresses are verified first, asks for a mail and gives
/// nothing.
pub(super) async fn sign_up(app: &App, caller: Caller, wanted: SignUp) -> ApiResult<Option<Tokens>> {
    let SignUp { email, password, name, tenant_name } = wanted;
    throttle::admit(app, Attempt::SignUp, caller.address, Some(email.as_str())).await?;
    // Before the transaction, which mustn't hold SQLite's writer for as long as a hash takes.
    let password_hash = app.keyring.passwords.hash(password.into_secret()).await?;
    let pending = PendingSignUp { email: email.as_str().into(), name, tenant_name, password_hash };
    let tx = app.db.write().await?;
    if app.config.auth.verify_email_first {
        mail::ask(app, &tx, letters::SIGN_UP, &pending).await?;
        tx.commit().await?;
        app.bell.ring(JobKind::SendMail);
        return Ok(None);
    }
    let now = Timestamp::now();
    let Some((user_id, tenant)) = make(app, &tx, pending, None, now).await? else {
        tx.rollback().await?;
        return Err(Kind::EmailTaken.into());
    };
    mail::ask(app, &tx, letters::VERIFY_ADDRESS, &AboutUser { user_id: user_id.clone() }).await?;
    let tokens = logins::start(app, &tx, caller, &user_id, &tenant.id, now).await?;
    tx.commit().await?;
    app.bell.ring(JobKind::SendMail);
    tracing::info!(tenant = %tenant.id, user = %user_id, "a tenant signed up");
    Ok(Some(tokens))
}

/// The person and their tenant; nothing if the address is taken.
async fn make(
    app: &App,
    tx: &DatabaseTransaction,
    wanted: PendingSignUp,
    verified_at: Option<Timestamp>,
    now: Timestamp,
) -> ApiResult<Option<(UserId, Tenant)>> {
    let Some(user_id) = people::make(tx, &wanted, verified_at, now).await? else { return Ok(None) };
    let tenant = tenants::service::create(app, tx, &wanted.tenant_name, &user_id, now).await?;
    audit::of(&tenant.id);
    audit::by(ActorType::User, user_id.as_str());
    audit::about(tenant.id.as_str());
    Ok(Some((user_id, tenant)))
}

/// A tenant for somebody who has an address but belongs to no tenant: they were removed, or left. The mail has shown that the address is
/// theirs, so the password is from now on the one that they chose now, as after a reset. Nothing for anybody else.
async fn make_for_known(
    app: &App,
    tx: &DatabaseTransaction,
    wanted: PendingSignUp,
    now: Timestamp,
) -> ApiResult<Option<(UserId, Tenant)>> {
    let mut query = user::Entity::find().filter(user::Column::Email.eq(wanted.email.as_str()));
    if tx.get_database_backend() == DbBackend::Postgres {
        // Of two links at once the second finds them with an account.
        query = query.lock_exclusive();
    }
    let Some(known) = query.one(tx).await? else { return Ok(None) };
    if tenants::belongs_to_any(tx, &known.id).await? {
        return Ok(None);
    }
    people::begin_anew(tx, &known, &wanted, now).await?;
    let tenant = tenants::service::create(app, tx, &wanted.tenant_name, &known.id, now).await?;
    audit::of(&tenant.id);
    audit::by(ActorType::User, known.id.as_str());
    audit::about(tenant.id.as_str());
    Ok(Some((known.id, tenant)))
}

/// Makes a tenant with its owner at an operator's word, whose address counts as verified; nothing if the address is taken.
pub(crate) async fn establish(
    app: &App,
    tx: &DatabaseTransaction,
    wanted: SignUp,
) -> ApiResult<Option<(UserId, Tenant)>> {
    let SignUp { email, password, name, tenant_name } = wanted;
    let password_hash = app.keyring.passwords.hash(password.into_secret()).await?;
    let pending = PendingSignUp { email: email.as_str().into(), name, tenant_name, password_hash };
    let now = Timestamp::now();
    make(app, tx, pending, Some(now), now).await
}

/// Uses the token of a mail: makes the account that waits for it, or notes that a person's address is their own.
pub(super) async fn verify(app: &App, caller: Caller, token: &SecretString) -> ApiResult<()> {
    throttle::admit(app, Attempt::MailToken, caller.address, None).await?;
    let now = Timestamp::now();
    let tx = app.db.write().await?;
    if let Some(found) = email_tokens::take(app, &tx, Purpose::SignUp, token).await? {
        let data = found.data.ok_or(ApiError::Defect("a pending sign-up has no data"))?;
        let pending = serde_json::from_slice(&data).map_err(|_| ApiError::Defect("a pending sign-up can't be read"))?;
        let again = PendingSignUp::clone(&pending);
        let made = match make(app, &tx, pending, Some(now), now).await? {
            Some(made) => Some(made),
            // Taken: by somebody who belongs to no account any more, or the same person signed up twice and opened the other link first.
            None => make_for_known(app, &tx, again, now).await?,
        };
        tx.commit().await?;
        let (user, tenant) = made.ok_or(Kind::MailTokenRefused)?;
        tracing::info!(tenant = %tenant.id, %user, "a tenant signed up");
        return Ok(());
    }
    let found = email_tokens::take(app, &tx, Purpose::VerifyAddress, token).await?.ok_or(Kind::MailTokenRefused)?;
    let user_id = found.user.ok_or(ApiError::Defect("a token in a mail names nobody"))?;
    audit::by(ActorType::User, user_id.as_str());
    user::Entity::update_many()
        .col_expr(user::Column::EmailVerifiedAt, Expr::value(now))
        .filter(user::Column::Id.eq(user_id))
        .exec(&tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

/// Sends the mail once more that lets a person show that their address is their own.
pub(super) async fn ask_again(app: &App, caller: Caller, user_id: &UserId) -> ApiResult<()> {
    throttle::admit(app, Attempt::MailRequest, caller.address, Some(user_id.as_str())).await?;
    let tx = app.db.write().await?;
    mail::ask(app, &tx, letters::VERIFY_ADDRESS, &AboutUser { user_id: user_id.clone() }).await?;
    tx.commit().await?;
    app.bell.ring(JobKind::SendMail);
    Ok(())
}
