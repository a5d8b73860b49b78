//! Tokens that lie in mails: 256 bits that follow from the mail's id and the master key, used once, stored as a keyed hash.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbErr, QueryResult, Statement};
use secrecy::{ExposeSecret, SecretString};
use shared::{
    ids::{MailId, UserId},
    seal::Place,
    time::Timestamp,
};

use super::tokens;
use crate::{
    error::{ApiError, ApiResult},
    state::App,
    sweep,
};

/// How many expired tokens one sweep forgets.
const PRUNE_BATCH: i64 = 1000;

/// What a token lets its holder do. A token of one purpose is never accepted for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Make the account that was asked for.
    SignUp,
    /// Show that an address is the person's own.
    VerifyAddress,
    /// Set another password.
    ResetPassword,
}

impl Purpose {
    const fn as_str(self) -> &'static str {
        match self {
            Self::SignUp => "sign_up",
            Self::VerifyAddress => "verify_address",
            Self::ResetPassword => "reset_password",
        }
    }

    /// How long a token lives.
    pub(super) const fn lifetime(self) -> Duration {
        match self {
            Self::SignUp | Self::VerifyAddress => Duration::from_secs(24 * 3600),
            Self::ResetPassword => Duration::from_secs(3600),
        }
    }
}

/// What a token was found to be about.
pub(super) struct Found {
    /// The person, if there is one yet.
    pub(super) user: Option<UserId>,
    /// What was asked for, if it had to be kept.
    pub(super) data: Option<Vec<u8>>,
}

/// Makes the token of a mail, or makes it work again for as long as at first: an earlier try to send the mail may have arrived.
pub(super) async fn make(
    app: &App,
    mail: &MailId,
    purpose: Purpose,
    user: Option<&UserId>,
    data: Option<&[u8]>,
) -> ApiResult<SecretString> {
    let token = app.keyring.mail_token("sbm_", mail.as_str());
    let hash = app.keyring.mail_token_hash.of(token.expose_secret());
    let row = tokens::hex(&hash);
    let sealed = data.map(|data| app.master_key.seal(&place(purpose, &row), data)).transpose()?;
    let engine = app.db.engine();
    let tx = app.db.write().await?;
    let earlier = "DELETE FROM email_tokens WHERE mail_id = $1";
    tx.execute_raw(Statement::from_sql_and_values(engine, earlier, [mail.clone().into()])).await?;
    tx.execute_raw(Statement::from_sql_and_values(
        engine,
        "INSERT INTO email_tokens (token_hash, purpose, mail_id, user_id, sealed_data, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6)",
        [
            hash.into(),
            purpose.as_str().into(),
            mail.clone().into(),
            user.map(|user| user.as_str().to_owned()).into(),
            sealed.into(),
            Timestamp::now().plus(purpose.lifetime()).into(),
        ],
    ))
    .await?;
    tx.commit().await?;
    Ok(token)
}

/// Whether a token works now, without using it.
pub(super) async fn works(app: &App, purpose: Purpose, token: &SecretString) -> ApiResult<bool> {
    let statement = Statement::from_sql_and_values(
        app.db.engine(),
        "SELECT user_id, sealed_data FROM email_tokens WHERE token_hash = $1 AND purpose = $2 AND expires_at > $3",
        [
            app.keyring.mail_token_hash.of(token.expose_secret()).into(),
            purpose.as_str().into(),
            Timestamp::now().into(),
        ],
    );
    Ok(app.db.read().query_one_raw(statement).await?.is_some())
}

/// Uses a token: of two who try at once, one finds it.
pub(super) async fn take<C: ConnectionTrait>(
    app: &App,
    connection: &C,
    purpose: Purpose,
    token: &SecretString,
) -> ApiResult<Option<Found>> {
    let hash = app.keyring.mail_token_hash.of(token.expose_secret());
    let row_name = tokens::hex(&hash);
    let statement = Statement::from_sql_and_values(
        connection.get_database_backend(),
        "DELETE FROM email_tokens WHERE token_hash = $1 AND purpose = $2 AND expires_at > $3 \
         RETURNING user_id, sealed_data",
        [hash.into(), purpose.as_str().into(), Timestamp::now().into()],
    );
    let Some(row) = connection.query_one_raw(statement).await? else { return Ok(None) };
    let (user, sealed) = columns(&row)?;
    let data = sealed.map(|sealed| app.master_key.open(&place(purpose, &row_name), &sealed)).transpose()?;
    let user =
        user.map(|user| user.parse().map_err(|_| ApiError::Defect("a token in a mail names no person"))).transpose()?;
    Ok(Some(Found { user, data }))
}

fn columns(row: &QueryResult) -> Result<(Option<String>, Option<Vec<u8>>), DbErr> {
    Ok((row.try_get("", "user_id")?, row.try_get("", "sealed_data")?))
}

fn place(purpose: Purpose, row: &str) -> Place<'_> {
    Place { owner: purpose.as_str(), table: "email_tokens", row }
}

/// Forgets a person's tokens of one purpose.
pub(super) async fn forget<C: ConnectionTrait>(connection: &C, purpose: Purpose, user: &UserId) -> Result<(), DbErr> {
    connection
        .execute_raw(Statement::from_sql_and_values(
            connection.get_database_backend(),
            "DELETE FROM email_tokens WHERE user_id = $1 AND purpose = $2",
            [user.clone().into(), purpose.as_str().into()],
        ))
        .await
        .map(drop)
}

/// Forgets tokens that are past their time.
pub(super) async fn prune(app: &App) -> Result<u64, DbErr> {
    let statement = "DELETE FROM email_tokens WHERE token_hash IN \
                     (SELECT token_hash FROM email_tokens WHERE expires_at <= $1 LIMIT $2)";
    sweep::before(app, PRUNE_BATCH, statement, Timestamp::now()).await
}
