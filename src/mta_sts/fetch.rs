//! Who gets policies: the trait [`PolicyFetcher`].

use std::fmt::{Debug, Display};

use async_trait::async_trait;
use bytes::Bytes;

use crate::dns::Resolver;
use crate::policy::Cidr;

/// Gets the policy files of domains: `https://mta-sts.<domain>/.well-known/mta-sts.txt` (RFC 8461 §3.3).
///
/// # Contract
///
/// - The server proves by a certificate that it is `mta-sts.<domain>`, or its answer counts for nothing.
/// - Only status 200 with the media type `text/plain` is an answer. Redirects are not followed, and nothing is taken
///   from an HTTP cache.
/// - No more than [`MAX_POLICY_SIZE`](super::MAX_POLICY_SIZE) octets are read.
/// - Nothing is remembered: the engine does so. It gives up after 60 s, asks for one domain once at a time, and for 256 at once.
///
/// # Cancel safety
///
/// The future may be dropped at any time.
#[async_trait]
pub trait PolicyFetcher: Debug + Display + Send + Sync + 'static {
    /// The file as it stands.
    ///
    /// # Errors
    /// [`FetchError`]. The domain is asked again after five minutes; meanwhile the policy last seen counts, if there is
    /// one.
    async fn fetch(&self, request: &PolicyRequest<'_>) -> Result<Bytes, FetchError>;
}

fn _obj_safe(_: &dyn PolicyFetcher) {}

/// Whose policy is wanted, and what there is to find the way by.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "the engine builds it")]
pub struct PolicyRequest<'a> {
    /// The domain the mail is for: lower case, A-labels, no trailing dot.
    pub domain: &'a str,
    /// Answers DNS questions.
    pub resolver: &'a dyn Resolver,
    /// Addresses never to be asked, since whoever owns the domain chose them (`prohibited-addresses`).
    pub prohibited: &'a [Cidr],
}

impl PolicyRequest<'_> {
    /// The host that is to be asked.
    pub fn host(&self) -> String {
        format!("mta-sts.{}", self.domain)
    }
}

/// A policy that could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FetchError {
    kind: FetchErrorKind,
    message: String,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FetchErrorKind {
    /// No answer: no address, no connection, no TLS, no HTTP, another status than 200.
    NoAnswer,
    /// The server's certificate is not valid for the host.
    Certificate,
    /// An answer that is no policy file: another media type, too large.
    NoPolicy,
}

impl FetchError {
    /// An error of this kind; `message` names the host and what happened.
    pub fn new(kind: FetchErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Which kind.
    pub fn kind(&self) -> FetchErrorKind {
        self.kind
    }
}
