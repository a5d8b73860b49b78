//! Entity tags (RFC 9110 §8.8.3, §13.1): a caller who has a thing is told that it is as it was, and one who changes it can say that
//! it must be as they saw it.
//!
//! A tag is a digest of the JSON that `GET` answers with, so nothing has to be kept for it, and whatever shows in the answer changes it.

use std::convert::Infallible;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::IntoParams;

use crate::error::{ApiError, ApiResult, Kind};

/// Of what is answered, and for whoever asks again.
const CACHED: HeaderValue = HeaderValue::from_static("private, no-cache");

/// The header as the OpenAPI document lists it.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "a description; the extractor is Known")]
pub struct IfNoneMatch {
    /// The `ETag` of an answer that one has: if it still holds, the answer is 304, without a body.
    #[param(rename = "If-None-Match", required = false, example = "\"q2ZxVb9sT0uYc1dE\"")]
    if_none_match: Option<String>,
}

/// The header as the OpenAPI document lists it.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "a description; the extractor is Expected")]
pub struct IfMatch {
    /// The `ETag` of what one has seen: if it is another by now, nothing is changed, and the answer is 412.
    #[param(rename = "If-Match", required = false, example = "\"q2ZxVb9sT0uYc1dE\"")]
    if_match: Option<String>,
}

/// The tags of a conditional header.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tags {
    Any,
    These(Vec<String>),
}

impl Tags {
    fn read(headers: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let lines = headers.get_all(name);
        let tags: Vec<String> = lines
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .map(|tag| tag.trim().to_owned())
            .filter(|tag| !tag.is_empty())
            .collect();
        lines.iter().next()?;
        Some(if tags == ["*"] { Self::Any } else { Self::These(tags) })
    }
}

/// What a caller of `GET` has already: `If-None-Match`.
#[derive(Debug, Clone)]
pub struct Known(Option<Tags>);

impl<S: Sync> FromRequestParts<S> for Known {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(Tags::read(&parts.headers, &header::IF_NONE_MATCH)))
    }
}

impl Known {
    /// The thing with its tag, or 304 if it is what the caller has.
    ///
    /// # Errors
    /// A defect, if it has no JSON form.
    pub fn or<T: Serialize>(&self, now: &T) -> ApiResult<Response> {
        let body = json_of(now)?;
        let tag = tag_of(&body);
        let same = match &self.0 {
            None => false,
            Some(Tags::Any) => true,
            // The weak comparison: a proxy may have weakened it.
            Some(Tags::These(tags)) => tags.iter().any(|known| known.strip_prefix("W/").unwrap_or(known) == tag),
        };
        let headers = [
            (header::ETAG, HeaderValue::try_from(tag).map_err(|_| ApiError::Defect("a tag is no header"))?),
            (header::CACHE_CONTROL, CACHED),
        ];
        if same {
            return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
        }
        let json = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        Ok((headers, json, body).into_response())
    }
}

/// What a caller of `PATCH` has seen: `If-Match`.
#[derive(Debug, Clone)]
pub struct Expected(Option<Tags>);

impl<S: Sync> FromRequestParts<S> for Expected {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(Tags::read(&parts.headers, &header::IF_MATCH)))
    }
}

impl Expected {
    /// Nothing.
    pub const NOTHING: Self = Self(None);

    /// Whether there is anything to compare: else the thing needn't be read.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Makes sure that the thing, read with its row locked, is what the caller has seen.
    ///
    /// # Errors
    /// `precondition-failed`; a defect, if it has no JSON form.
    pub fn holds<T: Serialize>(&self, now: &T) -> ApiResult<()> {
        let same = match &self.0 {
            None | Some(Tags::Any) => true,
            Some(Tags::These(tags)) => tags.contains(&tag_of(&json_of(now)?)),
        };
        if same { Ok(()) } else { Err(Kind::PreconditionFailed.into()) }
    }
}

fn json_of<T: Serialize>(value: &T) -> ApiResult<Vec<u8>> {
    serde_json::to_vec(value).map_err(|_| ApiError::Defect("an answer has no JSON form"))
}

fn tag_of(json: &[u8]) -> String {
    let digest: [u8; 32] = Sha256::digest(json).into();
    format!("\"{}\"", URL_SAFE_NO_PAD.encode(&digest[..12]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(lines: &[&'static str]) -> Known {
        let lines = lines.iter().map(|line| (header::IF_NONE_MATCH, HeaderValue::from_static(line)));
        Known(Tags::read(&lines.collect(), &header::IF_NONE_MATCH))
    }

    fn expected(lines: &[&'static str]) -> Expected {
        let lines = lines.iter().map(|line| (header::IF_MATCH, HeaderValue::from_static(line)));
        Expected(Tags::read(&lines.collect(), &header::IF_MATCH))
    }

    #[test]
    fn a_thing_is_told_again_unless_one_of_the_tags_is_its_own() {
        assert_eq!(tag_of(b"1"), "\"a4ayc_80_OGda4BO\"");
        for (lines, status) in [
            (&[][..], 200),
            (&["\"other\""], 200),
            (&["a4ayc_80_OGda4BO"], 200),
            (&["\"a4ayc_80_OGda4BO\""], 304),
            (&["W/\"a4ayc_80_OGda4BO\""], 304),
            (&["\"other\" ,\"a4ayc_80_OGda4BO\""], 304),
            (&["\"other\"", "\"a4ayc_80_OGda4BO\""], 304),
            (&["*"], 304),
            (&[""], 200),
        ] {
            let answer = known(lines).or(&1).unwrap();
            assert_eq!(answer.status(), status, "{lines:?}");
            assert_eq!(answer.headers()[header::ETAG], "\"a4ayc_80_OGda4BO\"");
        }
    }

    #[test]
    fn a_change_goes_on_only_if_one_of_the_tags_is_the_thing_s_own_and_strong() {
        for (lines, holds) in [
            (&[][..], true),
            (&["*"], true),
            (&["\"a4ayc_80_OGda4BO\""], true),
            (&["\"other\", \"a4ayc_80_OGda4BO\""], true),
            (&["W/\"a4ayc_80_OGda4BO\""], false),
            (&["\"other\""], false),
            (&[""], false),
        ] {
            assert_eq!(expected(lines).holds(&1).is_ok(), holds, "{lines:?}");
        }
    }
}
