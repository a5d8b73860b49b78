//! JSON bodies.

use std::sync::{Arc, OnceLock};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{HeaderMap, HeaderValue, header},
};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Number, Value, error::Category};
use serde_path_to_error::{Path, Segment};
use sha2::{Digest, Sha256};
use shared::problem::FieldError;
use validator::{Validate, ValidationErrors, ValidationErrorsKind};

use super::{objects::Objects, unambiguous::Unambiguous};
use crate::{
    error::{ApiError, Kind, Refusal},
    state::App,
};

/// A JSON body that was read and validated.
#[derive(Debug, Clone)]
pub struct ValidJson<T>(pub T);

/// The digest of a request's canonical body, filled in when the body is read; what an idempotency key is compared by.
#[derive(Debug, Clone, Default)]
pub(crate) struct BodyDigest(Arc<OnceLock<[u8; 32]>>);

impl BodyDigest {
    /// The digest, or nothing if no body was read.
    pub(crate) fn get(&self) -> Option<&[u8; 32]> {
        self.0.get()
    }
}

impl<T> FromRequest<App> for ValidJson<T>
where
    T: DeserializeOwned + Validate,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let limit = app.config.http.body_limit;
        if is_compressed(&parts.headers) {
            return Err(Kind::UnsupportedMediaType
                .because("it must not be compressed")
                .with_header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))
                .into());
        }
        let bytes = read(&parts.headers, body, limit).await?;
        if !is_json(&parts.headers) {
            return Err(Kind::UnsupportedMediaType.into());
        }
        let value = serde_json::from_slice::<Unambiguous>(&bytes).map_err(|error| unreadable(&error))?.0;
        drop(bytes);
        refuse_nul(&value)?;
        if let Some(digest) = parts.extensions.get::<BodyDigest>() {
            let _first = digest.0.get_or_init(|| digest_of(&value));
        }
        let value = with_whole_numbers(value);
        let read: T = serde_path_to_error::deserialize(Objects(value)).map_err(|error| {
            let Refused { pointer, code, detail } = describe(error.path(), &error.inner().to_string());
            Refusal::field(&pointer, code, &detail)
        })?;
        read.validate().map_err(|errors| Refusal::from(Kind::Validation).with_errors(field_errors(&errors)))?;
        Ok(Self(read))
    }
}

