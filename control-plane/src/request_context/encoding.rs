//! `Accept-Encoding` that leaves nothing.
//!
//! A caller may forbid the answer as it is (`identity;q=0`). RFC 9110 §12.5.3 lets a server answer 406 then or pass over it. The layer that
//! compresses answers 406, after the fact: what was asked for is done, and its answer is the body. So that is passed over here, and what
//! isn't compressed is sent as it is.

use axum::{
    extract::Request,
    http::{HeaderValue, header},
    middleware::Next,
    response::Response,
};

/// The layer, around the one that compresses.
pub(super) async fn never_refused(mut request: Request, next: Next) -> Response {
    let headers = request.headers_mut();
    let given: Vec<&str> = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .collect();
    if given.iter().any(|part| forbids_the_rest(part)) {
        let kept: Vec<&str> = given.into_iter().filter(|part| !forbids_the_rest(part)).collect();
        match HeaderValue::try_from(kept.join(",")) {
            Ok(value) if !kept.is_empty() => headers.insert(header::ACCEPT_ENCODING, value),
            _ => headers.remove(header::ACCEPT_ENCODING),
        };
    }
    next.run(request).await
}

/// Whether this is `identity` or `*` with a weight of nothing.
fn forbids_the_rest(part: &str) -> bool {
    let mut words = part.split(';').map(str::trim);
    let coding = words.next().unwrap_or_default();
    let weight = words.find_map(|word| word.strip_prefix("q=").or_else(|| word.strip_prefix("Q=")));
    (coding == "*" || coding.eq_ignore_ascii_case("identity"))
        && weight.is_some_and(|weight| weight.trim().parse::<f32>().is_ok_and(|weight| weight <= 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_an_answer_as_it_is_is_found_and_nothing_else() {
        for part in ["identity;q=0", " identity ; q=0.000", "*;q=0", "IDENTITY;Q=0"] {
            assert!(forbids_the_rest(part), "{part}");
        }
        for part in ["identity", "*", "gzip;q=0", "identity;q=0.1", "*;q=1", "identity;q=a", ""] {
            assert!(!forbids_the_rest(part), "{part}");
        }
    }
}
