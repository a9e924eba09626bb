// SPDX-License-Identifier: Apache-2.0
//! JSON request bodies by Docker's rules: which content types, which faults, what an empty body means.

use axum::{
    body::Body,
    http::{HeaderMap, header::CONTENT_TYPE},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::Value;

use crate::http::{ApiError, ApiResult, keys};

/// Larger bodies than this are no API request (uploads are streamed and never pass here).
const LIMIT: usize = 8 << 20;

/// What an empty body means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Empty {
    /// The same as `{}` (networks/create, connect, exec start, …).
    Object,
    /// A fault (containers/create).
    Fault,
}

/// For fields that are objects: a list is none, though its items could stand for the fields in order.
///
/// # Errors
/// For anything but an object or `null`, and those of the fields.
pub fn object<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(reader: D) -> Result<T, D::Error> {
    match Value::deserialize(reader)? {
        Value::Null => Ok(T::default()),
        value @ Value::Object(_) => serde_json::from_value(value).map_err(D::Error::custom),
        other => Err(D::Error::custom(format!("cannot read an object from {}", kind(&other)))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "an array",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Object(_) => "an object",
        Value::Null => "null",
    }
}

/// Reads and decodes the body.
///
/// # Errors
/// 400 with Docker's texts.
pub async fn read<T: DeserializeOwned>(headers: &HeaderMap, body: Body, empty: Empty) -> ApiResult<T> {
    let bytes = axum::body::to_bytes(body, LIMIT)
        .await
        .map_err(|error| ApiError::bad_request(format!("reading the request body: {error}")))?;
    decode(headers, &bytes, empty)
}

fn decode<T: DeserializeOwned>(headers: &HeaderMap, bytes: &[u8], empty: Empty) -> ApiResult<T> {
    let invalid = |text: String| ApiError::bad_request(format!("invalid JSON: {text}"));
    if !bytes.is_empty() {
        check_type(headers)?;
    } else if empty == Empty::Fault {
        return Err(invalid("got EOF while reading request body".into()));
    }
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
    let value = match values.next() {
        None => Value::Object(serde_json::Map::new()),
        Some(Ok(value)) => value,
        Some(Err(error)) if error.is_eof() => return Err(invalid("unexpected EOF".into())),
        Some(Err(error)) => return Err(invalid(error.to_string())),
    };
    if values.next().is_some() {
        return Err(ApiError::bad_request("unexpected content after JSON"));
    }
    // As in Go: `null` leaves everything at its zero value.
    let value = if value.is_null() { Value::Object(serde_json::Map::new()) } else { value };
    if !value.is_object() {
        return Err(invalid(format!("cannot read an object from {}", kind(&value))));
    }
    serde_json::from_value(keys::canonical(value)).map_err(|error| invalid(error.to_string()))
}

fn check_type(headers: &HeaderMap) -> ApiResult<()> {
    let header = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media = header.split(';').next().unwrap_or("").trim();
    if media.is_empty() {
        return Err(ApiError::bad_request(format!("malformed Content-Type header ({header}): mime: no media type")));
    }
    if !media.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::bad_request(format!(
            "unsupported Content-Type header ({media}): must be 'application/json'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn fault(content_type: Option<&'static str>, body: &str) -> String {
        let mut headers = HeaderMap::new();
        if let Some(value) = content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(value));
        }
        decode::<Value>(&headers, body.as_bytes(), Empty::Object).map_or_else(|error| error.message, |v| v.to_string())
    }

    #[test]
    fn faults_read_as_dockers() {
        let json = Some("application/json");
        assert_eq!(
            fault(Some("text/plain"), "{}"),
            "unsupported Content-Type header (text/plain): must be 'application/json'"
        );
        assert_eq!(fault(None, "{}"), "malformed Content-Type header (): mime: no media type");
        assert_eq!(fault(json, "{"), "invalid JSON: unexpected EOF");
        assert_eq!(fault(json, "{} {}"), "unexpected content after JSON");
        assert_eq!(fault(json, "[]"), "invalid JSON: cannot read an object from an array");
        assert_eq!(fault(None, ""), "{}");
        assert_eq!(fault(Some("application/json; charset=utf-8"), "{\"name\":\"x\"}"), "{\"Name\":\"x\"}");
    }

    proptest::proptest! {
        #[test]
        fn no_body_panics(body in "\\PC{0,80}") {
            fault(Some("application/json"), &body);
        }
    }
}
