//! Options maps: decoding them, and knowing their keys before anything runs.

use std::collections::BTreeMap;

use rhai::{Dynamic, Map};
use serde::{
    Deserializer,
    de::{self, DeserializeOwned, IntoDeserializer as _, Visitor},
    forward_to_deserialize_any,
};

use crate::{Error, Kind, ui::report::nearest};

/// Which keys the options map of a function may have.
pub type Known = BTreeMap<&'static str, &'static [&'static str]>;

/// Decodes the options of `function`. An unknown key, a missing one or a value of the wrong type is an error of
/// `Kind::Recipe` that names the key.
pub fn decode<T: DeserializeOwned>(function: &str, options: Map) -> Result<T, Error> {
    let keys = fields::<T>();
    if let Some(unknown) = options.keys().find(|key| !keys.contains(&key.as_str())) {
        return Err(unknown_key(function, unknown, keys));
    }
    let value = serde_json::to_value(Dynamic::from_map(options))
        .map_err(|cause| Error::new(Kind::Recipe, format!("options of {function}: {cause}")))?;
    serde_path_to_error::deserialize(value).map_err(|cause| {
        let path = cause.path().to_string();
        let place = if path == "." { String::new() } else { format!("option `{path}`: ") };
        Error::new(Kind::Recipe, format!("{function}: {place}{}", cause.inner()))
            .with_hint(format!("`labhost docs {function}` shows every option with its type and default."))
    })
}

/// The error for a key that `function` does not know.
#[must_use]
pub fn unknown_key(function: &str, key: &str, known: &[&str]) -> Error {
    let suggestion = nearest(key, known.iter().copied())
        .map_or_else(String::new, |near| format!("did you mean `{near}`? "));
    Error::new(Kind::Compile, format!("unknown option `{key}` of {function}"))
        .with_hint(format!("{suggestion}Its options are {}.", known.join(", ")))
}

/// The names of a struct's fields, as serde knows them.
#[must_use]
pub fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Spy<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for Spy<'_> {
        type Error = de::value::Error;
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            _visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(de::Error::custom("only the names were wanted"))
        }
        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            ().into_deserializer().deserialize_any(visitor)
        }
        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut names: &'static [&'static str] = &[];
    let _ = T::deserialize(Spy(&mut names));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Span;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Options {
        name: String,
        count: u32,
        #[serde(default)]
        timeout: Option<Span>,
    }

    fn decoded(text: &str) -> Result<Options, Error> {
        let map = rhai::Engine::new().eval::<Map>(text).unwrap();
        decode("ec2::instances", map)
    }

    #[test]
    fn field_names_come_from_the_struct() {
        assert_eq!(fields::<Options>(), ["name", "count", "timeout"]);
    }

    #[test]
    fn unknown_key_names_the_nearest() {
        let error = decoded(r#"#{ name: "a", cuont: 4 }"#).unwrap_err();
        assert!(error.hint.unwrap().contains("did you mean `count`?"));
    }

    #[test]
    fn wrong_type_names_the_key() {
        for (text, expected) in [
            (r#"#{ name: "a", count: "four" }"#, "option `count`"),
            (r#"#{ name: "a", count: -1 }"#, "option `count`"),
            (r#"#{ count: 1 }"#, "name"),
            (r#"#{ name: "a", count: 1, timeout: "soon" }"#, "option `timeout`"),
        ] {
            let error = decoded(text).unwrap_err();
            assert!(error.message.contains(expected), "{text}: {error}");
        }
    }
}
