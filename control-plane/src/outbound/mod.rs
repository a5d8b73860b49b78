//! Calls to URLs that tenants choose. See [`Client`].

mod client;
mod guard;

pub use client::{CallError, Client, ClientError, Reply};
pub use guard::{Guard, UrlRefused};
