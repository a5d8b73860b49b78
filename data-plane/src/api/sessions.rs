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
        linking::{PairingCode, PairingCodeOrder, PasskeyOrder},
        send::{SendBatch, SendResults},
        session::{PutSession, Report, SessionView},
    },
};

use super::{Api, problem::Refusal};
use crate::{
    session::linking::LinkingError,
    supervisor::{LinkRefused, PutError, SendRefused},
};

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

/// Links by a code that is typed into the phone.
pub async fn pairing_code(
    State(api): State<Api>,
    Named(id): Named,
    Body(order): Body<PairingCodeOrder>,
) -> Result<Json<PairingCode>, Refusal> {
    api.supervisor.pairing_code(&id, &order).await.map(Json).map_err(not_linked)
}

/// Hands WhatsApp the answer of the account's owner.
pub async fn answer_passkey(
    State(api): State<Api>,
    Named(id): Named,
    Body(order): Body<PasskeyOrder>,
) -> Result<StatusCode, Refusal> {
    api.supervisor.answer_passkey(&id, order).await.map(|()| StatusCode::NO_CONTENT).map_err(not_linked)
}

fn not_linked(refused: LinkRefused) -> Refusal {
    match refused {
        LinkRefused::Generation(held) => Refusal::generation_mismatch(held),
        LinkRefused::Linking(LinkingError::NotPairing) => Refusal::not_pairing(),
        LinkRefused::Linking(LinkingError::NotAsked) => Refusal::not_asked(),
        LinkRefused::Linking(LinkingError::Refused) => Refusal::link_refused(),
        LinkRefused::Linking(LinkingError::Throttled) => Refusal::link_throttled(),
        LinkRefused::Linking(LinkingError::NoAnswer) => Refusal::no_answer(),
    }
}
