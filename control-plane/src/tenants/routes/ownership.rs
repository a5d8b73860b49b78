//! Handing the account over.

use axum::{Json, extract::State, http::StatusCode, response::Response};

use super::confirmed;
use crate::{
    auth::{self, Auth, Caller, scopes},
    error::{ApiResult, Kind},
    extract::ValidJson,
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    jobs::JobKind,
    openapi::{BODY, BY_ID, CALLER, IDEMPOTENT, ReadByIdProblems, THROTTLED, WRITE, problem_responses},
    state::App,
    tenants::{
        dto::{Member, OfferOwnership, OwnershipOffer},
        ownership as service,
    },
};

/// Get the offer of ownership
///
/// The one that stands; 404 if none does.
#[utoipa::path(
    get, path = "/api/v1/tenant/ownership-offer", operation_id = "get_ownership_offer", tag = "members",
    security(("person" = ["members:read"])),
    responses((status = 200, description = "The offer.", body = OwnershipOffer), ReadByIdProblems),
)]
pub(super) async fn get_ownership_offer(
    State(app): State<App>,
    auth: Auth<scopes::MembersRead>,
) -> ApiResult<Json<OwnershipOffer>> {
    Ok(Json(service::get(app.db.read(), auth.tenant()).await?))
}

problem_responses!(
    OfferProblems = CALLER,
    WRITE,
    BODY,
    BY_ID,
    IDEMPOTENT,
    THROTTLED,
    &[Kind::WrongPassword, Kind::Conflict]
);

/// Offer the ownership
///
/// To somebody of the account, who accepts within a week; until then nothing changes. Confirmed by one's password. An earlier offer
/// is replaced.
#[utoipa::path(
    post, path = "/api/v1/tenant/ownership-offer", operation_id = "offer_ownership", tag = "members",
    security(("person" = ["tenant:own"])),
    params(IdempotencyKey),
    request_body(content = OfferOwnership, example = json!({
        "user_id": "usr_01h455vb4pex5vsknk084sn02q", "password": "correct horse battery",
    })),
    responses((status = 201, description = "The offer; a mail tells of it.", body = OwnershipOffer), OfferProblems),
)]
pub(super) async fn offer_ownership(
    State(app): State<App>,
    auth: Auth<scopes::TenantOwn>,
    caller: Caller,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<OfferOwnership>,
) -> ApiResult<Response> {
    let person = auth.person()?;
    confirmed(&app, (person, body.password), caller, idempotent, &[JobKind::SendMail], async |tx| {
        let offer = service::offer(&app, tx, auth.tenant(), person, &body.user_id).await?;
        Reply::json(StatusCode::CREATED, &offer)
    })
    .await
}

problem_responses!(WithdrawProblems = CALLER, WRITE, BY_ID, IDEMPOTENT);

/// Take the offer of ownership back
///
/// As long as it wasn't accepted.
#[utoipa::path(
    delete, path = "/api/v1/tenant/ownership-offer", operation_id = "withdraw_ownership_offer", tag = "members",
    security(("person" = ["tenant:own"])),
    params(IdempotencyKey),
    responses((status = 204, description = "The offer is taken back."), WithdrawProblems),
)]
pub(super) async fn withdraw_ownership_offer(
    State(app): State<App>,
    auth: Auth<scopes::TenantOwn>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            service::withdraw(tx, auth.tenant()).await?;
            Ok(Reply::no_content())
        })
        .await
}

problem_responses!(
    AcceptProblems = CALLER,
    WRITE,
    BODY,
    BY_ID,
    IDEMPOTENT,
    THROTTLED,
    &[Kind::WrongPassword, Kind::Conflict]
);

/// Accept the ownership
///
/// By whom it was offered to, confirmed by their password: they are the owner from now on, and the former one an admin.
#[utoipa::path(
    post, path = "/api/v1/tenant/ownership-offer/accept", operation_id = "accept_ownership", tag = "members",
    security(("person" = [])),
    params(IdempotencyKey),
    request_body(content = auth::ConfirmPassword, example = json!({"password": "correct horse battery"})),
    responses((status = 200, description = "The new owner.", body = Member), AcceptProblems),
)]
pub(super) async fn accept_ownership(
    State(app): State<App>,
    auth: Auth<scopes::People>,
    caller: Caller,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<auth::ConfirmPassword>,
) -> ApiResult<Response> {
    let person = auth.person()?;
    confirmed(&app, (person, body.password), caller, idempotent, &[], async |tx| {
        Reply::json(StatusCode::OK, &service::accept(tx, auth.tenant(), person).await?)
    })
    .await
}
