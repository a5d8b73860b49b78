//! QR codes as pictures.

use std::io::Cursor;

use axum::http::{HeaderMap, header};
use image::{ImageFormat, Luma};
use qrcode::{QrCode, render::svg};

/// The smallest side of a picture, in pixels.
const SIDE: u32 = 320;

/// How a QR code can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `image/png`.
    Png,
    /// `image/svg+xml`.
    Svg,
    /// `application/json`, also for callers who don't say.
    Json,
}

impl Form {
    const ALL: [Self; 3] = [Self::Json, Self::Png, Self::Svg];

    /// The media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Svg => "image/svg+xml",
            Self::Json => "application/json",
        }
    }

    /// The form that a caller likes best (RFC 9110 §12.5.1), if any is acceptable.
    #[must_use]
    pub fn wanted(headers: &HeaderMap) -> Option<Self> {
        let accept: Vec<&str> =
            headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        if accept.is_empty() {
            return Some(Self::Json);
        }
        let ranges: Vec<(String, f32)> = accept.iter().flat_map(|line| line.split(',')).map(range).collect();
        let mut best: Option<(f32, Self)> = None;
        for form in Self::ALL {
            let quality = quality(&ranges, form.media_type());
            if quality > 0.0 && best.is_none_or(|(held, _)| quality > held) {
                best = Some((quality, form));
            }
        }
        best.map(|(_, form)| form)
    }
}

fn range(text: &str) -> (String, f32) {
    let mut parts = text.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default().to_ascii_lowercase();
    let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
    (media, quality.filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0))
}

/// The most specific range counts.
fn quality(ranges: &[(String, f32)], media_type: &str) -> f32 {
    let group = media_type.split('/').next().map(|group| format!("{group}/*")).unwrap_or_default();
    for wanted in [media_type, group.as_str(), "*/*"] {
        if let Some((_, quality)) = ranges.iter().find(|(media, _)| media == wanted) {
            return *quality;
        }
    }
    0.0
}

/// The code as PNG; nothing if the text doesn't fit into a QR code.
#[must_use]
pub fn png(text: &str) -> Option<Vec<u8>> {
    let picture = QrCode::new(text).ok()?.render::<Luma<u8>>().min_dimensions(SIDE, SIDE).build();
    let mut bytes = Vec::new();
    picture.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).ok()?;
    Some(bytes)
}

/// The code as SVG; nothing if the text doesn't fit into a QR code.
#[must_use]
pub fn svg(text: &str) -> Option<Vec<u8>> {
    let picture = QrCode::new(text).ok()?.render::<svg::Color<'_>>().min_dimensions(SIDE, SIDE).build();
    Some(picture.into_bytes())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(None, Some(Form::Json))]
    #[case(Some("*/*"), Some(Form::Json))]
    #[case(Some("image/png"), Some(Form::Png))]
    #[case(Some("image/svg+xml"), Some(Form::Svg))]
    #[case(Some("image/*"), Some(Form::Png))]
    #[case(Some("image/avif,image/webp,*/*;q=0.8"), Some(Form::Json))]
    #[case(Some("image/png;q=0.5, image/svg+xml"), Some(Form::Svg))]
    #[case(Some("application/json;q=0, image/*;q=0.1"), Some(Form::Png))]
    #[case(Some("text/html"), None)]
    #[case(Some("image/png;q=broken"), None)]
    fn the_form_follows_the_accept_header(#[case] accept: Option<&'static str>, #[case] expected: Option<Form>) {
        let headers = accept.map(|accept| (header::ACCEPT, HeaderValue::from_static(accept)));
        assert_eq!(Form::wanted(&HeaderMap::from_iter(headers)), expected);
    }

    #[test]
    fn pictures_are_made_and_a_text_that_does_not_fit_is_not() {
        let text = "2@".repeat(100);
        assert!(png(&text).is_some_and(|bytes| bytes.starts_with(b"\x89PNG")));
        assert!(svg(&text).is_some_and(|bytes| bytes.starts_with(b"<?xml") || bytes.starts_with(b"<svg")));
        assert_eq!(png(&"x".repeat(10_000)), None);
    }
}
