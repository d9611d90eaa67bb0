//! Structs that stand for the options maps of recipes, with their keys, types and documentation as data.
//!
//! It knows neither Rhai nor what the options mean.

use serde::de::DeserializeOwned;

/// One key of an options map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionDoc {
    pub name: &'static str,
    /// The Rust type of the field; see [`OptionDoc::kind_shown`].
    pub kind: &'static str,
    pub doc: &'static str,
}

/// A struct that is decoded from an options map. Made by `options_map!`.
pub trait Options: DeserializeOwned {
    const OPTIONS: &'static [OptionDoc];
}

/// Declares an options struct together with the list of its keys, so that decoding, checking and documentation
/// cannot disagree. `r#type` is the key `type`.
#[macro_export]
macro_rules! options_map {
    ($(#[$outer:meta])* $vis:vis struct $name:ident {
        $( $(#[doc = $doc:literal])* $(#[serde($($serde:tt)*)])? $field_vis:vis $field:ident : $kind:ty ),* $(,)?
    }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        $vis struct $name {
            $( $(#[doc = $doc])* $(#[serde($($serde)*)])? $field_vis $field: $kind ),*
        }
        impl $crate::options::Options for $name {
            const OPTIONS: &'static [$crate::options::OptionDoc] = &[
                $( $crate::options::OptionDoc {
                    name: $crate::options::plain_name(stringify!($field)),
                    kind: stringify!($kind),
                    doc: concat!($($doc),*),
                } ),*
            ];
        }
    };
}

/// The key of a field: a raw identifier without its mark.
#[must_use]
pub const fn plain_name(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        _ => field,
    }
}

impl OptionDoc {
    /// The type in a recipe author's words.
    #[must_use]
    pub fn kind_shown(&self) -> String {
        let kind = self.kind.replace(' ', "");
        let (inner, optional) = match kind.strip_prefix("Option<").and_then(|rest| rest.strip_suffix('>')) {
            Some(inner) => (inner, true),
            None => (kind.as_str(), false),
        };
        let word = match inner {
            "String" | "Mode" | "Arrivals" => "text",
            "Span" | "Warmup" => "duration",
            "bool" => "true or false",
            "u16" | "u32" | "u64" | "usize" => "whole number",
            "f64" => "number",
            _ if inner.starts_with("Vec<") => "list",
            _ => "map",
        };
        if optional { format!("{word}, optional") } else { word.to_owned() }
    }
}
