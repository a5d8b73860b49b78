//! What this API refuses, as problem documents.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use shared::{
    problem::{MEDIA_TYPE, Problem},
    wire::session::GenerationMismatch,
};

/// A refusal.
pub struct Refusal {
    status: StatusCode,
    slug: &'static str,
    title: &'static str,
    generation: Option<GenerationMismatch>,
}

#[derive(Serialize)]
struct Body {
    #[serde(flatten)]
    problem: Problem,
    #[serde(flatten)]
    generation: Option<GenerationMismatch>,
}

impl Refusal {
    const fn new(status: StatusCode, slug: &'static str, title: &'static str) -> Self {
        Self { status, slug, title, generation: None }
    }

    /// No such thing.
    pub const fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is nothing here")
    }

    /// No such method.
    pub const fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "This method is not for this path")
    }

    /// Our fault.
    pub fn internal() -> Response {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The worker failed").into_response()
    }

    /// No token of the control plane for this worker.
    pub const fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "A token of the control plane for this worker is needed")
    }

    /// Not what the protocol says.
    pub const fn malformed() -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "malformed", "The request can't be read")
    }

    /// Too many bytes.
    pub const fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large")
    }

    /// The other network's session.
    pub const fn network_mismatch() -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "network-mismatch", "This worker speaks to another network")
    }

    /// No room.
    pub const fn full() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "worker-full", "This worker takes no more sessions")
    }

    /// Not now.
    pub const fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "worker-busy", "This worker can't take the order now")
    }

    /// Not ready.
    pub const fn not_ready() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "This worker is not ready")
    }

    /// Nothing to show.
    pub const fn no_metrics() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no-metrics", "This process shows its metrics elsewhere")
    }

    /// Linked, or without a connection.
    pub const fn not_pairing() -> Self {
        Self::new(StatusCode::CONFLICT, "not-pairing", "The session is not being linked")
    }

    /// Nothing of this kind is asked for.
    pub const fn not_asked() -> Self {
        Self::new(StatusCode::CONFLICT, "not-asked", "WhatsApp asks for nothing of this kind")
    }

    /// WhatsApp said no.
    pub const fn link_refused() -> Self {
        Self::new(StatusCode::CONFLICT, "link-refused", "WhatsApp refused")
    }

    /// WhatsApp said not now.
    pub const fn link_throttled() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "link-throttled", "WhatsApp throttles codes for this number")
    }

    /// WhatsApp said nothing.
    pub const fn no_answer() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "no-answer", "WhatsApp did not answer")
    }

    /// Another generation than the one asked for.
    pub const fn generation_mismatch(generation: Option<i64>) -> Self {
        Self {
            generation: Some(GenerationMismatch { generation }),
            ..Self::new(StatusCode::CONFLICT, "generation-mismatch", "The session is at another generation here")
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: format!("/problems/{}", self.slug),
            title: self.title.to_owned(),
            status: self.status.as_u16(),
            detail: None,
            request_id: None,
            errors: Vec::new(),
        };
        let body = Json(Body { problem, generation: self.generation });
        (self.status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response()
    }
}
