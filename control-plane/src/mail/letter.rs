//! What a mail says, as text and as HTML.

use askama::Template;
use url::Url;

/// A mail to one person. Written by the domain that knows what it is about.
#[derive(Clone)]
pub struct Letter {
    /// The address.
    pub to: String,
    /// The subject line. Never holds what a caller wrote.
    pub subject: &'static str,
    /// What it says.
    pub paragraphs: Vec<String>,
    /// What the reader is to open.
    pub action: Option<Action>,
    /// The last line: why they got it.
    pub closing: &'static str,
}

impl std::fmt::Debug for Letter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Letter").field("subject", &self.subject).finish_non_exhaustive()
    }
}

/// A link with its words.
#[derive(Clone)]
pub struct Action {
    /// The words.
    pub label: &'static str,
    /// Where it leads. A token stands in its fragment, which browsers send to no server.
    pub url: Url,
}

impl Action {
    /// A page of the console, with a token.
    #[must_use]
    pub fn with_token(label: &'static str, public_url: &Url, page: &str, token: &str) -> Self {
        let mut action = Self::page(label, public_url, page);
        action.url.set_fragment(Some(&format!("token={token}")));
        action
    }

    /// A page of the console.
    #[must_use]
    pub fn page(label: &'static str, public_url: &Url, page: &str) -> Self {
        let mut url = public_url.clone();
        url.set_path(&format!("{}/{page}", public_url.path().trim_end_matches('/')));
        Self { label, url }
    }
}

#[derive(Template)]
#[template(path = "mail/letter.txt")]
struct Text<'a> {
    paragraphs: &'a [String],
    action: Option<&'a Action>,
    closing: &'a str,
}

#[derive(Template)]
#[template(path = "mail/letter.html")]
struct Html<'a> {
    subject: &'a str,
    paragraphs: &'a [String],
    action: Option<&'a Action>,
    closing: &'a str,
}

/// A paragraph holds names that somebody chose, maybe for a stranger to read: they begin no paragraph of their own, and turn no text
/// around (the marks of Unicode's bidirectional algorithm).
fn on_one_line(text: &str) -> String {
    text.chars()
        .filter(|character| !matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
        .map(|character| {
            let breaks = character.is_control() || matches!(character, '\u{2028}' | '\u{2029}');
            if breaks { ' ' } else { character }
        })
        .collect()
}

impl Letter {
    /// The two bodies: text, HTML.
    pub(super) fn bodies(&self) -> Result<(String, String), askama::Error> {
        let Self { subject, closing, .. } = self;
        let paragraphs: Vec<String> = self.paragraphs.iter().map(|text| on_one_line(text)).collect();
        let paragraphs = &paragraphs;
        let action = self.action.as_ref();
        Ok((Text { paragraphs, action, closing }.render()?, Html { subject, paragraphs, action, closing }.render()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_makes_no_paragraph_and_turns_no_text_around() {
        let letter = Letter {
            to: "ada@example.com".into(),
            subject: "Hello",
            paragraphs: vec!["Hello a\r\n\r\nYour account\u{2028}was \u{202e}closed,".into()],
            action: None,
            closing: "Bye.",
        };
        let (text, html) = letter.bodies().unwrap();
        for body in [&text, &html] {
            assert!(body.contains("Hello a    Your account was closed,"), "{body}");
        }
    }

    #[test]
    fn a_letter_is_escaped_in_html_and_plain_in_text() {
        let base = "https://console.example.com/app/".parse().unwrap();
        let letter = Letter {
            to: "ada@example.com".into(),
            subject: "Hello",
            paragraphs: vec!["Dear <b>Ada</b> & co".into()],
            action: Some(Action::with_token("Open it", &base, "verify-email", "sbm_x-Y")),
            closing: "Bye.",
        };
        let (text, html) = letter.bodies().unwrap();
        let link = "https://console.example.com/app/verify-email#token=sbm_x-Y";
        assert!(text.contains("Dear <b>Ada</b> & co") && text.contains(link), "{text}");
        assert!(!html.contains("<b>Ada") && html.contains(&format!("href=\"{link}\"")), "{html}");
        assert!(!format!("{letter:?}").contains("ada@"));
    }
}
