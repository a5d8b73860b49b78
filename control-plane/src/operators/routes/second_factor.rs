//! Two-step login of operators.

use axum::{Json, extract::State, http::StatusCode};

use super::{OPERATOR, OperatorProblems};
use crate::{
    auth::{
        self, Attempt, Caller, Code, ConfirmPassword, RecoveryCodes, SecondFactor, SecondFactorSecret,
        second_factor as service,
    },
    error::{ApiResult, Kind},
    extract::ValidJson,
    openapi::{BODY, THROTTLED, problem_responses},
    operators::{Operator, identity},
    state::App,
};

/// Get an operator's two-step login
///
/// Whether the operator who asks has it on.
#[utoipa::path(
    get, path = "/api/v1/admin/me/totp", operation_id = "get_operator_second_factor", tag = "admin",
    security(("operator" = [])),
    responses((status = 200, description = "Whether it is on.", body = SecondFactor), OperatorProblems),
)]
pub(super) async fn get_operator_second_factor(
    State(app): State<App>,
    operator: Operator,
) -> ApiResult<Json<SecondFactor>> {
    Ok(Json(service::status(app.db.read(), &operator.id).await?))
}

problem_responses!(EnrolProblems = OPERATOR, BODY, THROTTLED, &[Kind::WrongPassword, Kind::Conflict]);

/// Prepare an operator's two-step login
///
/// Gives a secret for an authenticator (RFC 6238: SHA-1, six digits, 30 seconds), in place of one that wasn't confirmed. It
/// isn't on yet: confirm it with a code.
#[utoipa::path(
    post, path = "/api/v1/admin/me/totp", operation_id = "enrol_operator_second_factor", tag = "admin",
    security(("operator" = [])),
    request_body(content = ConfirmPassword, example = json!({"password": "correct horse battery"})),
    responses((status = 200, description = "What the authenticator needs.", body = SecondFactorSecret), EnrolProblems),
)]
pub(super) async fn enrol_operator_second_factor(
    State(app): State<App>,
    operator: Operator,
    caller: Caller,
    ValidJson(body): ValidJson<ConfirmPassword>,
) -> ApiResult<Json<SecondFactorSecret>> {
    identity::confirm_password(&app, caller, &operator, body.password.into_secret()).await?;
    let tx = app.db.write().await?;
    let secret = service::enrol(&app, &tx, &operator.id, &operator.email).await?;
    tx.commit().await?;
    Ok(Json(secret))
}

problem_responses!(ConfirmProblems = OPERATOR, BODY, THROTTLED, &[Kind::WrongCode, Kind::Conflict]);

/// Switch an operator's two-step login on
///
/// With a code of the authenticator that was given the secret. The recovery codes are in this answer and can't be shown again.
#[utoipa::path(
    post, path = "/api/v1/admin/me/totp/confirm", operation_id = "confirm_operator_second_factor", tag = "admin",
    security(("operator" = [])),
    request_body(content = Code, example = json!({"code": "492039"})),
    responses((status = 200, description = "It is on. These are the recovery codes.", body = RecoveryCodes), ConfirmProblems),
)]
pub(super) async fn confirm_operator_second_factor(
    State(app): State<App>,
    operator: Operator,
    caller: Caller,
    ValidJson(body): ValidJson<Code>,
) -> ApiResult<Json<RecoveryCodes>> {
    auth::admit(&app, Attempt::SecondFactor, caller.address(), Some(operator.id.as_str())).await?;
    let tx = app.db.write().await?;
    let codes = service::confirm(&app, &tx, &operator.id, &body.code.into_secret()).await?;
    tx.commit().await?;
    auth::forgive(&app, Attempt::SecondFactor, operator.id.as_str()).await?;
    tracing::info!(operator = %operator.id, "an operator switched two-step login on");
    Ok(Json(codes))
}

problem_responses!(DisableProblems = OPERATOR, BODY, THROTTLED, &[Kind::WrongPassword]);

/// Switch an operator's two-step login off
///
/// With the operator's password. The recovery codes don't work any more.
#[utoipa::path(
    post, path = "/api/v1/admin/me/totp/disable", operation_id = "disable_operator_second_factor", tag = "admin",
    security(("operator" = [])),
    request_body(content = ConfirmPassword, example = json!({"password": "correct horse battery"})),
    responses((status = 204, description = "It is off."), DisableProblems),
)]
pub(super) async fn disable_operator_second_factor(
    State(app): State<App>,
    operator: Operator,
    caller: Caller,
    ValidJson(body): ValidJson<ConfirmPassword>,
) -> ApiResult<StatusCode> {
    identity::confirm_password(&app, caller, &operator, body.password.into_secret()).await?;
    let tx = app.db.write().await?;
    service::disable(&tx, &operator.id).await?;
    tx.commit().await?;
    tracing::info!(operator = %operator.id, "an operator switched two-step login off");
    Ok(StatusCode::NO_CONTENT)
}

/// Renew an operator's recovery codes
///
/// With the operator's password. Those from before don't work any more.
#[utoipa::path(
    post, path = "/api/v1/admin/me/totp/recovery-codes", operation_id = "renew_operator_recovery_codes", tag = "admin",
    security(("operator" = [])),
    request_body(content = ConfirmPassword, example = json!({"password": "correct horse battery"})),
    responses((status = 200, description = "The new codes.", body = RecoveryCodes), EnrolProblems),
)]
pub(super) async fn renew_operator_recovery_codes(
    State(app): State<App>,
    operator: Operator,
    caller: Caller,
    ValidJson(body): ValidJson<ConfirmPassword>,
) -> ApiResult<Json<RecoveryCodes>> {
    identity::confirm_password(&app, caller, &operator, body.password.into_secret()).await?;
    let tx = app.db.write().await?;
    let codes = service::renew_recovery_codes(&app, &tx, &operator.id).await?;
    tx.commit().await?;
    Ok(Json(codes))
}
