//! The mails about belonging to a tenant, written when they are sent.

use async_trait::async_trait;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shared::ids::{InvitationId, MailId, TenantId, UserId};

use super::{TenantStatus, invitations, ownership, service};
use crate::{
    auth::{TenantScope, people},
    mail::{Action, Letter, WriteError, Writer},
    state::App,
};

/// Somebody is invited: [`AboutInvitation`].
pub(super) const INVITATION: &str = "invitation";
/// Somebody is to become the owner: [`AboutOffer`].
pub(super) const OWNERSHIP_OFFERED: &str = "ownership_offered";

/// An account is to be deleted: [`AboutDeletion`].
pub(super) const DELETION: &str = "tenant_deletion";

#[derive(Serialize, Deserialize)]
pub(super) struct AboutInvitation {
    pub(super) invitation_id: InvitationId,
}

#[derive(Serialize, Deserialize)]
pub(super) struct AboutOffer {
    pub(super) tenant_id: TenantId,
    pub(super) to_user_id: UserId,
    pub(super) offered_by: UserId,
}

#[derive(Serialize, Deserialize)]
pub(super) struct AboutDeletion {
    pub(super) tenant_id: TenantId,
    pub(super) owner: UserId,
}

/// Writes them.
#[derive(Debug, Clone, Copy)]
pub struct Letters;

#[async_trait]
impl Writer for Letters {
    fn kinds(&self) -> &'static [&'static str] {
        &[INVITATION, OWNERSHIP_OFFERED, DELETION]
    }

    async fn write(&self, app: &App, _: &MailId, kind: &str, about: &[u8]) -> Result<Option<Letter>, WriteError> {
        match kind {
            INVITATION => invitation(app, &read(about)?).await,
            OWNERSHIP_OFFERED => ownership_offered(app, &read(about)?).await,
            DELETION => deletion(app, &read(about)?).await,
            _ => Err(WriteError::Defect("nobody writes this kind of mail")),
        }
    }
}

fn read<T: DeserializeOwned>(about: &[u8]) -> Result<T, WriteError> {
    serde_json::from_slice(about).map_err(|_| WriteError::Defect("what a mail is about can't be read"))
}

/// What somebody is called, or something that fits everybody.
async fn name_of(app: &App, user: &UserId) -> Result<String, WriteError> {
    let mut found = people::profiles(app.db.read(), std::slice::from_ref(user)).await?;
    Ok(found.remove(user).map_or_else(|| "Somebody".to_owned(), |profile| profile.name))
}

async fn invitation(app: &App, about: &AboutInvitation) -> Result<Option<Letter>, WriteError> {
    // Taken back, accepted or expired meanwhile: no mail.
    let Some((row, token)) = invitations::token(app, &about.invitation_id).await? else { return Ok(None) };
    let tenant = service::find(app.db.read(), &TenantScope::of_row(row.tenant_id)).await?;
    let inviter = name_of(app, &row.invited_by).await?;
    let public = &app.config.mail.public_url;
    Ok(Some(Letter {
        to: row.email,
        subject: "You are invited",
        paragraphs: vec![
            "Hello,".into(),
            format!("{inviter} invites you to the account “{}”, as {}.", tenant.name, row.role),
            format!(
                "The link works for a week, once. If you use the API without the console, this is its token: {}",
                token.expose_secret()
            ),
        ],
        action: Some(Action::with_token("Accept the invitation", public, "accept-invitation", token.expose_secret())),
        closing: "If you don't know who invites you, there is nothing to do.",
    }))
}

async fn ownership_offered(app: &App, about: &AboutOffer) -> Result<Option<Letter>, WriteError> {
    let scope = TenantScope::of_row(about.tenant_id.clone());
    let offer = ownership::standing(app.db.read(), &scope).await?;
    if offer.is_none_or(|offer| offer.to_user_id != about.to_user_id) {
        return Ok(None);
    }
    let tenant = service::find(app.db.read(), &scope).await?;
    let owner = name_of(app, &about.offered_by).await?;
    let mut found = people::profiles(app.db.read(), std::slice::from_ref(&about.to_user_id)).await?;
    let Some(person) = found.remove(&about.to_user_id) else { return Ok(None) };
    Ok(Some(Letter {
        to: person.email,
        subject: "You are to become the owner of an account",
        paragraphs: vec![
            format!("Hello {},", person.name),
            format!(
                "{owner} wants to hand the account “{}” over to you. You become its owner if you accept.",
                tenant.name
            ),
            "Log in and confirm with your password. The offer stands for a week.".into(),
        ],
        action: Some(Action::page("See the offer", &app.config.mail.public_url, "members")),
        closing: "If you don't want that, there is nothing to do.",
    }))
}

async fn deletion(app: &App, about: &AboutDeletion) -> Result<Option<Letter>, WriteError> {
    // Taken back meanwhile: no mail.
    let tenant = service::find(app.db.read(), &TenantScope::of_row(about.tenant_id.clone())).await?;
    let (TenantStatus::Deleting, Some(stored)) = (tenant.status, tenant.delete_at) else { return Ok(None) };
    let (delete_at, _) = super::deletion::due(stored);
    let mut found = people::profiles(app.db.read(), std::slice::from_ref(&about.owner)).await?;
    let Some(person) = found.remove(&about.owner) else { return Ok(None) };
    Ok(Some(Letter {
        to: person.email,
        subject: "Your account is going to be deleted",
        paragraphs: vec![
            format!("Hello {},", person.name),
            format!("the account “{}” is going to be deleted, as you asked, on {delete_at}.", tenant.name),
            "Until then you can download an archive of all that it has, and you can take the deletion back.".into(),
        ],
        action: Some(Action::page("See the account", &app.config.mail.public_url, "account")),
        closing: "If it wasn't you, take the deletion back and set another password at once.",
    }))
}
