//! What handlers take from a request, and how each refuses what can't be right.
//!
//! Every extractor here answers with a problem document of a registered type, and never with a 500: a body that isn't
//! JSON is 400 `malformed-json`; one of the wrong type, 415; too large, 413; JSON of another shape or out of range,
//! 422 with a JSON pointer for each field; a query that can't be read, 400 with the parameter's name; an id in a
//! path that is malformed or of another kind, 404, as an id that doesn't exist. None of them repeats a value of the
//! caller's in its answer.

mod client_address;
pub mod entity_tag;
mod json;
mod objects;
pub mod page;
mod path;
mod query;
mod text;
mod unambiguous;

pub use client_address::ClientAddress;
pub use json::ValidJson;
pub(crate) use json::{BodyDigest, field_errors};
pub use path::PathId;
pub use query::ValidQuery;
pub(crate) use text::{SAYS_SOMETHING, says_something};
