//! Records around every operation that may change something.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, HttpBody, to_bytes},
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{Method, Response as HttpResponse, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use shared::problem::Problem;
use utoipa::openapi::OpenApi;

use super::{
    entity::{ActorType, AuditResult, Phase},
    entry::{Answered, ENTRY, Entry},
    operations::{Access, Operation, Operations, resource},
};
use crate::{
    auth::{self, Actor},
    error::{ApiError, Kind},
    extract::ClientAddress,
    operators::Operator,
    request_context::RequestId,
    state::App,
};

/// The longest answer in which the id of what was made is looked for, in bytes.
const LONGEST_ANSWER: u64 = 64 * 1024;

/// Puts the record around the routes that a document describes.
pub(crate) fn around(router: Router, app: &App, document: &OpenApi) -> Router {
    let operations = Arc::new(Operations::of(document));
    router.layer(middleware::from_fn_with_state((app.clone(), operations), recorded))
}

async fn recorded(State((app, operations)): State<(App, Arc<Operations>)>, request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return next.run(request).await;
    }
    let matched = request.extensions().get::<MatchedPath>();
    let Some(operation) = matched.and_then(|path| operations.find(request.method(), path.as_str())) else {
        return next.run(request).await;
    };
    let (parts, body) = request.into_parts();
    let address = ClientAddress::of_request(&parts, &app).coarse();
    let request_id = parts.extensions.get::<RequestId>().map(|id| id.as_str().to_owned());
    let entry = Arc::new(Entry::new(&operation.id, request_id, Some(address)));
    if let Some(resource) = operation.resource(parts.uri.path()) {
        entry.about(resource);
    }
    let request = Request::from_parts(parts, body);
    ENTRY.scope(Arc::clone(&entry), follow(app, &operation, &entry, request, next)).await
}

async fn follow(app: App, operation: &Operation, entry: &Entry, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let known = match operation.access {
        Access::Open => Ok(true),
        Access::Tenant => match auth::identify(&mut parts, &app).await {
            Ok(None) => Ok(false),
            Ok(Some(principal)) => {
                entry.of(principal.tenant.id());
                match &principal.actor {
                    Actor::User { user_id, .. } => entry.by(ActorType::User, Some(user_id.as_str())),
                    Actor::Key { key_id, .. } => entry.by(ActorType::Key, Some(key_id.as_str())),
                }
                Ok(true)
            }
            Err(error) => Err(error),
        },
        Access::Operator => Operator::from_request_parts(&mut parts, &app).await.map(|operator| {
            entry.by(ActorType::Operator, Some(operator.id.as_str()));
            true
        }),
    };
    let known = match known {
        Ok(known) => known,
        // The operation says what is wrong with the credentials. Some are known for whose they are all the same.
        Err(ApiError::Refused(_)) => entry.is_by_somebody(),
        Err(outage) => return outage.into_response(),
    };
    let request = Request::from_parts(parts, body);
    if !known {
        return next.run(request).await;
    }
    if !operation.in_one_row && !app.audit.write(entry.fact(Phase::Intent, Answered::default())).await {
        return Kind::Unavailable.because("this could not be recorded, so it was not done").into_response();
    }
    let response = next.run(request).await;
    let status = response.status();
    if operation.in_one_row && entry.is_accepted() && status.is_success() {
        return response;
    }
    let response =
        if status.is_success() && operation.is_named_in_the_answer() { named(entry, response).await } else { response };
    let problem = response.extensions().get::<Problem>();
    let answered = Answered {
        result: Some(AuditResult::of_status(status.as_u16())),
        status: Some(status.as_u16()),
        problem: problem.and_then(|problem| problem.kind.rsplit('/').next()).map(str::to_owned),
        replayed: response.headers().contains_key("idempotent-replayed"),
    };
    let phase = if operation.in_one_row { Phase::Sole } else { Phase::Outcome };
    app.audit.write_soon(entry.fact(phase, answered)).await;
    response
}

/// All that is looked at of an answer.
#[derive(Deserialize)]
struct Named {
    id: String,
}

/// Takes over the id of what was made, if the answer has one.
async fn named(entry: &Entry, response: Response) -> Response {
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    // Known at once for what is in memory already, which is what handlers answer with.
    let is_short = response.body().size_hint().upper().is_some_and(|bytes| bytes <= LONGEST_ANSWER);
    if !is_json || !is_short {
        return response;
    }
    let (parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, usize::MAX).await else {
        return Kind::Internal.because("the answer was lost").into_response();
    };
    if let Some(resource) = serde_json::from_slice::<Named>(&bytes).ok().and_then(|named| resource(&named.id)) {
        entry.about(resource);
    }
    HttpResponse::from_parts(parts, Body::from(bytes))
}
