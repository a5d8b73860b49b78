//! Errors as callers see them: RFC 9457 problem documents.
//!
//! Both planes answer every error with one of these. `type` is a stable slug, so that programs can tell errors
//! apart without reading English; `docs/errors.md` explains each.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// An error, as [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) puts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A stable slug URI, such as `/problems/session-not-connected`.
    #[serde(rename = "type")]
    #[schema(example = "/problems/not-found")]
    pub kind: String,
    /// The same for every occurrence of this type.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The `X-Request-Id` of the request that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// One entry for each field that was refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// One field that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// A JSON pointer (RFC 6901) into the request body, or the name of the parameter.
    #[schema(example = "/to")]
    pub pointer: String,
    /// A stable word, such as `length` or `phone-number`.
    pub code: String,
    /// What is expected.
    pub detail: String,
}
