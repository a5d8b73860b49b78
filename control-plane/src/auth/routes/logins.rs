//! Logging in, staying logged in, logging out.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use shared::{identity::KeySet, ids::LoginId, time::Timestamp};

use crate::{
    auth::{
        Auth,
        caller::Caller,
        cookies,
        dto::{LogIn, LogInCode, Login, RefreshToken, SecondFactorRequired, SwitchTenant, Tokens},
        logins::{self as service, LoggedIn},
        scopes,
    },
    error::{ApiResult, Kind},
    extract::{
        PathId, ValidJson, ValidQuery,
        page::{Page, PageQuery},
    },
    idempotency::{self, IdempotencyKey, Idempotent, Reply},
    openapi::{BODY, BY_ID, CALLER, IDEMPOTENT, ReadProblems, THROTTLED, problem_responses},
    state::App,
};

/// The tokens as an answer: the refresh token in the body, or in a cookie.
fn answer(mut tokens: Tokens, in_cookie: bool) -> ApiResult<Response> {
    let cookie = match &tokens.refresh_token {
        Some(token) if in_cookie => Some(cookies::set(token, tokens.refresh_expires_at.since(Timestamp::now()))?),
        _ => None,
    };
    if in_cookie {
        tokens.refresh_token = None;
    }
    let mut response = Json(tokens).into_response();
    if let Some(cookie) = cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

problem_responses!(
    LogInProblems = BODY,
    THROTTLED,
    BY_ID,
    &[Kind::InvalidCredentials, Kind::CrossSite, Kind::NoAccount]
);

/// Log in
///
/// With e-mail address and password. If two-step login is on, the answer is 202, and a code is asked for at
/// `POST /api/v1/auth/login/code`. A browser sends `cookie: true`: then the refresh token is set as an `HttpOnly` cookie, and
/// only pages of the same origin may use it. A login is to one account: `tenant_id` chooses among those that the person belongs to.
#[utoipa::path(
    post, path = "/api/v1/auth/login", operation_id = "log_in", tag = "auth",
    security(()),
    request_body(content = LogIn, example = json!({"email": "ada@example.com", "password": "correct horse battery"})),
    responses(
        (status = 200, description = "The tokens of the login.", body = Tokens),
        (status = 202, description = "The password is right; a code is needed too.", body = SecondFactorRequired),
        LogInProblems,
    ),
)]
pub(super) async fn log_in(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    ValidJson(body): ValidJson<LogIn>,
) -> ApiResult<Response> {
    let in_cookie = body.cookie;
    if in_cookie {
        cookies::require_same_origin(&headers)?;
    }
    match service::log_in(&app, caller, body).await? {
        LoggedIn::Tokens(tokens) => answer(*tokens, in_cookie),
        LoggedIn::CodeRequired(challenge) => Ok((StatusCode::ACCEPTED, Json(challenge)).into_response()),
    }
}

problem_responses!(
    LogInCodeProblems = BODY,
    THROTTLED,
    BY_ID,
    &[Kind::Unauthenticated, Kind::WrongCode, Kind::CrossSite, Kind::NoAccount]
);

/// Log in: second step
///
/// With a code of the device, or a recovery code. Each works once. A challenge lives for five minutes and five codes.
#[utoipa::path(
    post, path = "/api/v1/auth/login/code", operation_id = "log_in_with_code", tag = "auth",
    security(()),
    request_body(content = LogInCode, example = json!({"challenge_token": "sbc_q2Zx", "code": "492039"})),
    responses((status = 200, description = "The tokens of the login.", body = Tokens), LogInCodeProblems),
)]
pub(super) async fn log_in_with_code(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    ValidJson(body): ValidJson<LogInCode>,
) -> ApiResult<Response> {
    let in_cookie = body.cookie;
    if in_cookie {
        cookies::require_same_origin(&headers)?;
    }
    answer(service::log_in_with_code(&app, caller, body).await?, in_cookie)
}

problem_responses!(RefreshProblems = BODY, &[Kind::Unauthenticated, Kind::CrossSite]);

/// Stay logged in
///
/// Exchanges a refresh token, once, for the next pair of tokens. The same answer is given again for ten seconds; any later
/// use of the same token, for as long as the login lives, ends the login. Without a token in the body, the one of the cookie is meant, and the next is set as a
/// cookie again.
#[utoipa::path(
    post, path = "/api/v1/auth/refresh", operation_id = "refresh_tokens", tag = "auth",
    security(()),
    request_body(content = RefreshToken, example = json!({"refresh_token": "sbr_q2Zx"})),
    responses((status = 200, description = "The next pair of tokens.", body = Tokens), RefreshProblems),
)]
pub(super) async fn refresh_tokens(
    State(app): State<App>,
    headers: HeaderMap,
    ValidJson(body): ValidJson<RefreshToken>,
) -> ApiResult<Response> {
    let (token, in_cookie) = match body.refresh_token {
        Some(token) => (token.into_secret(), false),
        None => (cookies::read(&headers)?, true),
    };
    answer(service::refresh(&app, token).await?, in_cookie)
}

