//! Query strings.

use axum::{extract::FromRequestParts, http::request::Parts};
use serde::de::DeserializeOwned;
use shared::problem::FieldError;
use url::form_urlencoded;
use validator::Validate;

use super::json::{self, Refused};
use crate::error::{ApiError, Kind, Refusal};

/// A query string that was read and validated. Parameters that `T` doesn't know are left alone, so one handler can
/// take a page and a filter of its own from the same query.
#[derive(Debug, Clone)]
pub struct ValidQuery<T>(pub T);

impl<T, S> FromRequestParts<S> for ValidQuery<T>
where
    T: DeserializeOwned + Validate,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Ok(Self(read(parts.uri.query().unwrap_or_default())?))
    }
}

fn read<T: DeserializeOwned + Validate>(query: &str) -> Result<T, Refusal> {
    // No column can hold it, and PostgreSQL refuses it as a parameter.
    if let Some((name, _)) = form_urlencoded::parse(query.as_bytes()).find(|(_, value)| value.contains('\0')) {
        return Err(refuse(vec![FieldError {
            pointer: name.into_owned(),
            code: "nul-character".into(),
            detail: "must not contain the character U+0000".into(),
        }]));
    }
    let deserializer = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
    let value: T = serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let Refused { pointer, code, detail } = json::describe(&error.path().clone(), &error.inner().to_string());
        refuse(vec![FieldError { pointer: pointer.trim_start_matches('/').into(), code: code.into(), detail }])
    })?;
    value.validate().map_err(|errors| {
        let mut fields = json::field_errors(&errors);
        for field in &mut fields {
            field.pointer = field.pointer.trim_start_matches('/').into();
        }
        refuse(fields)
    })?;
    Ok(value)
}

fn refuse(errors: Vec<FieldError>) -> Refusal {
    Kind::BadRequest.because("a query parameter can't be read").with_errors(errors)
}
