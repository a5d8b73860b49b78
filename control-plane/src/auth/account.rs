//! One's own account: name, password, and a password that was forgotten.

use sea_orm::{ActiveModelTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, Set};
use secrecy::SecretString;
use shared::{
    ids::{LoginId, UserId},
    time::Timestamp,
};

use super::{
    Role, TenantScope,
    caller::Caller,
    dto::{ChangePassword, ForgotPassword, Me, ResetPassword},
    email_tokens::{self, Purpose},
    entity::user,
    letters::{self, AboutAddress, AboutUser},
    logins, second_factor,
    throttle::{self, Attempt},
};
use crate::{
    audit::{self, ActorType},
    error::{ApiError, ApiResult, Kind},
    jobs::JobKind,
    keys, mail,
    state::App,
    tenants,
};

async fn find<C: ConnectionTrait>(connection: &C, user: &UserId) -> ApiResult<user::Model> {
    user::Entity::find_by_id(user.clone())
        .one(connection)
        .await?
        .ok_or(ApiError::Defect("a person with a login is missing"))
}

/// The person, and the tenant that they are logged in to.
pub(super) async fn me<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    user: &UserId,
    role: Role,
) -> ApiResult<Me> {
    let user = find(connection, user).await?;
    let tenant = tenants::service::find(connection, scope).await?;
    Ok(Me {
        second_factor: second_factor::is_on(connection, &user.id).await?,
        id: user.id,
        email: user.email,
        email_verified: user.email_verified_at.is_some(),
        name: user.name,
        role,
        permissions: role.permissions(),
        tenant: tenant.into(),
        created_at: user.created_at,
    })
}

/// The address that a person's authenticator shows.
pub(super) async fn email_of<C: ConnectionTrait>(connection: &C, user: &UserId) -> ApiResult<String> {
    Ok(find(connection, user).await?.email)
}

/// Gives a person another name.
pub(super) async fn rename(tx: &DatabaseTransaction, user: &UserId, name: &str) -> ApiResult<()> {
    user::ActiveModel { id: Set(user.clone()), name: Set(name.to_owned()), ..Default::default() }.update(tx).await?;
    Ok(())
}

/// Asks somebody who is logged in for their password once more: a token that was stolen is not enough for what follows.
///
/// # Errors
/// 403 `wrong-password`; 429 after too many tries.
pub(crate) async fn confirm_password(
    app: &App,
    caller: Caller,
    user: &UserId,
    password: SecretString,
) -> ApiResult<()> {
    throttle::admit(app, Attempt::Confirm, caller.address, Some(user.as_str())).await?;
    let stored = find(app.db.read(), user).await?.password_hash;
    if !app.keyring.passwords.verify(password, Some(stored)).await? {
        return Err(Kind::WrongPassword.into());
    }
    throttle::forgive(app, Attempt::Confirm, user.as_str()).await?;
    Ok(())
}

/// Sets another password, and ends all logins but this one.
pub(super) async fn change_password(
    app: &App,
    caller: Caller,
    user: &UserId,
    login: &LoginId,
    wanted: ChangePassword,
) -> ApiResult<()> {
    confirm_password(app, caller, user, wanted.current_password.into_secret()).await?;
    let hash = app.keyring.passwords.hash(wanted.new_password.into_secret()).await?;
    let tx = app.db.write().await?;
    user::ActiveModel { id: Set(user.clone()), password_hash: Set(hash), ..Default::default() }.update(&tx).await?;
    after_change(app, &tx, user, Some(login)).await?;
    tx.commit().await?;
    app.bell.ring(JobKind::SendMail);
    Ok(())
}

async fn after_change(app: &App, tx: &DatabaseTransaction, user: &UserId, login: Option<&LoginId>) -> ApiResult<()> {
    logins::revoke_all(tx, user, login).await?;
    second_factor::end_challenges(tx, user).await?;
    email_tokens::forget(tx, Purpose::ResetPassword, user).await?;
    mail::ask(app, tx, letters::PASSWORD_CHANGED, &AboutUser { user_id: user.clone() }).await?;
    Ok(())
}

/// Asks for a mail with which a password can be set, if the address has an account. Nothing is looked up here, so nothing
/// can be learned.
pub(super) async fn forgot_password(app: &App, caller: Caller, wanted: ForgotPassword) -> ApiResult<()> {
    let email = wanted.email.as_str();
    throttle::admit(app, Attempt::MailRequest, caller.address, Some(email)).await?;
    let tx = app.db.write().await?;
    mail::ask(app, &tx, letters::RESET_PASSWORD, &AboutAddress { email: email.to_owned() }).await?;
    tx.commit().await?;
    app.bell.ring(JobKind::SendMail);
    Ok(())
}

/// Sets another password with the token of a mail, and ends all logins. The second factor stays on, unless the address was never
/// verified before.
pub(super) async fn reset_password(app: &App, caller: Caller, wanted: ResetPassword) -> ApiResult<()> {
    throttle::admit(app, Attempt::MailToken, caller.address, None).await?;
    let token = wanted.token.into_secret();
    if !email_tokens::works(app, Purpose::ResetPassword, &token).await? {
        return Err(Kind::MailTokenRefused.into());
    }
    let hash = app.keyring.passwords.hash(wanted.password.into_secret()).await?;
    let tx = app.db.write().await?;
    let found = email_tokens::take(app, &tx, Purpose::ResetPassword, &token).await?.ok_or(Kind::MailTokenRefused)?;
    let user_id = found.user.ok_or(ApiError::Defect("a token in a mail names nobody"))?;
    audit::by(ActorType::User, user_id.as_str());
    let user = find(&tx, &user_id).await?;
    // Whoever reads the mail has the address.
    let verified_at = user.email_verified_at.or(Some(Timestamp::now()));
    user::ActiveModel {
        id: Set(user_id.clone()),
        password_hash: Set(hash),
        email_verified_at: Set(verified_at),
        ..Default::default()
    }
    .update(&tx)
    .await?;
    let mut kept = Vec::new();
    if user.email_verified_at.is_none() {
        // Until now nobody knew whose the address is, and so not whose device that is, nor who holds the keys.
        second_factor::disable(&tx, &user_id).await?;
        kept = tenants::keep_to_owner(&tx, &user_id).await?;
    }
    after_change(app, &tx, &user_id, None).await?;
    tx.commit().await?;
    for tenant in &kept {
        keys::forget(app, tenant).await;
    }
    throttle::forgive(app, Attempt::LogIn, &user.email).await?;
    app.bell.ring(JobKind::SendMail);
    Ok(())
}
