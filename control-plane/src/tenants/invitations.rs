//! Inviting people by mail.
//!
//! An invitation is for an address. Its token is made when the mail is written and stands in that mail only; the database holds
//! its keyed hash. Accepting it shows that the address is the person's own, and gives no login: the person logs in afterwards.
//! So it needs none either, and somebody who belongs to no tenant any more can be invited again.

use std::time::Duration;

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect, Set, Statement,
    sea_query::{Expr, OnConflict},
};
use secrecy::{ExposeSecret, SecretString};
use shared::{
    ids::{InvitationId, TenantId, UserId},
    problem::FieldError,
    time::Timestamp,
};

use super::{
    TenantStatus,
    dto::{AcceptInvitation, CreateInvitation, Invitation, Joined, NewPerson},
    entity::invitation as entity,
    letters::{self, AboutInvitation},
    members, policy, service,
};
use crate::{
    audit::{self, ActorType},
    auth::{self, Attempt, Person, Role, TenantScope, people},
    error::{ApiError, ApiResult, Kind, Refusal},
    extract::{
        ClientAddress,
        page::{Page, PageQuery},
    },
    mail,
    plans::{self, Limit},
    state::App,
    sweep,
};

/// How long an invitation can be accepted.
pub(super) const LIVES: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many invitations of one tenant may wait at once.
const MOST_WAITING: u64 = 100;
/// How many expired invitations one sweep forgets.
const PRUNE_BATCH: i64 = 1000;

fn dto(row: entity::Model) -> ApiResult<Invitation> {
    Ok(Invitation {
        role: role_of(&row)?,
        id: row.id,
        email: row.email,
        invited_by: row.invited_by,
        created_at: row.created_at,
        expires_at: row.expires_at,
    })
}

fn role_of(row: &entity::Model) -> ApiResult<Role> {
    Role::from_stored(&row.role).ok_or(ApiError::Defect("a stored role is not known"))
}

/// Invites an address, in place of an earlier invitation of the same one, and asks for the mail. Whether the address has an
/// account is not looked at, but for one that belongs to the tenant already.
pub(super) async fn create(
    app: &App,
    tx: &DatabaseTransaction,
    scope: &TenantScope,
    actor: Person<'_>,
    wanted: &CreateInvitation,
) -> ApiResult<Invitation> {
    // What the person is now: an invitation mustn't outlive the role that it was sent by.
    let role = members::role_held(tx, scope.id(), actor.id).await?.ok_or(Kind::NotFound)?;
    policy::may_invite(actor.role.min(role), wanted.role)?;
    let email = wanted.email.as_str();
    if let Some(known) = people::by_email(tx, email).await?
        && members::role(tx, scope.id(), &known.id).await?.is_some()
    {
        return Err(Kind::Conflict.because("this person belongs to the account already").into());
    }
    if waiting(scope).filter(entity::Column::Email.ne(email)).count(tx).await? >= MOST_WAITING {
        return Err(Kind::Conflict.because(format!("{MOST_WAITING} invitations wait already: delete some")).into());
    }
    // Whoever accepts is counted again: others may be faster.
    plans::admit(tx, scope, Limit::Members).await?;
    let now = Timestamp::now();
    let row = entity::Model {
        id: InvitationId::new(),
        tenant_id: scope.id().clone(),
        email: email.to_owned(),
        role: wanted.role.as_str().into(),
        token_hash: None,
        invited_by: actor.id.clone(),
        created_at: now,
        expires_at: now.plus(LIVES),
    };
    entity::Entity::insert(entity::ActiveModel {
        id: Set(row.id.clone()),
        tenant_id: Set(row.tenant_id.clone()),
        email: Set(row.email.clone()),
        role: Set(row.role.clone()),
        token_hash: Set(None),
        invited_by: Set(row.invited_by.clone()),
        created_at: Set(row.created_at),
        expires_at: Set(row.expires_at),
    })
    // An earlier one of the address, or one that somebody sends at this moment.
    .on_conflict(
        OnConflict::columns([entity::Column::TenantId, entity::Column::Email])
            .update_columns([
                entity::Column::Id,
                entity::Column::Role,
                entity::Column::TokenHash,
                entity::Column::InvitedBy,
                entity::Column::CreatedAt,
                entity::Column::ExpiresAt,
            ])
            .to_owned(),
    )
    .exec_without_returning(tx)
    .await?;
    mail::ask(app, tx, letters::INVITATION, &AboutInvitation { invitation_id: row.id.clone() }).await?;
    dto(row)
}