/// Log out
///
/// Ends the login of this refresh token and all its access tokens. A token that isn't known is answered the same. Without a
/// token in the body, the one of the cookie is meant, and the cookie is removed.
#[utoipa::path(
    post, path = "/api/v1/auth/logout", operation_id = "log_out", tag = "auth",
    security(()),
    request_body(content = RefreshToken, example = json!({"refresh_token": "sbr_q2Zx"})),
    responses((status = 204, description = "The login has ended."), RefreshProblems),
)]
pub(super) async fn log_out(
    State(app): State<App>,
    headers: HeaderMap,
    ValidJson(body): ValidJson<RefreshToken>,
) -> ApiResult<Response> {
    if let Some(token) = body.refresh_token {
        service::log_out(&app, &token.into_secret()).await?;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    service::log_out(&app, &cookies::read(&headers)?).await?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookies::removed()?)]).into_response())
}

problem_responses!(SwitchProblems = CALLER, BODY, BY_ID, &[Kind::CrossSite]);

/// Go to another account
///
/// Of those that the person belongs to (`GET /api/v1/me/tenants`). The login that asks ends, with its tokens, and one to the other
/// account begins; it ends when the first would have.
#[utoipa::path(
    post, path = "/api/v1/auth/switch", operation_id = "switch_tenant", tag = "auth",
    security(("person" = [])),
    request_body(content = SwitchTenant, example = json!({"tenant_id": "ten_01h455vb4pex5vsknk084sn02q"})),
    responses((status = 200, description = "The tokens of the other login.", body = Tokens), SwitchProblems),
)]
pub(super) async fn switch_tenant(
    State(app): State<App>,
    auth: Auth<scopes::Oneself>,
    caller: Caller,
    headers: HeaderMap,
    ValidJson(body): ValidJson<SwitchTenant>,
) -> ApiResult<Response> {
    if body.cookie {
        cookies::require_same_origin(&headers)?;
    }
    answer(service::switch(&app, caller, auth.person()?, &body.tenant_id).await?, body.cookie)
}

/// List logins
///
/// The person's logins that go on, in every tenant, the newest first: roughly where each was made, and with what.
#[utoipa::path(
    get, path = "/api/v1/auth/logins", operation_id = "list_logins", tag = "auth",
    security(("person" = [])),
    params(PageQuery),
    responses((status = 200, description = "One page of logins.", body = Page<Login>), ReadProblems),
)]
pub(super) async fn list_logins(
    State(app): State<App>,
    auth: Auth<scopes::People>,
    ValidQuery(page): ValidQuery<PageQuery>,
) -> ApiResult<Json<Page<Login>>> {
    let person = auth.person()?;
    Ok(Json(service::list(app.db.read(), person.id, person.login, &page).await?))
}

problem_responses!(EndLoginProblems = CALLER, BY_ID, IDEMPOTENT);

/// End a login
///
/// Its refresh token and its access tokens don't work any more. It may be the one that asks.
#[utoipa::path(
    delete, path = "/api/v1/auth/logins/{id}", operation_id = "end_login", tag = "auth",
    security(("person" = [])),
    params(("id" = LoginId, Path, description = "The login's id."), IdempotencyKey),
    responses((status = 204, description = "The login has ended."), EndLoginProblems),
)]
pub(super) async fn end_login(
    State(app): State<App>,
    auth: Auth<scopes::Oneself>,
    PathId(id): PathId<LoginId>,
    idempotent: Idempotent,
) -> ApiResult<Response> {
    let person = auth.person()?;
    idempotent
        .run(&app, idempotency::DAY, async |tx| {
            service::end(tx, person.id, &id).await?;
            Ok(Reply::no_content())
        })
        .await
}

problem_responses!(JwksProblems = &[]);

/// Get the public keys
///
/// What access tokens are verified with (RFC 7517). Ask again when a token names a key that isn't here: keys are rotated.
#[utoipa::path(
    get, path = "/.well-known/jwks.json", operation_id = "get_jwks", tag = "auth",
    security(()),
    responses((status = 200, description = "The keys, the newest first.", body = KeySet), JwksProblems),
)]
pub(super) async fn get_jwks(State(app): State<App>) -> Json<KeySet> {
    Json(app.keyring.key_set())
}
