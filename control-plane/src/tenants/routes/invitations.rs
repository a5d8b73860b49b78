//! Inviting people.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use shared::ids::InvitationId;

use crate::{
    auth::{self, Attempt, Auth, scopes},
    error::{ApiResult, Kind},
    extract::{
        ClientAddress, PathId, ValidJson, ValidQuery,
        page::{Page, PageQuery},
    },
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    jobs::JobKind,
    openapi::{BODY, BY_ID, CALLER, IDEMPOTENT, LIMITED, ReadProblems, THROTTLED, WRITE, problem_responses},
    state::App,
    tenants::{
        dto::{AcceptInvitation, CreateInvitation, Invitation, Joined},
        invitations as service,
    },
};

problem_responses!(CreateProblems = CALLER, WRITE, BODY, IDEMPOTENT, LIMITED, THROTTLED, &[Kind::Conflict]);

/// Invite somebody
///
/// Sends a mail with a link that works for a week. The same address invited again gets another mail, and the first one's link
/// doesn't work any more. Nobody invites to a role above their own.
#[utoipa::path(
    post, path = "/api/v1/invitations", operation_id = "create_invitation", tag = "members",
    security(("person" = ["members:write"])),
    params(IdempotencyKey),
    request_body(content = CreateInvitation, example = json!({"email": "grace@example.com", "role": "developer"})),
    responses((status = 201, description = "The invitation; its mail is on its way.", body = Invitation), CreateProblems),
)]
pub(super) async fn create_invitation(
    State(app): State<App>,
    auth: Auth<scopes::MembersWrite>,
    address: ClientAddress,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<CreateInvitation>,
) -> ApiResult<Response> {
    let person = auth.person()?;
    if !idempotent.is_repeated(&app).await? {
        auth::admit(&app, Attempt::InviteByTenant, address, Some(auth.tenant().id().as_str())).await?;
        auth::admit(&app, Attempt::Invite, address, Some(body.email.as_str())).await?;
    }
    let response = idempotent
        .run(&app, idempotency::DAY, async |tx| {
            Reply::json(StatusCode::CREATED, &service::create(&app, tx, auth.tenant(), person, &body).await?)
        })
        .await?;
    app.bell.ring(JobKind::SendMail);
    Ok(response)
}

/// List invitations
///
/// Those that weren't accepted yet and haven't expired, the newest first.
#[utoipa::path(
    get, path = "/api/v1/invitations", operation_id = "list_invitations", tag = "members",
    security(("person" = ["members:write"])),
    params(PageQuery),
    responses((status = 200, description = "One page of invitations.", body = Page<Invitation>), ReadProblems),
)]
pub(super) async fn list_invitations(
    State(app): State<App>,
    auth: Auth<scopes::MembersWrite>,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<Invitation>>> {
    Ok(Json(service::list(app.db.read(), auth.tenant(), &page).await?))
}

problem_responses!(DeleteProblems = CALLER, WRITE, BY_ID, IDEMPOTENT);

/// Take an invitation back
///
/// Its link doesn't work any more.
#[utoipa::path(
    delete, path = "/api/v1/invitations/{id}", operation_id = "delete_invitation", tag = "members",
    security(("person" = ["members:write"])),
    params(("id" = InvitationId, Path, description = "The invitation."), IdempotencyKey),
    responses((status = 204, description = "The invitation is taken back."), DeleteProblems),
)]
pub(super) async fn delete_invitation(
    State(app): State<App>,
    auth: Auth<scopes::MembersWrite>,
    PathId(id): PathId<InvitationId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            service::delete(tx, auth.tenant(), &id).await?;
            Ok(Reply::no_content())
        })
        .await
}

problem_responses!(
    AcceptProblems = BODY,
    LIMITED,
    THROTTLED,
    &[Kind::MailTokenRefused, Kind::TenantSuspended, Kind::Conflict]
);

/// Accept an invitation
///
/// With the token of its mail, once. If the address has an account, that belongs to the other one too from now on; if not, one is
/// made with the name and the password (422 asks for them, and uses nothing up). Either way, log in next.
#[utoipa::path(
    post, path = "/api/v1/invitations/accept", operation_id = "accept_invitation", tag = "members",
    security(()),
    request_body(content = AcceptInvitation, example = json!({
        "token": "sbi_q2Zx", "name": "Grace Hopper", "password": "correct horse battery",
    })),
    responses((status = 200, description = "The person belongs to the account.", body = Joined), AcceptProblems),
)]
pub(super) async fn accept_invitation(
    State(app): State<App>,
    address: ClientAddress,
    ValidJson(body): ValidJson<AcceptInvitation>,
) -> ApiResult<Json<Joined>> {
    Ok(Json(service::accept(&app, address, body).await?))
}
