// SPDX-License-Identifier: Apache-2.0
//! Query strings as Docker reads them: `1`, `True` and `yes` are true, `0`, `no`, `false`, `none` and nothing false.

use std::collections::HashMap;

use crate::http::{ApiError, ApiResult};

/// The decoded query of a request; of a repeated key the first value counts, [`Query::all`] gives every one.
#[derive(Clone, Debug, Default)]
pub struct Query(HashMap<String, Vec<String>>);

impl Query {
    /// Decodes `application/x-www-form-urlencoded`; what is not UTF-8 is replaced.
    pub fn parse(text: &str) -> Self {
        let mut map: HashMap<String, Vec<String>> = HashMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            map.entry(decode(key)).or_default().push(decode(value));
        }
        Self(map)
    }

    /// First value of `key`, "" when absent.
    pub fn get(&self, key: &str) -> &str {
        self.0.get(key).and_then(|values| values.first()).map_or("", String::as_str)
    }

    /// Every value of `key`.
    pub fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether `key` is there at all.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Docker's loose truth (its `BoolValue`): anything but a few words is true.
    pub fn flag(&self, key: &str) -> bool {
        !matches!(self.get(key).trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// As [`Query::flag`], with `default` when the key is absent or empty.
    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        if self.get(key).is_empty() { default } else { self.flag(key) }
    }

    /// An integer; absent or empty is `None`.
    ///
    /// # Errors
    /// 500 with Go's text, as Docker.
    pub fn integer(&self, key: &str) -> ApiResult<Option<i64>> {
        match self.get(key) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| ApiError::internal(format!("strconv.Atoi: parsing \"{text}\": invalid syntax"))),
        }
    }
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Query {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::parse(parts.uri.query().unwrap_or("")))
    }
}

/// Percent-decoding of one component; `+` is a space.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|byte| (*byte as char).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                // Two hex digits are at most 255.
                out.push(u8::try_from(high * 16 + low).unwrap_or(u8::MAX));
                at += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Go's `strconv.ParseBool`.
///
/// # Errors
/// Go's own text, without the caller's prefix.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing \"{text}\": invalid syntax")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded_and_broken_escapes_stay() {
        let query = Query::parse("name=a%20b+c&x=%zz&filters=%7B%7D&empty=&t=1&t=2");
        assert_eq!(query.get("name"), "a b c");
        assert_eq!(query.get("x"), "%zz");
        assert_eq!(query.get("filters"), "{}");
        assert!(query.has("empty") && !query.has("gone"));
        assert_eq!(query.all("t"), ["1", "2"]);
    }

    #[test]
    fn truth_is_dockers() {
        for (text, truth) in [("1", true), ("true", true), ("yes", true), ("0", false), ("False", false), ("", false)] {
            assert_eq!(Query::parse(&format!("a={text}")).flag("a"), truth, "{text}");
        }
        assert!(Query::parse("").flag_or("a", true));
        assert!(!Query::parse("a=0").flag_or("a", true));
    }

    proptest::proptest! {
        #[test]
        fn no_query_panics(text in "\\PC{0,60}") {
            let _ = Query::parse(&text);
        }
    }
}
