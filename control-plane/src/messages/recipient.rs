//! Whom a message goes to.

use crate::error::{Kind, Refusal};

/// A phone number in E.164 has at most 15 digits (ITU-T E.164 §6); none in use has fewer than 7.
const PHONE_DIGITS: std::ops::RangeInclusive<usize> = 7..=15;
/// A LID is a number of up to 20 digits.
const LID_DIGITS: std::ops::RangeInclusive<usize> = 1..=20;
const PN_SERVER: &str = "s.whatsapp.net";
const LID_SERVER: &str = "lid";

/// A person, as the API's `to` names one. Can't be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The JID to send to.
    pub jid: String,
    /// It, if it is a phone-number JID.
    pub pn: Option<String>,
    /// It, if it is a LID.
    pub lid: Option<String>,
}

/// Reads `to`: a phone number in E.164, with or without `+`, or the JID of a person.
///
/// # Errors
/// 422 with a pointer if it is none of these; `unsupported-message` for groups and channels.
pub fn parse(to: &str) -> Result<Recipient, Refusal> {
    let Some((user, server)) = to.split_once('@') else {
        return phone_digits(to).map(phone).ok_or_else(not_a_phone);
    };
    match server {
        PN_SERVER if is_phone(user) => Ok(phone(user)),
        LID_SERVER if is_number(user, LID_DIGITS) => {
            let jid = format!("{user}@{LID_SERVER}");
            Ok(Recipient { jid: jid.clone(), pn: None, lid: Some(jid) })
        }
        "g.us" | "newsletter" | "broadcast" => {
            Err(Kind::UnsupportedMessage.because("groups, channels and broadcasts can't be written to yet"))
        }
        _ => Err(not_a_phone()),
    }
}

/// The digits of a phone number in E.164, with or without `+`.
#[must_use]
pub fn phone_digits(phone: &str) -> Option<&str> {
    Some(phone.strip_prefix('+').unwrap_or(phone)).filter(|digits| is_phone(digits))
}

fn phone(digits: &str) -> Recipient {
    let jid = format!("{digits}@{PN_SERVER}");
    Recipient { jid: jid.clone(), pn: Some(jid), lid: None }
}

fn is_phone(digits: &str) -> bool {
    is_number(digits, PHONE_DIGITS)
}

fn is_number(digits: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    length.contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0')
}

fn not_a_phone() -> Refusal {
    Refusal::field(
        "/to",
        "phone-number",
        "must be a phone number in E.164, such as +15550001234, or a JID that ends in @s.whatsapp.net or @lid",
    )
}

/// The phone number in a phone-number JID, in E.164.
#[must_use]
pub fn phone_of(jid: &str) -> Option<String> {
    let (user, server) = jid.split_once('@')?;
    (server == PN_SERVER && is_phone(user)).then(|| format!("+{user}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("+15550001234", "15550001234@s.whatsapp.net")]
    #[case("15550001234", "15550001234@s.whatsapp.net")]
    #[case("15550001234@s.whatsapp.net", "15550001234@s.whatsapp.net")]
    #[case("123456789012345678@lid", "123456789012345678@lid")]
    fn people_are_understood(#[case] to: &str, #[case] jid: &str) {
        assert_eq!(parse(to).map(|recipient| recipient.jid).ok().as_deref(), Some(jid));
    }

    #[rstest]
    #[case("")]
    #[case("+")]
    #[case("hello")]
    #[case("123456")]
    #[case("+1234567890123456")]
    #[case("0015550001234")]
    #[case("+1 555 000 1234")]
    #[case("+1-555-000-1234")]
    #[case("++15550001234")]
    #[case("１５５５０００１２３４")]
    #[case("15550001234@c.us")]
    #[case("15550001234:3@s.whatsapp.net")]
    #[case("+15550001234@s.whatsapp.net")]
    #[case("@s.whatsapp.net")]
    #[case("abc@lid")]
    #[case("15550001234@s.whatsapp.net@lid")]
    fn what_is_no_phone_is_refused(#[case] to: &str) {
        assert_eq!(parse(to).map_err(|refusal| refusal.kind()).err(), Some(Kind::Validation));
    }

    #[rstest]
    #[case("120363000000000000@g.us")]
    #[case("120363000000000000@newsletter")]
    #[case("status@broadcast")]
    fn what_is_no_person_is_unsupported(#[case] to: &str) {
        assert_eq!(parse(to).map_err(|refusal| refusal.kind()).err(), Some(Kind::UnsupportedMessage));
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_made_a_jid_that_reads_as_itself(to in ".{0,40}") {
            if let Ok(recipient) = parse(&to) {
                prop_assert!(parse(&recipient.jid).is_ok_and(|again| again == recipient));
            }
        }
    }
}
