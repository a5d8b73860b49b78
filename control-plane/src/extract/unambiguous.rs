//! JSON whose objects have each name once.
//!
//! RFC 8259 §4 leaves open what another means, and readers differ: whoever checks a body on the way may see the first `"to"`, and we the
//! last. So there is no second. All else is read as `serde_json` reads a [`Value`].

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

/// A value that can be read in one way only.
pub(super) struct Unambiguous(pub Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader).map(Self)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut read = Vec::new();
        while let Some(Unambiguous(item)) = items.next_element()? {
            read.push(item);
        }
        Ok(Value::Array(read))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut read = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if read.contains_key(&name) {
                return Err(A::Error::custom("a name twice"));
            }
            let Unambiguous(value) = fields.next_value()?;
            read.insert(name, value);
        }
        Ok(Value::Object(read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_twice_is_refused_wherever_it_stands_and_however_it_is_written() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"b":2,"\u0061":3}"#, r#"[{"b":{"a":null,"a":[]}}]"#] {
            assert!(serde_json::from_str::<Unambiguous>(text).is_err_and(|error| error.is_data()), "{text}");
        }
    }

    #[test]
    fn all_else_is_read_as_ever() {
        for text in [
            r#"{"a":{"a":[{"a":1},{"a":-2}]},"b":[1.5,1e300,18446744073709551615,-9223372036854775808,true,null,"\ud83d\ude00"]}"#,
            "0",
            r#""a""#,
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::from_str::<Unambiguous>(text).unwrap().0, value);
        }
        for text in ["", "{", "[1,]", "nul", &"[".repeat(200), "1e999", "{\"a\":1} x"] {
            let unread = serde_json::from_str::<Unambiguous>(text).err().unwrap();
            assert!(!unread.is_data(), "{text}: {unread}");
        }
    }
}
