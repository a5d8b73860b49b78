//! People, as other domains may know them: who somebody is, and whether an address has an account.

use std::collections::HashMap;

use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, FromQueryResult, QueryFilter,
    Set, Statement,
    sea_query::{Expr, OnConflict},
};
use secrecy::SecretString;
use shared::{
    ids::{TenantId, UserId},
    time::Timestamp,
};

use super::{
    email_tokens::{self, Purpose},
    entity::{login, user},
    letters::PendingSignUp,
    logins, second_factor,
};
use crate::{error::ApiResult, state::App};

/// What colleagues see of a person.
#[derive(FromQueryResult)]
pub(crate) struct Profile {
    pub(crate) id: UserId,
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) second_factor: bool,
}

/// The profiles of some people, by id: a page of them, so a bounded number.
pub(crate) async fn profiles<C: ConnectionTrait>(
    connection: &C,
    ids: &[UserId],
) -> ApiResult<HashMap<UserId, Profile>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let marks: Vec<_> = (1..=ids.len()).map(|number| format!("${number}")).collect();
    let query = format!(
        "SELECT id, email, name, EXISTS (SELECT 1 FROM second_factors WHERE second_factors.user_id = users.id \
         AND confirmed_at IS NOT NULL) AS second_factor FROM users WHERE id IN ({})",
        marks.join(", ")
    );
    let values = ids.iter().map(|id| id.clone().into());
    let statement = Statement::from_sql_and_values(connection.get_database_backend(), query, values);
    let found = Profile::find_by_statement(statement).all(connection).await?;
    Ok(found.into_iter().map(|profile| (profile.id.clone(), profile)).collect())
}

/// An account that an address has.
pub(crate) struct Known {
    pub(crate) id: UserId,
    /// Whether the person has shown that the address is their own.
    pub(crate) verified: bool,
}

/// The account of an address, in its stored form.
pub(crate) async fn by_email<C: ConnectionTrait>(connection: &C, email: &str) -> ApiResult<Option<Known>> {
    let user = user::Entity::find().filter(user::Column::Email.eq(email)).one(connection).await?;
    Ok(user.map(|user| Known { id: user.id, verified: user.email_verified_at.is_some() }))
}

/// The hash of a new password. Before a transaction, which mustn't hold SQLite's writer for as long as it takes.
pub(crate) async fn hash(app: &App, password: SecretString) -> ApiResult<String> {
    Ok(app.keyring.passwords.hash(password).await?)
}

/// Makes a person; nothing if the address is taken.
pub(super) async fn make(
    tx: &DatabaseTransaction,
    wanted: &PendingSignUp,
    verified_at: Option<Timestamp>,
    now: Timestamp,
) -> ApiResult<Option<UserId>> {
    let id = UserId::new();
    let inserted = user::Entity::insert(user::ActiveModel {
        id: Set(id.clone()),
        email: Set(wanted.email.clone()),
        name: Set(wanted.name.clone()),
        password_hash: Set(wanted.password_hash.clone()),
        created_at: Set(now),
        email_verified_at: Set(verified_at),
    })
    .on_conflict(OnConflict::column(user::Column::Email).do_nothing().to_owned())
    .exec_without_returning(tx)
    .await?;
    Ok((inserted > 0).then_some(id))
}

/// Makes the person who was invited by a mail to this address, and so has it.
pub(crate) async fn make_invited(
    tx: &DatabaseTransaction,
    email: &str,
    name: String,
    password_hash: String,
) -> ApiResult<Option<UserId>> {
    let now = Timestamp::now();
    let wanted = PendingSignUp { email: email.to_owned(), name, tenant_name: String::new(), password_hash };
    make(tx, &wanted, Some(now), now).await
}

/// What somebody who belongs to no tenant chose when they signed up anew, and whose address is known to be theirs. Two-step login stays
/// on, unless nobody had verified the address before.
pub(super) async fn begin_anew(
    tx: &DatabaseTransaction,
    known: &user::Model,
    wanted: &PendingSignUp,
    now: Timestamp,
) -> ApiResult<()> {
    user::ActiveModel {
        id: Set(known.id.clone()),
        name: Set(wanted.name.clone()),
        password_hash: Set(wanted.password_hash.clone()),
        email_verified_at: Set(known.email_verified_at.or(Some(now))),
        ..Default::default()
    }
    .update(tx)
    .await?;
    logins::revoke_all(tx, &known.id, None).await?;
    if known.email_verified_at.is_none() {
        second_factor::disable(tx, &known.id).await?;
    }
    second_factor::end_challenges(tx, &known.id).await?;
    for purpose in [Purpose::ResetPassword, Purpose::VerifyAddress] {
        email_tokens::forget(tx, purpose, &known.id).await?;
    }
    Ok(())
}

/// Takes the address from an account that never showed that it is its own, for the person who now does. Whoever made the account
/// may be somebody else: it keeps what it has, and what it made keeps its owner, but nobody can log in to it any more. The
/// person gets an account of their own, so that nothing of the other's is theirs: no tenant, no colleague, no API key.
pub(crate) async fn take_address(app: &App, tx: &DatabaseTransaction, id: &UserId) -> ApiResult<()> {
    user::ActiveModel {
        id: Set(id.clone()),
        email: Set(format!("{id}@unclaimed.invalid")),
        password_hash: Set(app.keyring.passwords.of_nobody().to_owned()),
        ..Default::default()
    }
    .update(tx)
    .await?;
    logins::revoke_all(tx, id, None).await?;
    second_factor::disable(tx, id).await?;
    second_factor::end_challenges(tx, id).await?;
    for purpose in [Purpose::ResetPassword, Purpose::VerifyAddress] {
        email_tokens::forget(tx, purpose, id).await?;
    }
    Ok(())
}

/// Ends a person's logins to one tenant.
pub(crate) async fn end_logins(tx: &DatabaseTransaction, id: &UserId, tenant: &TenantId) -> ApiResult<()> {
    login::Entity::update_many()
        .col_expr(login::Column::RevokedAt, Expr::value(Timestamp::now()))
        .filter(login::Column::UserId.eq(id.clone()))
        .filter(login::Column::TenantId.eq(tenant.clone()))
        .filter(login::Column::RevokedAt.is_null())
        .exec(tx)
        .await?;
    Ok(())
}

/// Forgets a person who belongs to no tenant any more.
pub(crate) async fn forget(tx: &DatabaseTransaction, id: &UserId) -> ApiResult<()> {
    for statement in [
        "DELETE FROM refresh_tokens WHERE login_id IN (SELECT id FROM logins WHERE user_id = $1)",
        "DELETE FROM logins WHERE user_id = $1",
        "DELETE FROM recovery_codes WHERE user_id = $1",
        "DELETE FROM login_challenges WHERE user_id = $1",
        "DELETE FROM second_factors WHERE user_id = $1",
        "DELETE FROM email_tokens WHERE user_id = $1",
        "DELETE FROM users WHERE id = $1",
    ] {
        let engine = tx.get_database_backend();
        tx.execute_raw(Statement::from_sql_and_values(engine, statement, [id.clone().into()])).await?;
    }
    Ok(())
}
