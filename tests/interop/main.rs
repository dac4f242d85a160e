//! The mailer example as a process, against a real DNS server (knotd), real SMTP servers (Postfix and its smtp-sink, Exim,
//! aiosmtpd) and one that keeps what it gets octet for octet, all on loopback. And parts of it: the transport against
//! OpenSSL, the engine with MTA-STS policies from a web server, and DANE with zones that knotd signs and Unbound validates.
//!
//! Where a server is missing its tests skip and say so; with `POSTRIDER_INTEROP=require` they fail. `.ci/run` installs
//! all of them; Exim it unpacks into the target folder, and `POSTRIDER_EXIM` names one that lies elsewhere.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test panics when something is wrong"
)]

mod aiosmtpd;
mod chunking;
mod controls;
mod controls_dns;
mod controls_limits;
mod controls_modes;
mod controls_outcomes;
mod controls_rollup;
mod controls_rules;
mod dane;
mod delivery;
mod example;
mod exim;
mod exim_mail;
mod failures;
mod mta_sts;
mod postfix;
mod process;
mod recorder;
mod replay;
mod restarts;
mod sink_modes;
mod site;
mod tls;
mod why;

use postrider::clock::Timestamp;
use serde_json::{Value, json};

/// A line of input.
fn submission(reference: &str, to: &str, data: &str) -> String {
    json!({ "ref": reference, "from": "sender@sender.example", "to": [to], "data": data }).to_string()
}

/// A text field of a record, empty if it is not there.
fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_default()
}

/// A time field of a record.
fn time(record: &Value, field: &str) -> Timestamp {
    text(record, field).parse().unwrap_or_else(|error| panic!("{field}: {error} in {record}"))
}
