//! In place of `tls.rs` in a build without the feature `tls`.

use super::connector::Stream;
use crate::transport::{EndCause, Target};

#[derive(Debug, Default)]
pub(super) struct Tls;

impl Tls {
    /// A policy of this build asks for none; a host's own target may.
    pub(super) async fn handshake(
        &self,
        _: Box<dyn Stream>,
        _: &Target,
    ) -> Result<(Box<dyn Stream>, String), EndCause> {
        Err(EndCause::Local("this build lacks the feature `tls`".into()))
    }
}
