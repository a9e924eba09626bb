// SPDX-License-Identifier: Apache-2.0
//! What registries refuse, in the words of Docker's engine.

use std::{error::Error as _, io};

use axum::http::StatusCode;
use oci_client::errors::{OciDistributionError, OciEnvelope};

use crate::http::ApiError;

/// Code and message of the first fault that a registry names (OCI distribution specification, "Error Codes").
pub(super) fn told(error: &OciDistributionError) -> Option<(String, String)> {
    let of = |envelope: &OciEnvelope| {
        let first = envelope.errors.first()?;
        let code = serde_json::to_value(&first.code).ok()?.as_str()?.to_lowercase().replace('_', " ");
        Some((code, first.message.clone()))
    };
    let parsed = |text: &str| serde_json::from_str::<OciEnvelope>(text).ok().and_then(|envelope| of(&envelope));
    match error {
        OciDistributionError::RegistryError { envelope, .. } => of(envelope),
        OciDistributionError::ServerError { message, .. } => parsed(message),
        OciDistributionError::AuthenticationFailure(text) => parsed(text),
        _ => None,
    }
}

fn status(error: &OciDistributionError) -> Option<u16> {
    match error {
        OciDistributionError::ServerError { code, .. } => Some(*code),
        OciDistributionError::UnauthorizedError { .. } => Some(401),
        OciDistributionError::RequestError(error) => error.status().map(|status| status.as_u16()),
        _ => None,
    }
}

/// The registry did not let us in, or is not there.
pub(super) fn of_ping(error: &OciDistributionError, url: &str, name: &str) -> ApiError {
    match error {
        OciDistributionError::RequestError(error) => unreachable(error, &format!("{url}/v2/")),
        OciDistributionError::AuthenticationFailure(_) => refused(error, name),
        other => ApiError::internal(plain(other)),
    }
}

/// What kept us from reading a manifest or a blob.
pub(super) fn of_pull(
    error: &OciDistributionError,
    reference: &str,
    name: &str,
    url: &str,
    signed_in: bool,
) -> ApiError {
    if let OciDistributionError::RequestError(error) = error {
        return unreachable(error, url);
    }
    if status(error) == Some(401) && !signed_in && told(error).is_none() {
        return ApiError::internal(format!("Head \"{url}\": no basic auth credentials"));
    }
    match told(error) {
        Some((code, message)) if code.ends_with("unknown") || code == "not found" => {
            ApiError::not_found(format!("manifest for {reference} not found: {code}: {message}"))
        }
        Some((code, message)) if code == "denied" || code == "unauthorized" => denied(name, &code, &message),
        Some((code, message)) if code == "toomanyrequests" => {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{code}: {message}"))
        }
        Some((code, message)) => ApiError::internal(format!("{code}: {message}")),
        None if status(error) == Some(401) => denied(name, "unauthorized", "authentication required"),
        None => ApiError::internal(plain(error)),
    }
}

/// A token was not given.
fn refused(error: &OciDistributionError, name: &str) -> ApiError {
    match told(error) {
        Some((code, message)) => denied(name, &code, &message),
        None => denied(name, "unauthorized", "authentication required"),
    }
}

fn denied(name: &str, code: &str, message: &str) -> ApiError {
    ApiError::not_found(format!(
        "pull access denied for {name}, repository does not exist or may require 'docker login': {code}: {message}"
    ))
}

/// What kept us from writing.
pub(super) fn of_push(error: &OciDistributionError, url: &str, signed_in: bool) -> ApiError {
    if let OciDistributionError::RequestError(error) = error
        && error.status().is_none()
    {
        return unreachable(error, url);
    }
    match (told(error), status(error)) {
        (Some((code, _)), _) if code == "unauthorized" && !signed_in => ApiError::internal("no basic auth credentials"),
        (Some((code, message)), _) => ApiError::internal(format!("{code}: {message}")),
        (None, Some(401)) if !signed_in => ApiError::internal("no basic auth credentials"),
        (None, Some(401)) => ApiError::internal("unauthorized: authentication required"),
        (None, _) => ApiError::internal(plain(error)),
    }
}

fn plain(error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::ServerError { code, message, .. } => {
            let code = StatusCode::from_u16(*code).map_or_else(|_| code.to_string(), |code| code.to_string());
            format!("received unexpected HTTP status: {code}{}{message}", if message.is_empty() { "" } else { ": " })
        }
        other => crate::machines::chain(other),
    }
}

/// A request that got no answer, as Go's HTTP client tells it.
pub(super) fn unreachable(error: &reqwest::Error, url: &str) -> ApiError {
    let host = url.split("//").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let mut cause: Option<&dyn std::error::Error> = error.source();
    let mut texts = Vec::new();
    let mut found = None;
    while let Some(one) = cause {
        texts.push(one.to_string());
        found = one.downcast_ref::<io::Error>().map(io::Error::kind).or(found);
        cause = one.source();
    }
    let all = texts.join(": ");
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let text = if all.contains("dns error") || all.contains("failed to lookup address") {
        match name_server() {
            Some(server) => format!("dial tcp: lookup {name} on {server}:53: no such host"),
            None => format!("dial tcp: lookup {name}: no such host"),
        }
    } else if error.is_timeout() {
        "net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)"
            .into()
    } else {
        match found {
            Some(io::ErrorKind::ConnectionRefused) => {
                format!("dial tcp {}: connect: connection refused", dialled(host, url))
            }
            Some(io::ErrorKind::HostUnreachable) => {
                format!("dial tcp {}: connect: no route to host", dialled(host, url))
            }
            Some(io::ErrorKind::NetworkUnreachable) => {
                format!("dial tcp {}: connect: network is unreachable", dialled(host, url))
            }
            _ => texts.last().cloned().unwrap_or_else(|| error.to_string()),
        }
    };
    ApiError::internal(format!("Get \"{url}\": {text}"))
}

/// Who was asked for a name: the first server of this machine.
fn name_server() -> Option<String> {
    let text = std::fs::read_to_string("/etc/resolv.conf").ok()?;
    text.lines().find_map(|line| line.strip_prefix("nameserver ")).map(|server| server.trim().to_owned())
}

/// The address that was dialled last, as far as it can be told from outside.
fn dialled(host: &str, url: &str) -> String {
    let port = if url.starts_with("https") { 443 } else { 80 };
    let whole = match host.rsplit_once(':') {
        Some((_, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => host.to_owned(),
        _ => format!("{host}:{port}"),
    };
    match whole.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => whole,
    }
}
