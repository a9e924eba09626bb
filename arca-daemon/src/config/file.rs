// SPDX-License-Identifier: Apache-2.0
//! `config.json` (with `//` comments) or `config.toml` to raw values.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::{Raw, Source, known};
use crate::exit::{Failure, Fatal};

/// The file in `directory`, if there is one.
pub(super) fn find(directory: &Path) -> Result<Option<PathBuf>, Fatal> {
    let (json, toml) = (directory.join("config.json"), directory.join("config.toml"));
    match (json.exists(), toml.exists()) {
        (true, true) => Err(Fatal::new(
            Failure::Config,
            format!("both {} and {} exist; keep one of them", json.display(), toml.display()),
        )),
        (true, false) => Ok(Some(json)),
        (false, true) => Ok(Some(toml)),
        (false, false) => Ok(None),
    }
}

/// Reads one file; its name says which form it has.
pub(super) fn read(path: &Path) -> Result<Raw, Fatal> {
    let text = fs::read_to_string(path)
        .map_err(|error| Fatal::new(Failure::Config, format!("read {}: {error}", path.display())))?;
    let toml = path.extension().is_some_and(|extension| extension == "toml");
    raw(path, if toml { from_toml(&text) } else { from_json(&text) })
}

fn raw(path: &Path, parsed: Result<BTreeMap<String, String>, String>) -> Result<Raw, Fatal> {
    let values = parsed.map_err(|why| Fatal::new(Failure::Config, format!("{}: {why}", path.display())))?;
    let place = path.display().to_string();
    let source = Source::File(path.to_path_buf());
    values.into_iter().map(|(name, value)| Ok((known(&name, &place)?.name, (value, source.clone())))).collect()
}

fn from_json(text: &str) -> Result<BTreeMap<String, String>, String> {
    let Once(values) = serde_json::from_str(&without_comments(text)).map_err(|error| error.to_string())?;
    values.into_iter().map(|(name, value)| Ok((name.clone(), json_text(&name, value)?))).collect()
}

/// An object in which every key stands once; JSON itself lets the last of several win, which hides a mistake.
struct Once(BTreeMap<String, serde_json::Value>);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Once;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of keys and values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Once, A::Error> {
                let mut values = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, _>()? {
                    if values.insert(key.clone(), value).is_some() {
                        return Err(A::Error::custom(format!("key `{key}` stands there twice")));
                    }
                }
                Ok(Once(values))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

fn json_text(name: &str, value: serde_json::Value) -> Result<String, String> {
    use serde_json::Value;
    match value {
        Value::String(text) => Ok(text),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Array(items) => {
            let texts: Result<Vec<_>, _> = items.into_iter().map(|item| json_text(name, item)).collect();
            Ok(texts?.join(","))
        }
        Value::Null | Value::Object(_) => Err(format!("`{name}` must be a text or a list of texts")),
    }
}

fn from_toml(text: &str) -> Result<BTreeMap<String, String>, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string().replace('\n', " "))?;
    table.into_iter().map(|(name, value)| Ok((name.clone(), toml_text(&name, value)?))).collect()
}

fn toml_text(name: &str, value: toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Array(items) => {
            let texts: Result<Vec<_>, _> = items.into_iter().map(|item| toml_text(name, item)).collect();
            Ok(texts?.join(","))
        }
        _ => Err(format!("`{name}` must be a text or a list of texts")),
    }
}

/// Blanks `//` comments outside strings; line and column of later errors stay right.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut in_comment, mut escaped) = (false, false, false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if in_comment && character != '\n' {
            continue;
        }
        in_comment = false;
        if !in_string && character == '/' && characters.peek() == Some(&'/') {
            in_comment = true;
            continue;
        }
        if character == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && character == '\\' && !escaped;
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go_and_urls_in_strings_stay() {
        let text = "{ // first\n \"a\": \"http://x\", // second \"\n \"b\\\"//\": \"//\" }";
        let values = from_json(text).expect("valid");
        assert_eq!(values.get("a").map(String::as_str), Some("http://x"));
        assert_eq!(values.get("b\"//").map(String::as_str), Some("//"));
    }
}
