//! What is told of a caller who logs in, so that the person recognises their logins: roughly where from, roughly with what.

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};

use crate::{error::ApiError, extract::ClientAddress, state::App};

/// Where a request comes from and with what program. The device is a word or two, never what the caller sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(super) address: ClientAddress,
    program: &'static str,
    system: &'static str,
}

impl Caller {
    /// Where from.
    pub(crate) const fn address(self) -> ClientAddress {
        self.address
    }

    /// Such as `Firefox on Linux`.
    pub(super) fn device(self) -> String {
        match (self.program, self.system) {
            ("", "") => "unknown".into(),
            (program, "") => program.into(),
            ("", system) => system.into(),
            (program, system) => format!("{program} on {system}"),
        }
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let address = ClientAddress::from_request_parts(parts, app).await?;
        let agent = parts.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (program, system) = program_and_system(agent);
        Ok(Self { address, program, system })
    }
}

/// Browsers name those whose pages they want to be shown, so the more special word decides.
fn program_and_system(agent: &str) -> (&'static str, &'static str) {
    const PROGRAMS: [(&str, &str); 10] = [
        ("Edg", "Edge"),
        ("OPR/", "Opera"),
        ("SamsungBrowser/", "Samsung Internet"),
        ("Firefox/", "Firefox"),
        ("FxiOS/", "Firefox"),
        ("CriOS/", "Chrome"),
        ("Chrome/", "Chrome"),
        ("Safari/", "Safari"),
        ("curl/", "curl"),
        ("python", "Python"),
    ];
    const SYSTEMS: [(&str, &str); 7] = [
        ("Android", "Android"),
        ("iPhone", "iOS"),
        ("iPad", "iOS"),
        ("Windows", "Windows"),
        ("Macintosh", "macOS"),
        ("CrOS", "ChromeOS"),
        ("Linux", "Linux"),
    ];
    let word = |table: &[(&str, &'static str)]| {
        table.iter().find(|(mark, _)| agent.contains(mark)).map_or("", |(_, word)| *word)
    };
    (word(&PROGRAMS), word(&SYSTEMS))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", ("Firefox", "Linux"))]
    #[case(
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36 \
         Edg/140.0",
        ("Edge", "Windows")
    )]
    #[case(
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) \
         Version/18.0 Mobile/15E148 Safari/604.1",
        ("Safari", "iOS")
    )]
    #[case(
        "Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Mobile Safari/537.36",
        ("Chrome", "Android")
    )]
    #[case("curl/8.9.1", ("curl", ""))]
    #[case("<script>alert(1)</script>", ("", ""))]
    fn a_device_is_told_in_words_of_ours(#[case] agent: &str, #[case] expected: (&str, &str)) {
        assert_eq!(program_and_system(agent), expected);
    }
}
