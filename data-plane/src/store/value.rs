//! The form of a value before it is sealed: the library's own bytes, or JSON, which still reads after the library adds a
//! field.

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{Result, StoreError};

/// Writes a value; cleared from memory when dropped, since many hold keys.
pub fn to_json(what: &'static str, value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>> {
    serde_json::to_vec(value).map(Zeroizing::new).map_err(|_| StoreError::Encoding(what))
}

/// Reads a value.
pub fn from_json<T: DeserializeOwned>(what: &'static str, bytes: Vec<u8>) -> Result<T> {
    let bytes = Zeroizing::new(bytes);
    serde_json::from_slice(&bytes).map_err(|_| StoreError::Encoding(what))
}

/// A value that is text.
pub fn text(what: &'static str, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| StoreError::Encoding(what))
}
