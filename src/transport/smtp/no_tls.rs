//! In place of `tls.rs` in a build without the feature `tls`.

use std::sync::Arc;

use super::connector::Stream;
use crate::transport::{CertificateProblem, EndCause, PeerCertificate, Target};

#[derive(Debug, Default)]
pub(super) struct Tls;

/// What a handshake would have come to.
#[derive(Clone, Debug)]
pub(super) struct Secured {
    pub(super) what: String,
    pub(super) certificate: Option<PeerCertificate>,
}

impl Secured {
    pub(super) async fn certificate_verdict(&mut self) -> Option<Result<(), CertificateProblem>> {
        None
    }
}

impl Tls {
    /// A policy of this build asks for none; a host's own target may.
    pub(super) async fn handshake(
        self: &Arc<Self>,
        _: Box<dyn Stream>,
        _: &Target,
    ) -> Result<(Box<dyn Stream>, Secured), EndCause> {
        Err(EndCause::Local("this build lacks the feature `tls`".into()))
    }
}
