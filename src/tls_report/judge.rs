//! Whether a connection was as its mail's domain wants it.

use super::{SessionTls, TlsResult};
use crate::dane::TlsaSet;
use crate::mta_sts::{KnownPolicy, Mode};
use crate::transport::{ConnectError, EndCause};

/// Whether a connection was as the host's TLSA records want it. `None`: it says nothing of TLS.
pub(super) fn by_records(
    set: &TlsaSet,
    session: Result<SessionTls, &ConnectError>,
) -> Option<Result<(), TlsResult>> {
    let is_about_certificate =
        session.is_ok() || session.is_err_and(|error| matches!(error.cause, EndCause::Certificate(..)));
    // Without a usable record any certificate will do, and who refused it was somebody else.
    if !set.authenticates() && is_about_certificate {
        return Some(Err(TlsResult::TlsaInvalid));
    }
    by_tls(session)
}

/// Whether a connection was as a policy wants it. `None`: it says nothing of TLS.
pub(super) fn by_policy(
    policy: &KnownPolicy,
    host: &str,
    session: Result<SessionTls, &ConnectError>,
) -> Option<Result<(), TlsResult>> {
    match session {
        Ok(tls) if tls.is_there => match tls.certificate {
            _ if !policy.policy().permits(host) => Some(Err(TlsResult::ValidationFailure)),
            // Nobody looked at it since then: it was verified as the session was opened.
            None if policy.policy().mode() == Mode::Enforce => Some(Ok(())),
            verdict => verdict.map(|verdict| verdict.map_err(TlsResult::from)),
        },
        session => by_tls(session),
    }
}

/// Whether a connection had TLS, with a certificate that nobody had to say anything against who was to look at it.
pub(super) fn by_tls(session: Result<SessionTls, &ConnectError>) -> Option<Result<(), TlsResult>> {
    Some(match session {
        Ok(tls) if tls.is_there => Ok(()),
        Ok(_) => Err(TlsResult::StartTlsNotSupported),
        Err(error) => match &error.cause {
            EndCause::TlsNotOffered | EndCause::TlsRefused(_) => Err(TlsResult::StartTlsNotSupported),
            EndCause::Certificate(problem, _) => Err((*problem).into()),
            EndCause::Tls(_) => Err(TlsResult::ValidationFailure),
            _ => return None,
        },
    })
}