async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Refusal> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<usize>().ok());
    // What comes of it all the same is read and thrown away by the layer that drains.
    let too_large = || Kind::BodyTooLarge.because(format!("the limit is {limit} bytes"));
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(limit));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| Kind::BadRequest.because("the request body ended early"))?;
        if chunk.len() > limit - bytes.len() {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

fn is_compressed(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_ENCODING).iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Where it can't be read, and never what stands there.
fn unreadable(error: &serde_json::Error) -> Refusal {
    let place = format!("line {}, column {}", error.line(), error.column());
    Kind::MalformedJson.because(match error.classify() {
        // Anything is a value, so the one complaint about data is ours.
        Category::Data => format!("{place}: a name that the object has already"),
        _ if error.line() == 1 && error.column() == 0 => "the body is empty".to_owned(),
        _ => place,
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(media_type) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Writes `1.0` as `1`: JSON and its schemas know one kind of number, and an integer is one without a fraction.
fn with_whole_numbers(value: Value) -> Value {
    /// Up to here every whole number of a double is one integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => {
            let whole =
                number.as_f64().filter(|double| number.is_f64() && double.fract() == 0.0 && double.abs() <= EXACT);
            Value::Number(whole.and_then(integer).unwrap_or(number))
        }
        Value::Array(items) => items.into_iter().map(with_whole_numbers).collect(),
        Value::Object(map) => map.into_iter().map(|(key, item)| (key, with_whole_numbers(item))).collect(),
        other => other,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "whole, and no larger than what a double holds exactly")]
fn integer(whole: f64) -> Option<Number> {
    Some((whole as i64).into())
}

/// No column can hold the character, and PostgreSQL refuses it as a parameter.
fn refuse_nul(value: &Value) -> Result<(), Refusal> {
    fn find(value: &Value, pointer: &str) -> Option<String> {
        match value {
            Value::String(text) => text.contains('\0').then(|| pointer.to_owned()),
            Value::Array(items) => {
                items.iter().enumerate().find_map(|(index, item)| find(item, &format!("{pointer}/{index}")))
            }
            Value::Object(map) => map.iter().find_map(|(key, item)| {
                if key.contains('\0') {
                    return Some(pointer.to_owned());
                }
                find(item, &format!("{pointer}/{}", escaped(key)))
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) => None,
        }
    }
    find(value, "").map_or(Ok(()), |pointer| {
        Err(Refusal::field(&pointer, "nul-character", "must not contain the character U+0000"))
    })
}

/// The same for two bodies that say the same, however they are spaced and ordered.
fn digest_of(value: &Value) -> [u8; 32] {
    fn feed(value: &Value, hash: &mut Sha256) {
        match value {
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_unstable_by_key(|(key, _)| *key);
                hash.update(b"{");
                hash.update((entries.len() as u64).to_be_bytes());
                for (key, item) in entries {
                    hash.update((key.len() as u64).to_be_bytes());
                    hash.update(key);
                    feed(item, hash);
                }
            }
            Value::Array(items) => {
                hash.update(b"[");
                hash.update((items.len() as u64).to_be_bytes());
                for item in items {
                    feed(item, hash);
                }
            }
            Value::String(text) => {
                hash.update(b"\"");
                hash.update((text.len() as u64).to_be_bytes());
                hash.update(text);
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                let text = value.to_string();
                hash.update(b"=");
                hash.update((text.len() as u64).to_be_bytes());
                hash.update(text);
            }
        }
    }
    let mut hash = Sha256::new();
    feed(value, &mut hash);
    hash.finalize().into()
}

/// One field that didn't deserialize.
pub(super) struct Refused {
    /// A JSON pointer.
    pub(super) pointer: String,
    /// A stable word.
    pub(super) code: &'static str,
    /// What is expected.
    pub(super) detail: String,
}

/// Tells what serde expected without what it found: that is the caller's own value, and answers get logged.
pub(super) fn describe(path: &Path, message: &str) -> Refused {
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
            Segment::Map { key } | Segment::Enum { variant: key } => pointer.push_str(&format!("/{}", escaped(key))),
            Segment::Unknown => {}
        }
    }
    let quoted = || message.split('`').nth(1).unwrap_or_default();
    let expected = || message.rsplit_once(", expected ").map(|(_, expected)| expected);
    if message.starts_with("missing field") || message.starts_with("unknown field") {
        let field = quoted();
        if !pointer.ends_with(&format!("/{field}")) {
            pointer.push_str(&format!("/{field}"));
        }
    }
    if message.starts_with("missing field") {
        return Refused { pointer, code: "missing", detail: "is required".into() };
    }
    if message.starts_with("unknown field") {
        return Refused {
            pointer,
            code: "unknown-field",
            detail: expected().map_or_else(|| "is not known here".into(), |known| format!("known here: {known}")),
        };
    }
    if message.starts_with("unknown variant") {
        return Refused {
            pointer,
            code: "choice",
            detail: expected().map_or_else(|| "is not one of the choices".into(), |known| format!("must be {known}")),
        };
    }
    if message.starts_with("invalid type") || message.starts_with("invalid value") {
        return Refused {
            pointer,
            code: "type",
            detail: expected()
                .map_or_else(|| "is of another type".into(), |known| format!("must be {}", in_words(known))),
        };
    }
    if message.starts_with("invalid length") {
        return Refused { pointer, code: "length", detail: "has the wrong number of items".into() };
    }
    // The sentences of our own types ("not a valid ses id"), and those of the standard library's numbers.
    Refused { pointer, code: "format", detail: message.split('`').next().unwrap_or_default().trim().to_owned() }
}

/// What serde expected, in words of JSON instead of Rust.
fn in_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, not below 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    }
}

/// The validator's findings, in the order of their pointers.
pub(crate) fn field_errors(errors: &ValidationErrors) -> Vec<FieldError> {
    fn walk(errors: &ValidationErrors, prefix: &str, out: &mut Vec<FieldError>) {
        for (field, kind) in errors.errors() {
            let pointer = if field == "__all__" {
                prefix.to_owned()
            } else {
                format!("{prefix}/{}", escaped(&field.replace("r#", "")))
            };
            match kind {
                ValidationErrorsKind::Field(found) => out.extend(found.iter().map(|error| FieldError {
                    pointer: pointer.clone(),
                    code: error.code.replace('_', "-"),
                    detail: error.message.as_ref().map_or_else(|| bounds(error), ToString::to_string),
                })),
                ValidationErrorsKind::Struct(inner) => walk(inner, &pointer, out),
                ValidationErrorsKind::List(items) => {
                    for (index, inner) in items {
                        walk(inner, &format!("{pointer}/{index}"), out);
                    }
                }
            }
        }
    }
    let mut out = Vec::new();
    walk(errors, "", &mut out);
    out.sort_by(|a, b| (&a.pointer, &a.code).cmp(&(&b.pointer, &b.code)));
    out
}

