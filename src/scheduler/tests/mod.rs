//! Rules of the scheduler, by events and commands.

mod auth;
mod backoff;
mod bounce_queue;
mod cancel;
mod consistency;
mod control;
mod dane;
mod expiry;
mod harness;
mod hosts;
mod ip_limits;
mod limits;
mod mta_sts;
mod mta_sts_expiry;
mod no_mx;
mod property;
mod rates;
mod require_tls;
mod retry;
mod rollup;
mod rules;
mod session_limits;
mod sharing;
mod state;
#[cfg(feature = "tls")]
mod tls;
mod verdict;
mod why;
mod window;
mod worlds;
mod writes;
