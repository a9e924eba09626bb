// SPDX-License-Identifier: Apache-2.0
//! The one place where an error becomes a gRPC status. The code tells arca-api the HTTP status (head of netd.proto).

use tonic::{Code, Status};

use crate::error::{Error, is_away};

/// Maps an error.
#[must_use]
#[allow(clippy::needless_pass_by_value, reason = "used as a `map_err` function")]
pub fn status(error: Error) -> Status {
    Status::new(code(&error), error.to_string())
}

fn code(error: &Error) -> Code {
    match error {
        Error::Invalid(_) => Code::InvalidArgument,
        Error::Forbidden(_) => Code::PermissionDenied,
        Error::NotFound(_) => Code::NotFound,
        Error::Conflict(_) => Code::AlreadyExists,
        Error::Busy(_) => Code::FailedPrecondition,
        Error::Unsupported(_) => Code::Unimplemented,
        Error::Unavailable(_) => Code::Unavailable,
        Error::Step { source, .. } => match code(source) {
            // A peer that is away may come back; anything else about a step is the engine's fault, not the client's.
            Code::Unavailable => Code::Unavailable,
            _ => Code::Internal,
        },
        Error::Peer { source, .. } if is_away(source) => Code::Unavailable,
        Error::Failed(_) | Error::Exhausted(_) | Error::Peer { .. } | Error::Store(_) | Error::Io { .. } => {
            Code::Internal
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_texts_reach_the_client_unchanged() {
        let mapped = status(Error::Forbidden("Address already in use".into()));
        assert_eq!((mapped.code(), mapped.message()), (Code::PermissionDenied, "Address already in use"));
    }

    #[test]
    fn a_step_is_named_and_a_peer_away_stays_unavailable() {
        let away = Error::peer("arca-relayd", "open link 3")(Status::unavailable("connection refused"));
        let mapped = status(Error::Step { network: "n".into(), step: "link", source: Box::new(away) });
        assert_eq!(mapped.code(), Code::Unavailable);
        assert_eq!(
            mapped.message(),
            "attach to network n failed at step \"link\": arca-relayd refused to open link 3: connection refused"
        );
        let broken = Error::peer("arca-tapfwd", "make interface eth2")(Status::cancelled("operation was canceled"));
        assert_eq!(status(broken).code(), Code::Unavailable);
    }
}
