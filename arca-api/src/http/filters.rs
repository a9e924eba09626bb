// SPDX-License-Identifier: Apache-2.0
//! The `filters` query parameter: `{"key": ["value", …]}`, or the old form `{"key": {"value": true}}`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::http::{ApiError, ApiResult, query::Query};

/// Filters of a list request. Values of one key are alternatives, keys must all match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads the parameter and refuses keys not in `known`.
    ///
    /// # Errors
    /// 400 `invalid filter` or `invalid filter 'key'`.
    pub fn from_query(query: &Query, known: &[&str]) -> ApiResult<Self> {
        let filters = Self::parse(query.get("filters"))?;
        match filters.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(ApiError::bad_request(format!("invalid filter '{key}'"))),
            None => Ok(filters),
        }
    }

    /// Reads the JSON text; empty, `null` and `{}` are no filter.
    ///
    /// # Errors
    /// 400 `invalid filter`.
    pub fn parse(text: &str) -> ApiResult<Self> {
        let invalid = || ApiError::bad_request("invalid filter");
        if text.is_empty() {
            return Ok(Self::default());
        }
        let object = match serde_json::from_str(text) {
            Ok(Value::Null) => return Ok(Self::default()),
            Ok(Value::Object(object)) => object,
            _ => return Err(invalid()),
        };
        let mut map = BTreeMap::new();
        for (key, value) in object {
            let values = match value {
                Value::Array(items) => items
                    .into_iter()
                    .map(|item| item.as_str().map(str::to_owned).ok_or_else(invalid))
                    .collect::<ApiResult<Vec<_>>>()?,
                // Docker counts the keys, whatever stands behind them.
                Value::Object(items) if items.values().all(Value::is_boolean) => {
                    items.into_iter().map(|(value, _)| value).collect()
                }
                Value::Null => Vec::new(),
                _ => return Err(invalid()),
            };
            map.insert(key, values);
        }
        Ok(Self(map))
    }

    /// Values given for `key`.
    pub fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// True if `key` was not given, or one of its values is accepted.
    pub fn any(&self, key: &str, accept: impl FnMut(&String) -> bool) -> bool {
        let values = self.values(key);
        values.is_empty() || values.iter().any(accept)
    }

    /// All `label` filters hold: `k` or `k=v`.
    pub fn labels(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(key).iter().all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|have| have == value),
            None => labels.contains_key(wanted),
        })
    }

    /// `key` as a boolean.
    ///
    /// # Errors
    /// 400 with Docker's text for a value that is neither, or for two values.
    pub fn boolean(&self, key: &str) -> ApiResult<Option<bool>> {
        match self.values(key) {
            [] => Ok(None),
            [value] => match value.as_str() {
                "1" | "true" => Ok(Some(true)),
                "0" | "false" => Ok(Some(false)),
                _ => Err(ApiError::bad_request(format!(
                    "invalid value for filter '{key}', must be \"true\" (or \"1\"), or \"false\" (or \"0\")"
                ))),
            },
            _ => Err(ApiError::bad_request(format!("got more than one value for filter key \"{key}\""))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_and_their_faults() {
        let new = Filters::parse(r#"{"label":["a=b","c"]}"#).expect("array form");
        let old = Filters::parse(r#"{"label":{"a=b":true,"c":false}}"#).expect("map form");
        assert_eq!(new, old);
        let labels = BTreeMap::from([("a".into(), "b".into()), ("c".into(), String::new())]);
        assert!(new.labels("label", &labels));
        for bad in ["{", "[]", "1", r#"{"a":1}"#, r#"{"a":[1]}"#, r#"{"a":{"b":1}}"#] {
            assert_eq!(Filters::parse(bad).expect_err(bad).message, "invalid filter");
        }
        for none in ["", "null", "{}"] {
            assert_eq!(Filters::parse(none), Ok(Filters::default()));
        }
    }

    #[test]
    fn unknown_keys_are_named() {
        let query = Query::parse("filters=%7B%22foo%22%3A%5B%22x%22%5D%7D");
        assert_eq!(Filters::from_query(&query, &["name"]).expect_err("foo").message, "invalid filter 'foo'");
    }
}
