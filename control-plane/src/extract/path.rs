//! Ids in paths.

use std::{fmt, str::FromStr};

use axum::{
    extract::{FromRequestParts, RawPathParams},
    http::request::Parts,
};

use crate::error::{ApiError, Kind};

/// The path's parameter `id`, as an id of one kind. A malformed one, or one of another kind, is a thing that doesn't
/// exist.
#[derive(Debug, Clone)]
pub struct PathId<T>(pub T);

impl<T, S> FromRequestParts<S> for PathId<T>
where
    T: FromStr + fmt::Debug,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state).await.map_err(|_| Kind::NotFound)?;
        let text = params.iter().find(|(name, _)| *name == "id").map(|(_, value)| value).ok_or(Kind::NotFound)?;
        Ok(Self(text.parse().map_err(|_| Kind::NotFound)?))
    }
}
