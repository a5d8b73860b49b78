//! The refresh token of a browser: in a cookie that its scripts can't read.
//!
//! A caller asks for it with `"cookie": true`. From then on the token stands in no body: refreshing and logging out take it from
//! the cookie. A cookie is sent by the browser whoever asked it to, so a request that uses one must come from a page of the
//! same origin: `SameSite=Strict` keeps it from pages of other sites, and the check here from those of sibling domains and from
//! browsers that don't know the attribute. Fetch metadata says so (`Sec-Fetch-Site`); without it `Origin` must name
//! the host that was asked. A request that carries neither isn't from a browser that we can trust with a cookie.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::error::{ApiError, ApiResult, Kind};

/// `__Secure-` makes browsers refuse it without TLS (but on localhost).
const NAME: &str = "__Secure-switchboard-refresh";
/// Only what needs it gets it.
const PATH: &str = "/api/v1/auth";

/// The refresh token of the request's cookie.
///
/// # Errors
/// 401 if there is none; 403 `cross-site` if another origin's page sends it.
pub(super) fn read(headers: &HeaderMap) -> ApiResult<SecretString> {
    let token = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|line| line.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(NAME)?.strip_prefix('='))
        .ok_or_else(|| {
            Kind::Unauthenticated.because("there is no refresh token, neither in the body nor in a cookie")
        })?;
    require_same_origin(headers)?;
    Ok(token.into())
}

/// Refuses a request that isn't from a page of the origin that it is sent to.
///
/// # Errors
/// 403 `cross-site`.
pub(super) fn require_same_origin(headers: &HeaderMap) -> ApiResult<()> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let same = match (text("sec-fetch-site"), text("origin"), text("host")) {
        (Some(site), ..) => site == "same-origin",
        (None, Some(origin), Some(host)) => Url::parse(origin).is_ok_and(|url| {
            let named = match (url.host_str(), url.port()) {
                (Some(name), Some(port)) => format!("{name}:{port}"),
                (Some(name), None) => name.to_owned(),
                (None, _) => return false,
            };
            named.eq_ignore_ascii_case(host)
        }),
        _ => false,
    };
    if same { Ok(()) } else { Err(ApiError::from(Kind::CrossSite)) }
}

/// The `Set-Cookie` of a new refresh token.
pub(super) fn set(token: &SecretString, lives: Duration) -> ApiResult<HeaderValue> {
    header_value(token.expose_secret(), lives.as_secs())
}

/// The `Set-Cookie` that removes it.
pub(super) fn removed() -> ApiResult<HeaderValue> {
    header_value("", 0)
}

fn header_value(value: &str, max_age: u64) -> ApiResult<HeaderValue> {
    let text = format!("{NAME}={value}; Path={PATH}; Max-Age={max_age}; HttpOnly; Secure; SameSite=Strict");
    let mut header = HeaderValue::from_str(&text).map_err(|_| ApiError::Defect("a refresh token fits no header"))?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(&[("sec-fetch-site", "same-origin")], true)]
    #[case(&[("sec-fetch-site", "same-origin"), ("origin", "null")], true)]
    #[case(&[("sec-fetch-site", "same-site"), ("origin", "https://a.example.com")], false)]
    #[case(&[("sec-fetch-site", "cross-site")], false)]
    #[case(&[("sec-fetch-site", "none")], false)]
    #[case(&[("origin", "https://a.example.com")], true)]
    #[case(&[("origin", "https://A.example.com")], true)]
    #[case(&[("origin", "https://a.example.com:8443")], false)]
    #[case(&[("origin", "https://b.example.com")], false)]
    #[case(&[("origin", "https://evil.com/a.example.com")], false)]
    #[case(&[("origin", "null")], false)]
    #[case(&[], false)]
    fn only_the_own_origin_may_use_the_cookie(#[case] given: &[(&'static str, &str)], #[case] allowed: bool) {
        let mut headers = HeaderMap::new();
        headers.insert("host", "a.example.com".parse().unwrap());
        headers.insert("cookie", format!("other=1; {NAME}=sbr_x; last=2").parse().unwrap());
        for (name, value) in given {
            headers.insert(*name, value.parse().unwrap());
        }
        match read(&headers) {
            Ok(token) => assert!(allowed && token.expose_secret() == "sbr_x"),
            Err(_) => assert!(!allowed),
        }
    }

    #[test]
    fn a_cookie_of_a_longer_name_is_another_cookie() {
        let mut headers = HeaderMap::new();
        headers.insert("sec-fetch-site", "same-origin".parse().unwrap());
        headers.insert("cookie", format!("{NAME}2=sbr_x").parse().unwrap());
        assert!(read(&headers).is_err());
    }
}