fn waiting(scope: &TenantScope) -> sea_orm::Select<entity::Entity> {
    entity::Entity::find()
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::ExpiresAt.gt(Timestamp::now()))
}

/// Those of a tenant that weren't accepted yet.
pub(super) async fn list<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    page: &PageQuery,
) -> ApiResult<Page<Invitation>> {
    let mut query = waiting(scope);
    if let Some(before) = page.before::<InvitationId>()? {
        query = query.filter(entity::Column::Id.lt(before));
    }
    let rows = query.order_by_desc(entity::Column::Id).limit(page.rows()).all(connection).await?;
    let Page { data, next_cursor } = page.page(rows, |row| &row.id, |row| row);
    Ok(Page { data: data.into_iter().map(dto).collect::<ApiResult<_>>()?, next_cursor })
}

/// Takes an invitation back.
pub(super) async fn delete(tx: &DatabaseTransaction, scope: &TenantScope, id: &InvitationId) -> ApiResult<()> {
    let done = entity::Entity::delete_many()
        .filter(entity::Column::TenantId.eq(scope.id().clone()))
        .filter(entity::Column::Id.eq(id.clone()))
        .filter(entity::Column::ExpiresAt.gt(Timestamp::now()))
        .exec(tx)
        .await?;
    if done.rows_affected == 0 { Err(Kind::NotFound.into()) } else { Ok(()) }
}

/// Forgets the invitations that a person sent to roles above one, or all of them: whoever may not invite to a role any more doesn't
/// come back as one by an invitation to another address of theirs.
pub(super) async fn forget_sent_above(
    tx: &DatabaseTransaction,
    tenant: &TenantId,
    by: &UserId,
    role: Option<Role>,
) -> ApiResult<()> {
    let above = Role::ALL.into_iter().filter(|other| role.is_none_or(|role| *other > role)).map(Role::as_str);
    entity::Entity::delete_many()
        .filter(entity::Column::TenantId.eq(tenant.clone()))
        .filter(entity::Column::InvitedBy.eq(by.clone()))
        .filter(entity::Column::Role.is_in(above))
        .exec(tx)
        .await?;
    Ok(())
}

/// An invitation that waits, and the token of its mail: the same whenever the mail is written, since an earlier try may have arrived.
pub(super) async fn token(app: &App, id: &InvitationId) -> ApiResult<Option<(entity::Model, SecretString)>> {
    let token = app.keyring.mail_token("sbi_", id.as_str());
    let hash = app.keyring.mail_token_hash().of(token.expose_secret());
    let done = entity::Entity::update_many()
        .col_expr(entity::Column::TokenHash, Expr::value(hash))
        .filter(entity::Column::Id.eq(id.clone()))
        .filter(entity::Column::ExpiresAt.gt(Timestamp::now()))
        .exec(app.db.autocommit())
        .await?;
    if done.rows_affected == 0 {
        return Ok(None);
    }
    let row = entity::Entity::find_by_id(id.clone()).one(app.db.autocommit()).await?;
    Ok(row.map(|row| (row, token)))
}

/// What an invitation turns into.
enum Account {
    /// The address has one, and showed before that it is the person's own.
    There,
    /// There is none, or one whose maker never showed that the address is theirs.
    New { name: String, password_hash: String },
}

