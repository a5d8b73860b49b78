//! Signing up, and what mails lead to.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use crate::{
    auth::{
        account,
        caller::Caller,
        dto::{ForgotPassword, MailToken, ResetPassword, SignUp, Tokens},
        sign_up as service,
    },
    error::{ApiResult, Kind},
    extract::ValidJson,
    openapi::{BODY, THROTTLED, problem_responses},
    state::App,
};

problem_responses!(SignUpProblems = BODY, THROTTLED, &[Kind::EmailTaken]);

/// Sign up
///
/// Makes an account with its owner, and logs the owner in. An installation that verifies addresses first
/// (`EMAIL_VERIFICATION=required`) answers 202 for every address instead, and sends a mail: the account is made when its link
/// is opened; if there is one already, only the mail says so.
#[utoipa::path(
    post, path = "/api/v1/auth/signup", operation_id = "sign_up", tag = "auth",
    security(()),
    request_body(content = SignUp, example = json!({
        "email": "ada@example.com", "password": "correct horse battery", "name": "Ada Lovelace", "tenant_name": "Acme",
    })),
    responses(
        (status = 201, description = "The account is made; these are its owner's tokens.", body = Tokens),
        (status = 202, description = "A mail is on its way, whether there is an account already or not."),
        SignUpProblems,
    ),
)]
pub(super) async fn sign_up(
    State(app): State<App>,
    caller: Caller,
    ValidJson(body): ValidJson<SignUp>,
) -> ApiResult<Response> {
    Ok(match service::sign_up(&app, caller, body).await? {
        Some(tokens) => (StatusCode::CREATED, Json(tokens)).into_response(),
        None => StatusCode::ACCEPTED.into_response(),
    })
}

problem_responses!(MailTokenProblems = BODY, THROTTLED, &[Kind::MailTokenRefused]);

/// Verify an e-mail address
///
/// Uses the token of a mail, once. If an account waits for it, the account is made; then log in.
#[utoipa::path(
    post, path = "/api/v1/auth/verify-email", operation_id = "verify_email", tag = "auth",
    security(()),
    request_body(content = MailToken, example = json!({"token": "sbm_q2Zx"})),
    responses((status = 204, description = "The address is the person's own."), MailTokenProblems),
)]
pub(super) async fn verify_email(
    State(app): State<App>,
    caller: Caller,
    ValidJson(body): ValidJson<MailToken>,
) -> ApiResult<StatusCode> {
    service::verify(&app, caller, &body.token.into_secret()).await?;
    Ok(StatusCode::NO_CONTENT)
}

problem_responses!(ForgotPasswordProblems = BODY, THROTTLED);

/// Ask for another password
///
/// Sends a mail with a link, if the address has an account. The answer is the same if it hasn't.
#[utoipa::path(
    post, path = "/api/v1/auth/password/forgot", operation_id = "forgot_password", tag = "auth",
    security(()),
    request_body(content = ForgotPassword, example = json!({"email": "ada@example.com"})),
    responses((status = 202, description = "If there is such an account, a mail is on its way."), ForgotPasswordProblems),
)]
pub(super) async fn forgot_password(
    State(app): State<App>,
    caller: Caller,
    ValidJson(body): ValidJson<ForgotPassword>,
) -> ApiResult<StatusCode> {
    account::forgot_password(&app, caller, body).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Set another password
///
/// With the token of a mail, once. All logins of the person end; two-step login stays on.
#[utoipa::path(
    post, path = "/api/v1/auth/password/reset", operation_id = "reset_password", tag = "auth",
    security(()),
    request_body(content = ResetPassword, example = json!({"token": "sbm_q2Zx", "password": "correct horse battery"})),
    responses((status = 204, description = "The password is another. Log in with it."), MailTokenProblems),
)]
pub(super) async fn reset_password(
    State(app): State<App>,
    caller: Caller,
    ValidJson(body): ValidJson<ResetPassword>,
) -> ApiResult<StatusCode> {
    account::reset_password(&app, caller, body).await?;
    Ok(StatusCode::NO_CONTENT)
}
