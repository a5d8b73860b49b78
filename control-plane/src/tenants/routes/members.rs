//! Who belongs to the account.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use shared::ids::UserId;

use crate::{
    auth::{Auth, scopes},
    error::{ApiResult, Kind},
    extract::{
        PathId, ValidJson, ValidQuery,
        page::{Page, PageQuery},
    },
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    openapi::{BODY, BY_ID, CALLER, IDEMPOTENT, ReadByIdProblems, ReadProblems, WRITE, problem_responses},
    state::App,
    tenants::{
        dto::{Member, Membership, UpdateMember},
        members as service,
    },
};

/// List members
///
/// The people of the account, those who signed up last first.
#[utoipa::path(
    get, path = "/api/v1/members", operation_id = "list_members", tag = "members",
    security(("person" = ["members:read"])),
    params(PageQuery),
    responses((status = 200, description = "One page of people.", body = Page<Member>), ReadProblems),
)]
pub(super) async fn list_members(
    State(app): State<App>,
    auth: Auth<scopes::MembersRead>,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<Member>>> {
    Ok(Json(service::list(app.db.read(), auth.tenant(), &page).await?))
}

/// Get a member
///
/// One person of the account.
#[utoipa::path(
    get, path = "/api/v1/members/{id}", operation_id = "get_member", tag = "members",
    security(("person" = ["members:read"])),
    params(("id" = UserId, Path, description = "The person.")),
    responses((status = 200, description = "The person.", body = Member), ReadByIdProblems),
)]
pub(super) async fn get_member(
    State(app): State<App>,
    auth: Auth<scopes::MembersRead>,
    PathId(id): PathId<UserId>,
) -> ApiResult<Json<Member>> {
    Ok(Json(service::get(app.db.read(), auth.tenant(), &id).await?))
}

problem_responses!(UpdateProblems = CALLER, WRITE, BODY, BY_ID, IDEMPOTENT, &[Kind::Conflict]);

/// Change a member's role
///
/// At once, also for logins that go on. Nobody gives a role above their own; that of the owner changes by
/// `POST /api/v1/tenant/ownership-offer` only.
#[utoipa::path(
    patch, path = "/api/v1/members/{id}", operation_id = "update_member", tag = "members",
    security(("person" = ["members:write"])),
    params(("id" = UserId, Path, description = "The person."), IdempotencyKey),
    request_body(content = UpdateMember, example = json!({"role": "developer"})),
    responses((status = 200, description = "The person, with the other role.", body = Member), UpdateProblems),
)]
pub(super) async fn update_member(
    State(app): State<App>,
    auth: Auth<scopes::MembersWrite>,
    PathId(id): PathId<UserId>,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<UpdateMember>,
) -> ApiResult<Response> {
    let person = auth.person()?;
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            Reply::json(StatusCode::OK, &service::change_role(tx, auth.tenant(), person, &id, body.role).await?)
        })
        .await
}

problem_responses!(RemoveProblems = CALLER, WRITE, BY_ID, IDEMPOTENT, &[Kind::Conflict]);

/// Remove a member
///
/// Their logins to this account end at once. API keys that they made go on: they are the account's. The owner can't be removed.
#[utoipa::path(
    delete, path = "/api/v1/members/{id}", operation_id = "remove_member", tag = "members",
    security(("person" = ["members:write"])),
    params(("id" = UserId, Path, description = "The person."), IdempotencyKey),
    responses((status = 204, description = "The person doesn't belong to the account any more."), RemoveProblems),
)]
pub(super) async fn remove_member(
    State(app): State<App>,
    auth: Auth<scopes::MembersWrite>,
    PathId(id): PathId<UserId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    let person = auth.person()?;
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            service::remove(tx, auth.tenant(), person, &id).await?;
            Ok(Reply::no_content())
        })
        .await
}

problem_responses!(LeaveProblems = CALLER, IDEMPOTENT, &[Kind::Conflict]);

/// Leave the account
///
/// The person who asks doesn't belong to it any more, and their logins to it end. Its owner can't leave: they hand it over first.
#[utoipa::path(
    post, path = "/api/v1/tenant/leave", operation_id = "leave_tenant", tag = "members",
    security(("person" = [])),
    params(IdempotencyKey),
    responses((status = 204, description = "The person has left."), LeaveProblems),
)]
pub(super) async fn leave_tenant(
    State(app): State<App>,
    auth: Auth<scopes::Oneself>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    let person = auth.person()?;
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            service::leave(tx, auth.tenant(), person).await?;
            Ok(Reply::no_content())
        })
        .await
}

/// List one's accounts
///
/// Those that the person who is logged in belongs to. `POST /api/v1/auth/switch` changes between them.
#[utoipa::path(
    get, path = "/api/v1/me/tenants", operation_id = "list_memberships", tag = "tenant",
    security(("person" = [])),
    params(PageQuery),
    responses((status = 200, description = "One page of accounts.", body = Page<Membership>), ReadProblems),
)]
pub(super) async fn list_memberships(
    State(app): State<App>,
    auth: Auth<scopes::Oneself>,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<Membership>>> {
    let person = auth.person()?;
    Ok(Json(service::memberships(app.db.read(), person.id, auth.tenant().id(), &page).await?))
}