/// A sentence from the validator's own parameters, of which `value` is the caller's.
fn bounds(error: &validator::ValidationError) -> String {
    let name = match error.code.as_ref() {
        "length" => "its length",
        "range" => "it",
        "email" => return "must be an e-mail address".into(),
        "url" => return "must be a URL".into(),
        _ => return "is not valid".into(),
    };
    match (error.params.get("min"), error.params.get("max"), error.params.get("equal")) {
        (_, _, Some(equal)) => format!("{name} must be {equal}"),
        (Some(min), Some(max), None) => format!("{name} must be from {min} to {max}"),
        (Some(min), None, None) => format!("{name} must be at least {min}"),
        (None, Some(max), None) => format!("{name} must be at most {max}"),
        (None, None, None) => "is not valid".into(),
    }
}

/// A key as a reference token of a JSON pointer (RFC 6901 §3).
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize, Validate)]
    struct Inner {
        #[validate(length(min = 1, max = 3))]
        name: String,
    }

    #[derive(Debug, Deserialize, Validate)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[validate(nested)]
        items: Vec<Inner>,
        #[validate(range(min = 1, max = 9))]
        count: u8,
    }

    fn refused(value: Value) -> Refused {
        let error = serde_path_to_error::deserialize::<_, Outer>(value).unwrap_err();
        describe(error.path(), &error.inner().to_string())
    }

    #[test]
    fn a_wrong_type_is_told_by_its_pointer_and_without_its_value() {
        let found = refused(json!({"items": [{"name": "a"}, {"name": 424_242}], "count": 1}));
        assert_eq!((found.pointer.as_str(), found.code), ("/items/1/name", "type"));
        assert!(!found.detail.contains("424242"), "{}", found.detail);
        let found = refused(json!({"items": []}));
        assert_eq!((found.pointer.as_str(), found.code), ("/count", "missing"));
        let found = refused(json!({"items": [], "count": 1, "more": 1}));
        assert_eq!((found.pointer.as_str(), found.code), ("/more", "unknown-field"));
    }

    #[test]
    fn what_is_expected_is_told_in_words_of_json() {
        let good = json!({"items": [], "count": 1});
        for (field, value, words) in [
            ("count", json!(-1), "must be a whole number, not below 0"),
            ("count", json!(1.5), "must be a whole number, not below 0"),
            ("items", json!("x"), "must be a list"),
            ("items", json!([1]), "must be an object"),
        ] {
            let mut body = good.clone();
            body[field] = value;
            assert_eq!(refused(body).detail, words, "{field}");
        }
    }

    #[test]
    fn every_field_out_of_range_is_listed() {
        let value: Outer =
            serde_json::from_value(json!({"items": [{"name": "long"}, {"name": ""}], "count": 0})).unwrap();
        let fields = field_errors(&value.validate().unwrap_err());
        let pointers: Vec<_> = fields.iter().map(|field| field.pointer.as_str()).collect();
        assert_eq!(pointers, ["/count", "/items/0/name", "/items/1/name"]);
        assert_eq!(fields[0].detail, "it must be from 1 to 9");
    }

    #[test]
    fn the_digest_ignores_order_and_spacing_but_nothing_else() {
        let of = |text: &str| digest_of(&serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"a":1,"b":[true,null]}"#), of(r#"{ "b": [true, null], "a": 1 }"#));
        assert_ne!(of(r#"{"a":"1"}"#), of(r#"{"a":1}"#));
        assert_ne!(of(r#"{"a":["b","c"]}"#), of(r#"{"a":["bc"]}"#));
    }

    #[test]
    fn a_whole_number_is_an_integer_however_it_is_written() {
        let whole = |text: &str| with_whole_numbers(serde_json::from_str(text).unwrap());
        assert_eq!(whole(r#"[1.0, 1e3, -0.0, {"a": [-2.0]}]"#), json!([1, 1000, 0, {"a": [-2]}]));
        assert_eq!(whole("[1.5, 1e300, 18446744073709551615]"), json!([1.5, 1e300, u64::MAX]));
        assert_eq!(serde_json::from_value::<u8>(whole("7.0")).unwrap(), 7);
        assert!(serde_json::from_value::<u8>(whole("7.5")).is_err());
    }
}
