//! Options maps of recipes: decoding them, and saying what is wrong with them.

use std::collections::BTreeMap;

use rhai::{Dynamic, Map};

use crate::{
    Error, Kind,
    nearest::nearest,
    options::{OptionDoc, Options},
};

/// Which keys the options map of a function may have.
pub type Known = BTreeMap<&'static str, &'static [OptionDoc]>;

/// Decodes the options of `function`, or those of them that are in `T`. An unknown key, a missing one or a value of the
/// wrong type is an error that names the key.
pub fn decode<T: Options>(function: &str, options: Map) -> Result<T, Error> {
    let known = super::known_options();
    check_keys(function, &options, known.get(function).copied().unwrap_or(T::OPTIONS))?;
    for (key, value) in &options {
        let path = format!("{function}.{key}");
        let inner = known.get(path.as_str()).copied();
        if let (Some(inner), Ok(map)) = (inner, value.as_map_ref()) {
            check_keys(&path, &map, inner)?;
        }
    }
    check_finite(function, &options)?;
    let value = serde_json::to_value(Dynamic::from_map(options))
        .map_err(|cause| Error::new(Kind::Recipe, format!("options of {function}: {cause}")))?;
    serde_path_to_error::deserialize(value).map_err(|cause| {
        let path = cause.path().to_string();
        let place = if path == "." { String::new() } else { format!("option `{path}`: ") };
        Error::new(Kind::Recipe, format!("{function}: {place}{}", cause.inner()))
            .with_hint(format!("`labhost docs {function}` shows every option with its type."))
    })
}

fn check_keys(function: &str, options: &Map, known: &[OptionDoc]) -> Result<(), Error> {
    let unknown = options.keys().find(|key| known.iter().all(|known| known.name != key.as_str()));
    unknown.map_or(Ok(()), |key| Err(unknown_key(function, key, known)))
}

/// What is no number would be taken for what is not there.
fn check_finite(path: &str, options: &Map) -> Result<(), Error> {
    for (key, value) in options {
        let path = format!("{path}.{key}");
        if value.as_float().is_ok_and(|number| !number.is_finite()) {
            return Err(Error::new(Kind::Recipe, format!("{path} is not a finite number"))
                .with_hint("Leave an option out that shall have no limit."));
        }
        if let Ok(inner) = value.as_map_ref() {
            check_finite(&path, &inner)?;
        }
    }
    Ok(())
}

/// The error for a key that `function` does not know.
#[must_use]
pub fn unknown_key(function: &str, key: &str, known: &[OptionDoc]) -> Error {
    let names: Vec<_> = known.iter().map(|option| option.name).collect();
    let near = nearest(key, names.iter().copied())
        .map_or_else(String::new, |near| format!("did you mean `{near}`? "));
    Error::new(Kind::Compile, format!("unknown option `{key}` of {function}"))
        .with_hint(format!("{near}Its options are {}.", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{options_map, units::Span};

    options_map! {
        /// For the tests.
        struct Sample {
            /// The name.
            r#type: String,
            count: u32,
            /// How long.
            #[serde(default)]
            timeout: Option<Span>,
        }
    }

    fn decoded(text: &str) -> Result<Sample, Error> {
        let map = rhai::Engine::new().eval::<Map>(text).unwrap();
        decode("sample", map)
    }

    #[test]
    fn keys_come_from_the_struct() {
        let shown: Vec<_> =
            Sample::OPTIONS.iter().map(|key| (key.name, key.kind_shown(), key.doc.trim())).collect();
        let expected = [
            ("type", "text".to_owned(), "The name."),
            ("count", "whole number".to_owned(), ""),
            ("timeout", "duration, optional".to_owned(), "How long."),
        ];
        assert_eq!(shown, expected);
        let sample = decoded(r#"#{ type: "a", count: 2, timeout: "2s" }"#).unwrap();
        assert_eq!(
            (sample.r#type.as_str(), sample.count, sample.timeout.unwrap().to_string().as_str()),
            ("a", 2, "2s")
        );
    }

    #[test]
    fn unknown_key_names_the_nearest() {
        let error = decoded(r#"#{ type: "a", cuont: 4 }"#).unwrap_err();
        assert!(error.hint.unwrap().contains("did you mean `count`?"));
    }

    #[test]
    fn unknown_key_of_an_inner_map_names_the_nearest() {
        let map = rhai::Engine::new().eval::<Map>("#{ mode: \"closed\", slo: #{ p98_ms: 3 } }").unwrap();
        let error = decode::<crate::bench::Options>("bench::http", map).unwrap_err();
        assert_eq!(error.message, "unknown option `p98_ms` of bench::http.slo");
        assert!(error.hint.unwrap().contains("did you mean `p9"));
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let map =
            rhai::Engine::new().eval::<Map>("#{ mode: \"closed\", slo: #{ p99_ms: 1.0 / 0.0 } }").unwrap();
        let error = decode::<crate::bench::Options>("bench::http", map).unwrap_err();
        assert_eq!(error.message, "bench::http.slo.p99_ms is not a finite number");
    }

    #[test]
    fn wrong_type_names_the_key() {
        for (text, expected) in [
            (r#"#{ type: "a", count: "four" }"#, "option `count`"),
            (r#"#{ type: "a", count: -1 }"#, "option `count`"),
            (r#"#{ count: 1 }"#, "type"),
            (r#"#{ type: "a", count: 1, timeout: "soon" }"#, "option `timeout`"),
        ] {
            let error = decoded(text).unwrap_err();
            assert!(error.message.contains(expected), "{text}: {error}");
        }
    }
}
