//! Orders about sessions.

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Path, Request, State, rejection::JsonRejection},
    http::{StatusCode, request::Parts},
};
use serde::{Serialize, de::DeserializeOwned};
use shared::{
    ids::SessionId,
    wire::{
        send::{SendBatch, SendResults},
        session::{PutSession, Report, SessionView},
    },
};

use super::{Api, problem::Refusal};
use crate::supervisor::{PutError, SendRefused};

/// The session that a path names. What isn't an id is nobody's.
pub struct Named(SessionId);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        Path::from_request_parts(parts, state).await.map(|Path(id)| Self(id)).map_err(|_| Refusal::not_found())
    }
}

/// A JSON body whose refusal is a problem document.
pub struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::BytesRejection(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(Refusal::too_large())
            }
            // What was wrong may quote what was sent.
            Err(_) => Err(Refusal::malformed()),
        }
    }
}

/// Every session on this worker.
#[derive(Serialize)]
pub struct Sessions {
    sessions: Vec<Report>,
}

/// Runs a session as of this generation.
pub async fn put(
    State(api): State<Api>,
    Named(id): Named,
    Body(order): Body<PutSession>,
) -> Result<Json<SessionView>, Refusal> {
    if order.session_id != id {
        return Err(Refusal::malformed());
    }
    api.supervisor.put(order).map(Json).map_err(|error| match error {
        PutError::Network => Refusal::network_mismatch(),
        PutError::Key => Refusal::malformed(),
        PutError::Generation(held) => Refusal::generation_mismatch(Some(held)),
        PutError::Full => Refusal::full(),
        PutError::Busy => Refusal::busy(),
    })
}

/// What a session is.
pub async fn show(State(api): State<Api>, Named(id): Named) -> Result<Json<SessionView>, Refusal> {
    api.supervisor.view(&id).map(Json).ok_or(Refusal::not_found())
}

/// What every session is.
pub async fn list(State(api): State<Api>) -> Json<Sessions> {
    Json(Sessions { sessions: api.supervisor.reports() })
}

/// Sends a batch of messages.
pub async fn send(
    State(api): State<Api>,
    Named(id): Named,
    Body(batch): Body<SendBatch>,
) -> Result<Json<SendResults>, Refusal> {
    api.supervisor.send(&id, batch).await.map(Json).map_err(|refused| match refused {
        SendRefused::Generation(held) => Refusal::generation_mismatch(held),
        SendRefused::Batch(_) => Refusal::malformed(),
    })
}
