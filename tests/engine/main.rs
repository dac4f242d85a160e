//! The whole engine on paused time: in-process servers, a zone in text, the stores.

#![allow(clippy::disallowed_methods, reason = "virtual time passes in sleeps")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod addresses;
mod auth;
mod basics;
mod chunking;
mod controls;
#[cfg(feature = "mta-sts")]
mod dane;
mod dsn;
mod failures;
#[cfg(feature = "tls")]
mod fault_matrix;
mod lifecycle;
mod lmtp;
#[cfg(feature = "mta-sts")]
mod mta_sts;
mod regressions;
mod retry;
mod session_limits;
mod storage;
mod support;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "mta-sts")]
mod tls_reports;
mod why;
