//! `/api/v1/auth/…`, `/api/v1/me`, and the public keys.

use axum::{Json, extract::State, http::StatusCode, response::Response};
use shared::{identity::KeySet, ids::UserId};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Actor, Auth, Role,
    dto::{LogIn, Me, RefreshToken, SignUp, Tokens, UpdateMe},
    scopes, service,
};
use crate::{
    error::{ApiError, ApiResult, Kind},
    extract::ValidJson,
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    openapi::{BODY, CALLER, IDEMPOTENT, ReadProblems, WRITE, problem_responses},
    state::App,
};

/// The routes of people and their logins.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(sign_up))
        .routes(routes!(log_in))
        .routes(routes!(refresh_tokens))
        .routes(routes!(log_out))
        .routes(routes!(get_me, update_me))
        .routes(routes!(get_jwks))
}

problem_responses!(SignUpProblems = BODY, &[Kind::EmailTaken]);

/// Sign up
///
/// Makes an account with its owner, and logs the owner in.
#[utoipa::path(
    post, path = "/api/v1/auth/signup", operation_id = "sign_up", tag = "auth",
    security(()),
    request_body(content = SignUp, example = json!({
        "email": "ada@example.com", "password": "correct horse battery", "name": "Ada Lovelace", "tenant_name": "Acme",
    })),
    responses((status = 201, description = "The account is made; these are its owner's tokens.", body = Tokens), SignUpProblems),
)]
async fn sign_up(State(app): State<App>, ValidJson(body): ValidJson<SignUp>) -> ApiResult<(StatusCode, Json<Tokens>)> {
    Ok((StatusCode::CREATED, Json(service::sign_up(&app, body).await?)))
}

problem_responses!(LogInProblems = BODY, &[Kind::InvalidCredentials]);

/// Log in
///
/// With e-mail address and password.
#[utoipa::path(
    post, path = "/api/v1/auth/login", operation_id = "log_in", tag = "auth",
    security(()),
    request_body(content = LogIn, example = json!({"email": "ada@example.com", "password": "correct horse battery"})),
    responses((status = 200, description = "The tokens of the login.", body = Tokens), LogInProblems),
)]
async fn log_in(State(app): State<App>, ValidJson(body): ValidJson<LogIn>) -> ApiResult<Json<Tokens>> {
    Ok(Json(service::log_in(&app, body).await?))
}

problem_responses!(RefreshProblems = BODY, &[Kind::Unauthenticated]);

/// Stay logged in
///
/// Exchanges a refresh token, once, for the next pair of tokens. The same answer is given again for ten seconds; a later
/// use of the same token ends the login.
#[utoipa::path(
    post, path = "/api/v1/auth/refresh", operation_id = "refresh_tokens", tag = "auth",
    security(()),
    request_body(content = RefreshToken, example = json!({"refresh_token": "sbr_q2Zx"})),
    responses((status = 200, description = "The next pair of tokens.", body = Tokens), RefreshProblems),
)]
async fn refresh_tokens(State(app): State<App>, ValidJson(body): ValidJson<RefreshToken>) -> ApiResult<Json<Tokens>> {
    Ok(Json(service::refresh(&app, body.refresh_token.into_secret()).await?))
}

problem_responses!(LogOutProblems = BODY);

/// Log out
///
/// Ends the login of this refresh token and all its access tokens. A token that isn't known is answered the same.
#[utoipa::path(
    post, path = "/api/v1/auth/logout", operation_id = "log_out", tag = "auth",
    security(()),
    request_body(content = RefreshToken, example = json!({"refresh_token": "sbr_q2Zx"})),
    responses((status = 204, description = "The login has ended."), LogOutProblems),
)]
async fn log_out(State(app): State<App>, ValidJson(body): ValidJson<RefreshToken>) -> ApiResult<StatusCode> {
    service::log_out(&app, &body.refresh_token.into_secret()).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn person(auth: &Auth<scopes::People>) -> ApiResult<(&UserId, Role)> {
    match &auth.principal.actor {
        Actor::User { user_id, role, .. } => Ok((user_id, *role)),
        Actor::Key { .. } => Err(ApiError::Defect("a key passed for a person")),
    }
}

/// Get oneself
///
/// The person who is logged in, and the tenant they are logged in to.
#[utoipa::path(
    get, path = "/api/v1/me", operation_id = "get_me", tag = "tenant",
    security(("person" = [])),
    responses((status = 200, description = "The person.", body = Me), ReadProblems),
)]
async fn get_me(State(app): State<App>, auth: Auth<scopes::People>) -> ApiResult<Json<Me>> {
    let (user, role) = person(&auth)?;
    Ok(Json(service::me(app.db.read(), auth.tenant(), user, role).await?))
}

problem_responses!(UpdateMeProblems = CALLER, WRITE, BODY, IDEMPOTENT);

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
async fn update_me(
    State(app): State<App>,
    auth: Auth<scopes::People>,
    idempotent: Idempotent,
    ValidJson(body): ValidJson<UpdateMe>,
) -> ApiResult<Response> {
    let (user, role) = person(&auth)?;
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            service::rename(tx, user, &body.name).await?;
            Reply::json(StatusCode::OK, &service::me(tx, auth.tenant(), user, role).await?)
        })
        .await
}

problem_responses!(JwksProblems = &[]);

/// Get the public keys
///
/// What access tokens are verified with (RFC 7517).
#[utoipa::path(
    get, path = "/.well-known/jwks.json", operation_id = "get_jwks", tag = "auth",
    security(()),
    responses((status = 200, description = "The keys, the newest first.", body = KeySet), JwksProblems),
)]
async fn get_jwks(State(app): State<App>) -> Json<KeySet> {
    Json(app.keyring.key_set().clone())
}
