//! Logging in as an operator.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};

use super::OperatorProblems;
use crate::{
    auth::{Caller, SecondFactorRequired},
    error::{ApiResult, Kind},
    extract::ValidJson,
    openapi::{BODY, THROTTLED, problem_responses},
    operators::{
        Operator,
        dto::{OperatorDto, OperatorLogIn, OperatorLogInCode, OperatorToken},
        identity::{self, LoggedIn},
    },
    state::App,
};

problem_responses!(LogInProblems = BODY, THROTTLED, &[Kind::InvalidCredentials]);

/// Log in as an operator
///
/// The token works for twelve hours, below `/api/v1/admin` only. If the operator has two-step login on, the answer is 202 with a challenge
/// that is met with a code. Operators are made by `control-plane create-operator`.
#[utoipa::path(
    post, path = "/api/v1/admin/auth/login", operation_id = "log_in_operator", tag = "admin",
    security(()),
    request_body(content = OperatorLogIn, example = json!({
        "email": "operator@example.com", "password": "correct horse battery",
    })),
    responses(
        (status = 200, description = "The token of the login.", body = OperatorToken),
        (status = 202, description = "The password is right; a code is needed too.", body = SecondFactorRequired),
        LogInProblems,
    ),
)]
pub(super) async fn log_in_operator(
    State(app): State<App>,
    caller: Caller,
    ValidJson(body): ValidJson<OperatorLogIn>,
) -> ApiResult<Response> {
    Ok(match identity::log_in(&app, caller, body).await? {
        LoggedIn::Token(token) => Json(token).into_response(),
        LoggedIn::CodeRequired(challenge) => (StatusCode::ACCEPTED, Json(challenge)).into_response(),
    })
}

problem_responses!(LogInCodeProblems = BODY, THROTTLED, &[Kind::Unauthenticated, Kind::WrongCode]);

/// Log in as an operator: second step
///
/// With a code of the device, or a recovery code. Each works once. A challenge lives for five minutes and five codes.
#[utoipa::path(
    post, path = "/api/v1/admin/auth/login/code", operation_id = "log_in_operator_with_code", tag = "admin",
    security(()),
    request_body(content = OperatorLogInCode, example = json!({"challenge_token": "sbc_q2Zx", "code": "492039"})),
    responses((status = 200, description = "The token of the login.", body = OperatorToken), LogInCodeProblems),
)]
pub(super) async fn log_in_operator_with_code(
    State(app): State<App>,
    caller: Caller,
    ValidJson(body): ValidJson<OperatorLogInCode>,
) -> ApiResult<Json<OperatorToken>> {
    Ok(Json(identity::log_in_with_code(&app, caller, body).await?))
}

/// Log out as an operator
///
/// The token doesn't work any more.
#[utoipa::path(
    post, path = "/api/v1/admin/auth/logout", operation_id = "log_out_operator", tag = "admin",
    security(("operator" = [])),
    responses((status = 204, description = "The login has ended."), OperatorProblems),
)]
pub(super) async fn log_out_operator(State(app): State<App>, _: Operator, parts: Parts) -> ApiResult<StatusCode> {
    identity::log_out(&app, &parts).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Get the operator
///
/// Who is logged in.
#[utoipa::path(
    get, path = "/api/v1/admin/me", operation_id = "get_operator", tag = "admin",
    security(("operator" = [])),
    responses((status = 200, description = "The operator.", body = OperatorDto), OperatorProblems),
)]
pub(super) async fn get_operator(operator: Operator) -> Json<OperatorDto> {
    Json(operator.into())
}
