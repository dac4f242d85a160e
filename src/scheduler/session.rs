//! Connections, from the wish for one to its end.

use std::net::SocketAddr;
use std::sync::Arc;

use super::DestinationKey;
use crate::clock::Timestamp;
use crate::event::Diagnosis;
use crate::storage::ItemId;

/// An address to try, and the host that led there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) host: Arc<str>,
    pub(super) peer: SocketAddr,
}

/// One attempt to reach a destination: its addresses in order, until one takes us.
pub(super) struct Attempt {
    candidates: std::vec::IntoIter<Candidate>,
    pub(super) current: Candidate,
    /// What the last candidate met.
    pub(super) last: Option<(Candidate, Diagnosis)>,
    /// Every failure so far was this machine's own.
    pub(super) all_local: bool,
    /// Every address so far was IPv6.
    pub(super) all_ipv6: bool,
    /// Every failure so far was a 521 (RFC 7504): the host takes no mail at all.
    pub(super) all_521: bool,
    /// Every failure so far was a 5xx.
    pub(super) all_5xx: bool,
}

impl Attempt {
    pub(super) fn new(candidates: Vec<Candidate>) -> Option<Self> {
        let mut candidates = candidates.into_iter();
        let current = candidates.next()?;
        Some(Self {
            candidates,
            current,
            last: None,
            all_local: true,
            all_ipv6: true,
            all_521: true,
            all_5xx: true,
        })
    }

    /// Goes on to the next address. `false`: there is none.
    pub(super) fn advance(&mut self) -> bool {
        match self.candidates.next() {
            Some(next) => {
                self.current = next;
                true
            }
            None => false,
        }
    }
}

pub(super) struct Connection {
    pub(super) destination: DestinationKey,
    pub(super) attempt: Attempt,
    pub(super) state: State,
    /// Transactions begun on it.
    pub(super) used: u32,
    /// Transactions that ended with a reply to the dot, or with verdicts for all.
    pub(super) completed: u32,
    /// It has waited for work since it was opened.
    pub(super) has_idled: bool,
    /// Its address no longer belongs to the destination: no new transaction.
    pub(super) retired: bool,
    pub(super) tls: Option<Arc<str>>,
    pub(super) timer: Option<Timestamp>,
}

pub(super) enum State {
    Opening,
    Idle {
        since: Timestamp,
    },
    Busy(InTransaction),
    /// Its transaction ended just now; what becomes of it is decided before the event is done with.
    Between,
    /// QUIT was asked for, or the socket is closing.
    Closing,
}

/// What of an item is in the transaction.
pub(super) struct InTransaction {
    pub(super) item: ItemId,
    /// Which recipients, by index, in the order they were given to the transport.
    pub(super) recipients: Vec<u32>,
    /// Octets of content charged to the transit budget.
    pub(super) octets: usize,
}
