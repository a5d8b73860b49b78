//! Tables of people and their logins.

pub(crate) mod login;
pub(crate) mod refresh_token;
pub(crate) mod signing_key;
pub(crate) mod user;
