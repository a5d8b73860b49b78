//! `/api/v1/auth/…`, `/api/v1/me…`, and the public keys.

mod logins;
mod me;
mod second_factor;
mod sign_up;

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::state::App;

/// The routes of people and their logins.
#[must_use]
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(sign_up::sign_up))
        .routes(routes!(sign_up::verify_email))
        .routes(routes!(sign_up::forgot_password))
        .routes(routes!(sign_up::reset_password))
        .routes(routes!(logins::log_in))
        .routes(routes!(logins::log_in_with_code))
        .routes(routes!(logins::refresh_tokens))
        .routes(routes!(logins::log_out))
        .routes(routes!(logins::switch_tenant))
        .routes(routes!(logins::list_logins))
        .routes(routes!(logins::end_login))
        .routes(routes!(logins::get_jwks))
        .routes(routes!(me::get_me, me::update_me))
        .routes(routes!(me::change_password))
        .routes(routes!(me::ask_to_verify_email))
        .routes(routes!(second_factor::get_second_factor, second_factor::enrol_second_factor))
        .routes(routes!(second_factor::confirm_second_factor))
        .routes(routes!(second_factor::disable_second_factor))
        .routes(routes!(second_factor::renew_recovery_codes))
}
