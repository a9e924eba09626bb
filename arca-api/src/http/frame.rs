// SPDX-License-Identifier: Apache-2.0
//! The version prefix and the headers that every answer carries.

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Method, Request, Uri, header::UPGRADE, uri::PathAndQuery},
    response::{IntoResponse, Response},
};
use tower::ServiceExt;

use crate::http::{ApiError, leftover};

/// In a response's extensions: it carries no headers but its own and `Server`. Docker leaves them out where its router
/// knows no path and where a connection is taken over for attach.
#[derive(Clone, Copy, Debug)]
pub struct Bare;

/// Newest API version served.
pub const MAX_VERSION: ApiVersion = ApiVersion { major: 1, minor: 51 };
/// Oldest API version served.
pub const MIN_VERSION: ApiVersion = ApiVersion { major: 1, minor: 24 };

/// The version a request speaks: of its path, else the newest. In every request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    major: u32,
    minor: u32,
}

impl ApiVersion {
    /// Version 1.`minor`.
    pub const fn v1(minor: u32) -> Self {
        Self { major: 1, minor }
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Splits `/v1.51/x` into version and path; a path without a version speaks the newest.
fn split_version(path: &str) -> Result<(ApiVersion, &str), ApiError> {
    let numbers = path.strip_prefix("/v").and_then(|rest| {
        let (version, _) = rest.split_once('/')?;
        let (major, minor) = version.split_once('.')?;
        Some((version, ApiVersion { major: major.parse().ok()?, minor: minor.parse().ok()? }))
    });
    let Some((text, version)) = numbers else { return Ok((MAX_VERSION, path)) };
    if version > MAX_VERSION {
        return Err(ApiError::bad_request(format!(
            "client version {text} is too new. Maximum supported API version is {MAX_VERSION}"
        )));
    }
    if version < MIN_VERSION {
        return Err(ApiError::bad_request(format!(
            "client version {text} is too old. Minimum supported API version is {MIN_VERSION}, please upgrade your client to a newer version"
        )));
    }
    Ok((version, &path[2 + text.len()..]))
}

fn without_version(uri: &Uri) -> Result<(ApiVersion, Uri), ApiError> {
    let (version, path) = split_version(uri.path())?;
    let target = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let target: PathAndQuery =
        target.parse().map_err(|_| ApiError::bad_request(format!("invalid request path {path}")))?;
    Ok((version, Uri::from(target)))
}

/// Answers one request through the router.
pub async fn answer(router: Router, mut request: Request<Body>) -> Response {
    let mut known = true;
    let mut response = match without_version(request.uri()) {
        Ok((version, uri)) => {
            *request.uri_mut() = uri;
            if !request.headers().contains_key(UPGRADE) {
                let (parts, body) = request.into_parts();
                request = Request::from_parts(parts, leftover::kept(body));
            }
            request.extensions_mut().insert(version);
            let path = request.uri().path();
            if request.method() == Method::HEAD && path != "/_ping" && !path.ends_with("/archive") {
                // Where GET is known, HEAD is not, but for these two.
                ApiError::not_found("page not found").into_response()
            } else {
                match router.oneshot(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
        }
        Err(error) => {
            known = false;
            // Clients as old as that expect errors as text.
            if error.message.contains("too old") {
                (error.status, error.message + "\n").into_response()
            } else {
                error.into_response()
            }
        }
    };
    let bare = response.extensions_mut().remove::<Bare>().is_some();
    let headers = response.headers_mut();
    if !bare {
        headers.insert("api-version", HeaderValue::from_static("1.51"));
        headers.insert("ostype", HeaderValue::from_static("linux"));
        if known {
            headers.insert("docker-experimental", HeaderValue::from_static("false"));
        }
    }
    headers.insert("server", HeaderValue::from_static(concat!("Arca/", env!("CARGO_PKG_VERSION"), " (linux)")));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_split_and_bounded() {
        assert_eq!(split_version("/v1.30/x/y"), Ok((ApiVersion::v1(30), "/x/y")));
        assert_eq!(split_version("/version"), Ok((MAX_VERSION, "/version")));
        assert_eq!(split_version("/vx/1"), Ok((MAX_VERSION, "/vx/1")));
        assert_eq!(
            split_version("/v9.99/x").expect_err("new").message,
            "client version 9.99 is too new. Maximum supported API version is 1.51"
        );
        assert_eq!(
            split_version("/v1.10/x").expect_err("old").message,
            "client version 1.10 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"
        );
    }

    #[test]
    fn the_header_names_the_newest_version() {
        assert_eq!(MAX_VERSION.to_string(), "1.51");
    }
}
