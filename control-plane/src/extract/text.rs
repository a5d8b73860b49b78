//! Text that somebody is to read.

use std::borrow::Cow;

use validator::ValidationError;

/// What [`says_something`] asks for, in the regular expressions of ECMA-262: no U+0000, and a character that isn't white space,
/// which is spelt out because languages differ on what `\s` is.
pub(crate) const SAYS_SOMETHING: &str =
    r"^[^\u0000]*[^\u0000\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000][^\u0000]*$";

/// Refuses what is only white space; what is empty is the length's to refuse. Every text with `min_length = 1` in its schema has [`SAYS_SOMETHING`] for its pattern, and has
/// to be asked for it.
pub(crate) fn says_something(text: &str) -> Result<(), ValidationError> {
    if !text.is_empty() && text.chars().all(char::is_whitespace) {
        return Err(ValidationError::new("blank").with_message(Cow::Borrowed("must not be only white space")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_says_of_each_character_what_the_check_does() {
        let pattern = regex::Regex::new(SAYS_SOMETHING).unwrap();
        for character in '\u{1}'..=char::MAX {
            let text = character.to_string();
            assert_eq!(pattern.is_match(&text), says_something(&text).is_ok(), "{character:?}");
        }
        for (text, says) in [("", false), (" \t\u{3000}", false), (" \u{200b}\n", true), ("a\0", false)] {
            assert_eq!(pattern.is_match(text), says, "{text:?}");
        }
    }
}
