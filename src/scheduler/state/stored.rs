//! What rows remember, for whoever judges by it what a new engine knows.

use std::net::IpAddr;
use std::sync::Arc;

use super::kind::Row;
use super::{PaceKind, PaceOf};
use crate::clock::Timestamp;
use crate::control::Selector;
use crate::message::QueueName;
use crate::policy::Rate;
use crate::scheduler::limits::Local;
use crate::storage::StateRow;

/// What a row remembers.
#[derive(Clone)]
pub(crate) enum Stored {
    /// Of a destination's retry clock.
    Step(StoredStep),
    /// Of a queue's mode.
    Mode(StoredMode),
    /// Of a slow rate.
    Pace(StoredPace),
    /// What is paused.
    Pause(Selector),
}

#[derive(Clone)]
pub(crate) struct StoredStep {
    pub(crate) queue: QueueName,
    pub(crate) source: Arc<str>,
    pub(crate) step: u32,
    /// It does not connect before this.
    pub(crate) until: Option<Timestamp>,
    /// DNS did not have what it needs: once it does, the clock begins anew.
    pub(crate) is_missing: bool,
}

#[derive(Clone)]
pub(crate) struct StoredMode {
    pub(crate) queue: QueueName,
    pub(crate) source: Arc<str>,
    /// It is in backoff: until then, or until something ends it.
    pub(crate) backoff: Option<Option<Timestamp>>,
    /// Deferred as a whole.
    pub(crate) held_until: Option<Timestamp>,
    /// Its source is disabled: until then, or until somebody enables it.
    pub(crate) disabled: Option<Option<Timestamp>>,
    pub(crate) connection_cap: Option<(u32, Timestamp)>,
    pub(crate) rate_cap: Option<(Rate, Timestamp)>,
    pub(crate) fuse_blown: bool,
}

#[derive(Clone)]
pub(crate) struct StoredPace {
    pub(crate) kind: StoredPaceKind,
    pub(crate) queue: QueueName,
    pub(crate) rate: Rate,
    /// When all that was taken is paid off.
    pub(crate) rests_at: Timestamp,
}

/// Of a source, or of an address.
#[derive(Clone)]
pub(crate) enum StoredPaceKind {
    Messages(Arc<str>),
    Capped(Arc<str>),
    Connections(Arc<str>),
    SourceIpMessages(IpAddr),
    SourceIpConnections(IpAddr),
}

impl Stored {
    /// `None`: the row can not be read, or is of what only this machine knows.
    pub(crate) fn of(row: &StateRow) -> Option<Self> {
        Some(match Row::read(row).ok()? {
            Row::Destination(row) => Self::Step(StoredStep {
                queue: row.queue.into(),
                source: row.source.into(),
                step: row.step,
                until: row.until,
                is_missing: row.missing.is_some(),
            }),
            Row::Queue(row) => Self::Mode(StoredMode {
                queue: row.queue.into(),
                source: row.source.into(),
                backoff: row.mode.backoff.map(|backoff| backoff.until),
                held_until: row.mode.held_until,
                disabled: row.mode.disabled.map(|disabled| disabled.until),
                connection_cap: row.mode.connection_cap,
                rate_cap: row.mode.rate_cap,
                fuse_blown: row.mode.fuse_blown,
            }),
            Row::Pace(row) => Self::Pace(StoredPace {
                kind: kind(row.kind, row.of)?,
                queue: row.queue.into(),
                rate: row.rate,
                rests_at: row.rests_at,
            }),
            Row::Pause(selector) => Self::Pause(selector),
        })
    }
}

fn kind(kind: PaceKind, of: PaceOf) -> Option<StoredPaceKind> {
    Some(match (kind, of) {
        (PaceKind::Messages, PaceOf::Source(source)) => StoredPaceKind::Messages(source.into()),
        (PaceKind::Capped, PaceOf::Source(source)) => StoredPaceKind::Capped(source.into()),
        (PaceKind::Connections, PaceOf::Source(source)) => StoredPaceKind::Connections(source.into()),
        (PaceKind::SourceIpMessages, PaceOf::Local(Local::Address(ip))) => {
            StoredPaceKind::SourceIpMessages(ip)
        }
        (PaceKind::SourceIpConnections, PaceOf::Local(Local::Address(ip))) => {
            StoredPaceKind::SourceIpConnections(ip)
        }
        _ => return None,
    })
}
