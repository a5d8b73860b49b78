//! JSON whose objects are objects and whose words are strings.
//!
//! Derived `Deserialize` also reads a struct from a sequence, field after field: `["ada@example.com", "…"]` would log somebody in.
//! It reads one of an enum's words from `{"word": null}` too, and an internally tagged enum's tag from its number. No document says
//! so, and a body that is wrong must be told so. This reads a [`Value`] as `serde_json` does, but structs from objects only, and
//! words from strings only. Derived internally tagged enums read what is in them past any reader, so no body has one.

use serde::{
    Deserializer,
    de::{
        Error as _, IntoDeserializer, Unexpected, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Value};

/// A value to be read that way.
pub(super) struct Objects(pub Value);

impl<'de> IntoDeserializer<'de, Error> for Objects {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Objects {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Self));
                let read = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(read)
            }
            Value::Object(fields) => {
                let mut fields = MapDeserializer::new(fields.into_iter().map(|(name, value)| (name, Self(value))));
                let read = visitor.visit_map(&mut fields)?;
                fields.end()?;
                Ok(read)
            }
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0 {
            Value::Object(_) => self.deserialize_any(visitor),
            other => Err(Error::invalid_type(kind_of(other), &"an object")),
        }
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0 {
            Value::String(_) => self.0.deserialize_str(visitor),
            other => Err(Error::invalid_type(kind_of(other), &"a string")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0 {
            Value::String(_) => self.0.deserialize_enum(name, variants, visitor),
            other => Err(Error::invalid_type(kind_of(other), &"a string")),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map ignored_any
    }
}

fn kind_of(value: &Value) -> Unexpected<'static> {
    match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(_) => Unexpected::Other("a boolean"),
        Value::Number(_) => Unexpected::Other("a number"),
        Value::String(_) => Unexpected::Other("a string"),
        Value::Array(_) => Unexpected::Seq,
        Value::Object(_) => Unexpected::Map,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        number: Option<i64>,
        kind: Option<Kind>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Plain,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Whole {
        name: String,
        #[serde(default)]
        inner: Inner,
        #[serde(default)]
        list: Vec<Inner>,
        #[serde(default)]
        map: BTreeMap<String, f64>,
        #[serde(default)]
        pair: Option<(u8, bool)>,
        #[serde(default)]
        any: Value,
    }

    fn read(value: Value) -> Result<Whole, String> {
        serde_path_to_error::deserialize(Objects(value)).map_err(|error| error.to_string())
    }

    #[test]
    fn objects_are_read_as_they_always_were() {
        let value = json!({
            "name": "n", "inner": {"number": -1, "kind": "plain"}, "list": [{}, {"number": null}], "map": {"a": 1, "b": 1.5},
            "pair": [1, true], "any": [{"x": [null]}],
        });
        assert_eq!(read(value.clone()).unwrap(), serde_json::from_value(value).unwrap());
        assert_eq!(read(json!({"name": "n"})).unwrap().inner, Inner::default());
    }

    #[test]
    fn no_map_and_no_number_stands_for_a_word() {
        let in_a_map = json!({"name": "n", "inner": {"kind": {"plain": null}}});
        assert!(serde_json::from_value::<Whole>(in_a_map).is_ok(), "else this reader isn't needed");
        for (kind, found) in [
            (json!({"plain": null}), "map"),
            (json!(0), "a number"),
            (json!(["plain"]), "sequence"),
            (json!(true), "a boolean"),
        ] {
            let refused = read(json!({"name": "n", "inner": {"kind": kind}})).unwrap_err();
            assert_eq!(refused, format!("inner.kind: invalid type: {found}, expected a string"));
        }
    }

    #[test]
    fn no_array_stands_for_an_object_at_any_depth() {
        let in_a_row = json!({"name": "n", "inner": [1, "plain"]});
        assert!(serde_json::from_value::<Whole>(in_a_row).is_ok(), "else this reader isn't needed");
        for (value, at) in [
            (json!(["n"]), "."),
            (json!({"name": "n", "inner": [1, "plain"]}), "inner"),
            (json!({"name": "n", "inner": []}), "inner"),
            (json!({"name": "n", "list": [{}, [1, null]]}), "list[1]"),
        ] {
            let refused = read(value).unwrap_err();
            let expected = "invalid type: sequence, expected an object";
            assert!(refused == expected || refused == format!("{at}: {expected}"), "{refused}");
        }
    }
}
