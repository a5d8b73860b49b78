//! What the planes say to each other. Every type here is part of a versioned protocol: a field is added with a
//! default, never renamed.
//!
//! Down, signed by the control plane (`data-plane` listens): [`session`] and [`send`].
//! Up, signed by the worker (`control-plane`'s internal listener): [`worker`], [`session::Report`] and [`outbox`].

pub mod linking;
pub mod outbox;
pub mod send;
pub mod session;
pub mod worker;

/// The version of this protocol. A session is placed only on workers that speak the control plane's.
pub const PROTOCOL_VERSION: u32 = 1;

/// Bytes as standard base64 in JSON.
pub mod base64_bytes {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes base64.
    ///
    /// # Errors
    /// As the serializer.
    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    /// Reads base64.
    ///
    /// # Errors
    /// If the text isn't base64.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(|_| D::Error::custom("not base64"))
    }
}
