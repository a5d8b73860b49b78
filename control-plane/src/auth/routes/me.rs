//! Oneself.

use axum::{Json, extract::State, http::StatusCode, response::Response};

use crate::{
    auth::{
        Auth, account,
        caller::Caller,
        dto::{ChangePassword, Me, UpdateMe},
        scopes, sign_up,
    },
    error::{ApiResult, Kind},
    extract::ValidJson,
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    openapi::{BODY, CALLER, IDEMPOTENT, ReadProblems, THROTTLED, problem_responses},
    state::App,
};

/// Get oneself
///
/// The person who is logged in, and the tenant they are logged in to.
#[utoipa::path(
    get, path = "/api/v1/me", operation_id = "get_me", tag = "tenant",
    security(("person" = [])),
    responses((status = 200, description = "The person.", body = Me), ReadProblems),
)]
pub(super) async fn get_me(State(app): State<App>, auth: Auth<scopes::People>) -> ApiResult<Json<Me>> {
    let person = auth.person()?;
    Ok(Json(account::me(app.db.read(), auth.tenant(), person.id, person.role).await?))
}

problem_responses!(UpdateMeProblems = CALLER, BODY, IDEMPOTENT);

/// Change oneself
///
/// Gives the person who is logged in another name.
#[utoipa::path(
    patch, path = "/api/v1/me", operation_id = "update_me", tag = "tenant",
    security(("person" = [])),
    params(IdempotencyKey),
    request_body(content = UpdateMe, example = json!({"name": "Ada King"})),
    responses((status = 200, description = "The person, changed.", body = Me), UpdateMeProblems),
)]
pub(super) async fn update_me(
    State(app): State<App>,
    auth: Auth<scopes::Oneself>,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<UpdateMe>,
) -> ApiResult<Response> {
    let person = auth.person()?;
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            account::rename(tx, person.id, &body.name).await?;
            Reply::json(StatusCode::OK, &account::me(tx, auth.tenant(), person.id, person.role).await?)
        })
        .await
}

problem_responses!(ChangePasswordProblems = CALLER, BODY, THROTTLED, &[Kind::WrongPassword]);

/// Change one's password
///
/// All other logins of the person end. Sent again, it is refused: the present password is another by then.
#[utoipa::path(
    post, path = "/api/v1/me/password", operation_id = "change_password", tag = "auth",
    security(("person" = [])),
    request_body(content = ChangePassword, example = json!({
        "current_password": "correct horse battery", "new_password": "incorrect horse battery",
    })),
    responses((status = 204, description = "The password is another."), ChangePasswordProblems),
)]
pub(super) async fn change_password(
    State(app): State<App>,
    auth: Auth<scopes::Oneself>,
    caller: Caller,
    ValidJson(body): ValidJson<ChangePassword>,
) -> ApiResult<StatusCode> {
    let person = auth.person()?;
    account::change_password(&app, caller, person.id, person.login, body).await?;
    Ok(StatusCode::NO_CONTENT)
}

problem_responses!(AskToVerifyProblems = CALLER, THROTTLED);

/// Ask for the mail that verifies one's address
///
/// Once more. If the address is verified already, no mail comes.
#[utoipa::path(
    post, path = "/api/v1/me/verify-email", operation_id = "ask_to_verify_email", tag = "auth",
    security(("person" = [])),
    responses((status = 202, description = "The mail is on its way, if it is needed."), AskToVerifyProblems),
)]
pub(super) async fn ask_to_verify_email(
    State(app): State<App>,
    auth: Auth<scopes::Oneself>,
    caller: Caller,
) -> ApiResult<StatusCode> {
    sign_up::ask_again(&app, caller, auth.person()?.id).await?;
    Ok(StatusCode::ACCEPTED)
}
