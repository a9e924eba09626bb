// SPDX-License-Identifier: Apache-2.0
//! The one error type of the Docker API: a status and the text that `{"message": …}` carries.
//!
//! Clients match on these texts, so they are Docker's, not ours. gRPC errors of the other daemons become HTTP here and
//! nowhere else.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::http::frame::Bare;

/// What every handler returns.
pub type ApiResult<T> = Result<T, ApiError>;

/// A fault as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Docker's text.
    pub message: String,
}

impl ApiError {
    /// Any status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501: `what` is known to Docker and absent here.
    pub fn absent(what: &str) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, format!("{what} is not implemented by Arca yet"))
    }

    /// Puts `context: ` before the text; the status stays.
    #[must_use]
    pub fn within(self, context: &str) -> Self {
        Self { status: self.status, message: format!("{context}: {}", self.message) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let unknown_path = self.message == "page not found";
        let mut response = (self.status, Json(json!({ "message": self.message }))).into_response();
        if unknown_path {
            response.extensions_mut().insert(Bare);
        }
        response
    }
}

impl From<std::io::Error> for ApiError {
    fn from(error: std::io::Error) -> Self {
        Self::internal(error.to_string())
    }
}

/// gRPC code to HTTP status, as the head of netd.proto says.
impl From<tonic::Status> for ApiError {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code;
        let http = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::AlreadyExists | Code::FailedPrecondition => StatusCode::CONFLICT,
            Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        // With a source it is the transport's own, not arca-netd's answer: the operator needs the name of the daemon.
        let transport = status.code() == Code::Unavailable && std::error::Error::source(&status).is_some();
        let message = if transport {
            format!("arca-netd does not answer (is it running?): {}", status.message())
        } else {
            status.message().to_owned()
        };
        Self::new(http, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_codes_become_the_statuses_the_contract_names() {
        use tonic::{Code, Status};
        for (code, http) in [
            (Code::InvalidArgument, 400),
            (Code::PermissionDenied, 403),
            (Code::NotFound, 404),
            (Code::AlreadyExists, 409),
            (Code::FailedPrecondition, 409),
            (Code::Unimplemented, 501),
            (Code::Unavailable, 503),
            (Code::Internal, 500),
            (Code::Unknown, 500),
        ] {
            assert_eq!(ApiError::from(Status::new(code, "x")).status.as_u16(), http, "{code:?}");
        }
        assert_eq!(ApiError::from(Status::not_found("network x not found")).message, "network x not found");
    }

    #[test]
    fn an_absent_endpoint_is_named() {
        let error = ApiError::absent("container stats");
        assert_eq!(error.status.as_u16(), 501);
        assert_eq!(error.message, "container stats is not implemented by Arca yet");
    }
}
