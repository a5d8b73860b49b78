//! Two-step login.

use axum::{Json, extract::State, http::StatusCode, response::Response};

use crate::{
    auth::{
        Auth, account,
        caller::Caller,
        dto::{Code, ConfirmPassword, RecoveryCodes, SecondFactor, SecondFactorSecret},
        letters::{self, AboutUser},
        scopes, second_factor as service,
        throttle::{self, Attempt},
    },
    error::{ApiResult, Kind},
    extract::ValidJson,
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    jobs::JobKind,
    mail,
    openapi::{BODY, CALLER, IDEMPOTENT, ReadProblems, THROTTLED, problem_responses},
    state::App,
};

/// Get two-step login
///
/// Whether it is on.
#[utoipa::path(
    get, path = "/api/v1/me/totp", operation_id = "get_second_factor", tag = "auth",
    security(("person" = [])),
    responses((status = 200, description = "Whether it is on.", body = SecondFactor), ReadProblems),
)]
pub(super) async fn get_second_factor(
    State(app): State<App>,
    auth: Auth<scopes::People>,
) -> ApiResult<Json<SecondFactor>> {
    Ok(Json(service::status(app.db.read(), auth.person()?.id).await?))
}

problem_responses!(EnrolProblems = CALLER, BODY, IDEMPOTENT, THROTTLED, &[Kind::WrongPassword, Kind::Conflict]);

/// Prepare two-step login
///
/// Gives a secret for an authenticator (RFC 6238: SHA-1, six digits, 30 seconds), in place of one that wasn't confirmed. It
/// isn't on yet: confirm it with a code.
#[utoipa::path(
    post, path = "/api/v1/me/totp", operation_id = "enrol_second_factor", tag = "auth",
    security(("person" = [])),
    params(IdempotencyKey),
    request_body(content = ConfirmPassword, example = json!({"password": "correct horse battery"})),
    responses((status = 200, description = "What the authenticator needs.", body = SecondFactorSecret), EnrolProblems),
)]
pub(super) async fn enrol_second_factor(
    State(app): State<App>,
    auth: Auth<scopes::Oneself>,
    caller: Caller,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<ConfirmPassword>,
) -> ApiResult<Response> {
    let person = auth.person()?;
    account::confirm_password(&app, caller, person.id, body.password.into_secret()).await?;
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            let email = account::email_of(tx, person.id).await?;
            Reply::json(StatusCode::OK, &service::enrol(&app, tx, person.id, &email).await?)
        })
        .await
}

problem_responses!(ConfirmProblems = CALLER, BODY, IDEMPOTENT, THROTTLED, &[Kind::WrongCode, Kind::Conflict]);

/// Switch two-step login on
///
/// With a code of the authenticator that was given the secret. The recovery codes are in this answer and can't be shown again.
#[utoipa::path(
    post, path = "/api/v1/me/totp/confirm", operation_id = "confirm_second_factor", tag = "auth",
    security(("person" = [])),
    params(IdempotencyKey),
    request_body(content = Code, example = json!({"code": "492039"})),
    responses((status = 200, description = "It is on. These are the recovery codes.", body = RecoveryCodes), ConfirmProblems),
)]
pub(super) async fn confirm_second_factor(
    State(app): State<App>,
    auth: Auth<scopes::Oneself>,
    caller: Caller,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<Code>,
) -> ApiResult<Response> {
    let person = auth.person()?;
    throttle::admit(&app, Attempt::SecondFactor, caller.address, Some(person.id.as_str())).await?;
    let code = body.code.into_secret();
    let response = idempotent
        .run(&app, idempotency::DAY, async |tx| {
            let codes = service::confirm(&app, tx, person.id, &code).await?;
            mail::ask(&app, tx, letters::SECOND_FACTOR_ON, &AboutUser { user_id: person.id.clone() }).await?;
            Reply::json(StatusCode::OK, &codes)
        })
        .await?;
    app.bell.ring(JobKind::SendMail);
    throttle::forgive(&app, Attempt::SecondFactor, person.id.as_str()).await?;
    Ok(response)
}

problem_responses!(DisableProblems = CALLER, BODY, IDEMPOTENT, THROTTLED, &[Kind::WrongPassword]);

/// Switch two-step login off
///
/// With one's password. The recovery codes don't work any more.
#[utoipa::path(
    post, path = "/api/v1/me/totp/disable", operation_id = "disable_second_factor", tag = "auth",
    security(("person" = [])),
    params(IdempotencyKey),
    request_body(content = ConfirmPassword, example = json!({"password": "correct horse battery"})),
    responses((status = 204, description = "It is off."), DisableProblems),
)]
pub(super) async fn disable_second_factor(
    State(app): State<App>,
    auth: Auth<scopes::Oneself>,
    caller: Caller,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<ConfirmPassword>,
) -> ApiResult<Response> {
    let person = auth.person()?;
    account::confirm_password(&app, caller, person.id, body.password.into_secret()).await?;
    let response = idempotent
        .run(&app, idempotency::DAY, async |tx| {
            if service::is_on(tx, person.id).await? {
                mail::ask(&app, tx, letters::SECOND_FACTOR_OFF, &AboutUser { user_id: person.id.clone() }).await?;
            }
            service::disable(tx, person.id).await?;
            Ok(Reply::no_content())
        })
        .await?;
    app.bell.ring(JobKind::SendMail);
    Ok(response)
}

/// Renew the recovery codes
///
/// With one's password. Those from before don't work any more.
#[utoipa::path(
    post, path = "/api/v1/me/totp/recovery-codes", operation_id = "renew_recovery_codes", tag = "auth",
    security(("person" = [])),
    params(IdempotencyKey),
    request_body(content = ConfirmPassword, example = json!({"password": "correct horse battery"})),
    responses((status = 200, description = "The new codes.", body = RecoveryCodes), EnrolProblems),
)]
pub(super) async fn renew_recovery_codes(
    State(app): State<App>,
    auth: Auth<scopes::Oneself>,
    caller: Caller,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<ConfirmPassword>,
) -> ApiResult<Response> {
    let person = auth.person()?;
    account::confirm_password(&app, caller, person.id, body.password.into_secret()).await?;
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            Reply::json(StatusCode::OK, &service::renew_recovery_codes(&app, tx, person.id).await?)
        })
        .await
}