/// Accepts an invitation.
pub(super) async fn accept(app: &App, address: ClientAddress, wanted: AcceptInvitation) -> ApiResult<Joined> {
    auth::admit(app, Attempt::MailToken, address, None).await?;
    let AcceptInvitation { token, name, password } = wanted;
    let hash = app.keyring.mail_token_hash().of(token.into_secret().expose_secret());
    let found = entity::Entity::find()
        .filter(entity::Column::TokenHash.eq(hash.clone()))
        .filter(entity::Column::ExpiresAt.gt(Timestamp::now()))
        .one(app.db.read())
        .await?
        .ok_or(Kind::MailTokenRefused)?;
    audit::of(&found.tenant_id);
    audit::about(found.id.as_str());
    let account = match people::by_email(app.db.read(), &found.email).await? {
        Some(known) if known.verified => Account::There,
        _ => {
            let person = new_person(name, password.map(auth::Shown::into_secret))?;
            Account::New { name: person.name, password_hash: people::hash(app, person.password).await? }
        }
    };
    let tx = app.db.write().await?;
    let joined = accept_in(app, &tx, &hash, account).await?;
    audit::by(ActorType::User, joined.user_id.as_str());
    tx.commit().await?;
    tracing::info!(tenant = %joined.tenant_id, user = %joined.user_id, "somebody joined a tenant");
    Ok(joined)
}

/// Both are needed for an account.
fn new_person(name: Option<String>, password: Option<SecretString>) -> Result<NewPerson, Refusal> {
    let missing = |pointer: &str| FieldError {
        pointer: pointer.into(),
        code: "required".into(),
        detail: "is needed, because this address has no account of its own yet".into(),
    };
    match (name, password) {
        (Some(name), Some(password)) => Ok(NewPerson { name, password }),
        (name, password) => {
            let mut errors = Vec::new();
            errors.extend(name.is_none().then(|| missing("/name")));
            errors.extend(password.is_none().then(|| missing("/password")));
            Err(Refusal::from(Kind::Validation).with_errors(errors))
        }
    }
}

async fn accept_in(app: &App, tx: &DatabaseTransaction, hash: &[u8], account: Account) -> ApiResult<Joined> {
    let statement = Statement::from_sql_and_values(
        tx.get_database_backend(),
        "DELETE FROM invitations WHERE token_hash = $1 AND expires_at > $2 RETURNING tenant_id, email, role",
        [hash.to_vec().into(), Timestamp::now().into()],
    );
    let row = tx.query_one_raw(statement).await?.ok_or(Kind::MailTokenRefused)?;
    let (tenant_id, email): (TenantId, String) = (row.try_get("", "tenant_id")?, row.try_get("", "email")?);
    let role: String = row.try_get("", "role")?;
    let role = Role::from_stored(&role).ok_or(ApiError::Defect("a stored role is not known"))?;
    let scope = TenantScope::of_row(tenant_id);
    let tenant = service::find(tx, &scope).await?;
    if tenant.status != TenantStatus::Active {
        return Err(Kind::TenantSuspended.into());
    }
    // Between looking and this transaction the address may have got an account, or its account may have been verified.
    let meanwhile = || Kind::Conflict.because("the account of this address changed at the same moment: try again");
    let user_id = match (people::by_email(tx, &email).await?, account) {
        (Some(known), Account::There) => known.id,
        (Some(known), Account::New { name, password_hash }) if !known.verified => {
            people::take_address(app, tx, &known.id).await?;
            people::make_invited(tx, &email, name, password_hash).await?.ok_or_else(meanwhile)?
        }
        (None, Account::New { name, password_hash }) => {
            people::make_invited(tx, &email, name, password_hash).await?.ok_or_else(meanwhile)?
        }
        (Some(_), Account::New { .. }) | (None, Account::There) => return Err(meanwhile().into()),
    };
    if members::role(tx, &tenant.id, &user_id).await?.is_none() {
        plans::admit(tx, &scope, Limit::Members).await?;
    }
    let role = if members::add(tx, &tenant.id, &user_id, role).await? {
        role
    } else {
        members::role(tx, &tenant.id, &user_id).await?.ok_or(ApiError::Defect("a member was lost"))?
    };
    Ok(Joined { tenant_id: tenant.id, tenant_name: tenant.name, role, user_id })
}

/// Forgets invitations that have expired.
pub(super) async fn prune(app: &App) -> Result<u64, DbErr> {
    let statement = "DELETE FROM invitations WHERE id IN \
                     (SELECT id FROM invitations WHERE expires_at <= $1 LIMIT $2)";
    sweep::before(app, PRUNE_BATCH, statement, Timestamp::now()).await
}
