//! The mails that identity sends, written when they are sent.

use async_trait::async_trait;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shared::ids::{MailId, UserId};

use super::{
    email_tokens::{self, Purpose},
    entity::user,
};
use crate::{
    mail::{Action, Letter, WriteError, Writer},
    state::App,
    tenants,
};

/// Somebody wants an account: [`PendingSignUp`].
pub(super) const SIGN_UP: &str = "sign_up";
/// An account was made; is the address the person's own? [`AboutUser`].
pub(super) const VERIFY_ADDRESS: &str = "verify_address";
/// Somebody says that they forgot a password: [`AboutAddress`].
pub(super) const RESET_PASSWORD: &str = "reset_password";
/// A password was changed: [`AboutUser`].
pub(super) const PASSWORD_CHANGED: &str = "password_changed";
/// A second factor was switched on or off: [`AboutUser`].
pub(super) const SECOND_FACTOR_ON: &str = "second_factor_on";
/// See [`SECOND_FACTOR_ON`].
pub(super) const SECOND_FACTOR_OFF: &str = "second_factor_off";

/// An account that is made once its address is shown to be the person's own.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct PendingSignUp {
    pub(super) email: String,
    pub(super) name: String,
    pub(super) tenant_name: String,
    pub(super) password_hash: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct AboutUser {
    pub(super) user_id: UserId,
}

#[derive(Serialize, Deserialize)]
pub(super) struct AboutAddress {
    pub(super) email: String,
}

/// Writes them.
#[derive(Debug, Clone, Copy)]
pub struct Letters;

#[async_trait]
impl Writer for Letters {
    fn kinds(&self) -> &'static [&'static str] {
        &[SIGN_UP, VERIFY_ADDRESS, RESET_PASSWORD, PASSWORD_CHANGED, SECOND_FACTOR_ON, SECOND_FACTOR_OFF]
    }

    async fn write(&self, app: &App, mail: &MailId, kind: &str, about: &[u8]) -> Result<Option<Letter>, WriteError> {
        match kind {
            SIGN_UP => sign_up(app, mail, about).await,
            VERIFY_ADDRESS => verify_address(app, mail, &read(about)?).await,
            RESET_PASSWORD => reset_password(app, mail, &read(about)?).await,
            other => notice(app, other, &read(about)?).await,
        }
    }
}

fn read<T: DeserializeOwned>(about: &[u8]) -> Result<T, WriteError> {
    serde_json::from_slice(about).map_err(|_| WriteError::Defect("what a mail is about can't be read"))
}

async fn by_address(app: &App, email: &str) -> Result<Option<user::Model>, WriteError> {
    Ok(user::Entity::find().filter(user::Column::Email.eq(email)).one(app.db.read()).await?)
}

async fn sign_up(app: &App, mail: &MailId, about: &[u8]) -> Result<Option<Letter>, WriteError> {
    let public = &app.config.mail.public_url;
    let pending: PendingSignUp = read(about)?;
    // Whoever belongs to no account any more may make one of their own.
    if let Some(user) = by_address(app, &pending.email).await?
        && tenants::belongs_to_any(app.db.read(), &user.id).await?
    {
        return Ok(Some(Letter {
            to: user.email,
            subject: "You have an account already",
            paragraphs: vec![
                format!("Hello {},", user.name),
                "somebody, probably you, wanted to sign up with this e-mail address. It has an account already, so \
                 nothing was changed. If you forgot your password, you can set another one."
                    .into(),
            ],
            action: Some(Action::page("Set another password", public, "forgot-password")),
            closing: "If it wasn't you, there is nothing to do: nobody learned that you have an account.",
        }));
    }
    let token = email_tokens::make(app, mail, Purpose::SignUp, None, Some(about)).await?;
    Ok(Some(Letter {
        to: pending.email,
        subject: "Confirm your e-mail address",
        paragraphs: vec![
            format!("Hello {},", pending.name),
            format!("to make the account “{}”, confirm that this address is yours.", pending.tenant_name),
            format!(
                "The link works for a day. If you use the API without the console, this is its token: {}",
                token.expose_secret()
            ),
        ],
        action: Some(Action::with_token("Confirm the address", public, "verify-email", token.expose_secret())),
        closing: "If you didn't sign up, don't open the link: without it no account is made.",
    }))
}

async fn verify_address(app: &App, mail: &MailId, about: &AboutUser) -> Result<Option<Letter>, WriteError> {
    let user = user::Entity::find_by_id(about.user_id.clone()).one(app.db.read()).await?;
    let Some(user) = user.filter(|user| user.email_verified_at.is_none()) else { return Ok(None) };
    let token = email_tokens::make(app, mail, Purpose::VerifyAddress, Some(&user.id), None).await?;
    let public = &app.config.mail.public_url;
    Ok(Some(Letter {
        to: user.email,
        subject: "Confirm your e-mail address",
        paragraphs: vec![
            format!("Hello {},", user.name),
            "please confirm that this address is yours.".into(),
            format!(
                "The link works for a day. If you use the API without the console, this is its token: {}",
                token.expose_secret()
            ),
        ],
        action: Some(Action::with_token("Confirm the address", public, "verify-email", token.expose_secret())),
        closing: "If you didn't sign up, don't open the link.",
    }))
}

async fn reset_password(app: &App, mail: &MailId, about: &AboutAddress) -> Result<Option<Letter>, WriteError> {
    let Some(user) = by_address(app, &about.email).await? else { return Ok(None) };
    let token = email_tokens::make(app, mail, Purpose::ResetPassword, Some(&user.id), None).await?;
    let public = &app.config.mail.public_url;
    Ok(Some(Letter {
        to: user.email,
        subject: "Set another password",
        paragraphs: vec![
            format!("Hello {},", user.name),
            "somebody, probably you, asked to set another password for your account.".into(),
            format!(
                "The link works for an hour, once. If you use the API without the console, this is its token: {}",
                token.expose_secret()
            ),
        ],
        action: Some(Action::with_token("Set another password", public, "reset-password", token.expose_secret())),
        closing: "If it wasn't you, there is nothing to do: your password stays as it is.",
    }))
}

async fn notice(app: &App, kind: &str, about: &AboutUser) -> Result<Option<Letter>, WriteError> {
    let Some(user) = user::Entity::find_by_id(about.user_id.clone()).one(app.db.read()).await? else {
        return Ok(None);
    };
    let (subject, what) = match kind {
        PASSWORD_CHANGED => ("Your password was changed", "your password was changed, and other logins were ended."),
        SECOND_FACTOR_ON => ("Two-step login is on", "from now on logging in asks for a code of your device."),
        SECOND_FACTOR_OFF => ("Two-step login is off", "logging in doesn't ask for a code of your device any more."),
        _ => return Err(WriteError::Defect("nobody writes this kind of mail")),
    };
    Ok(Some(Letter {
        to: user.email,
        subject,
        paragraphs: vec![format!("Hello {},", user.name), what.into()],
        action: None,
        closing: "If it wasn't you, set another password at once, and tell whoever runs your installation.",
    }))
}
