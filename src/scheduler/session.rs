//! Connections, from the wish for one to its end.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::SmallVec;

use super::DestinationKey;
use super::event::Opened;
use super::fault::Fault;
use super::holds::Holds;
use crate::clock::Timestamp;
use crate::dane::TlsaSet;
use crate::event::Diagnosis;
use crate::policy::{Credentials, QueueSettings};
use crate::storage::ItemId;
use crate::transport::{Protocol, TlsWish};

/// An address to try, and the host that led there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) host: Arc<str>,
    pub(super) peer: SocketAddr,
    /// What the host demands by its TLSA records.
    pub(super) tlsa: Option<Arc<TlsaSet>>,
    /// The host is the domain's by more than plain DNS, TLSA records apart ([`Route::has_authentic_hosts`]).
    ///
    /// [`Route::has_authentic_hosts`]: crate::dns::Route::has_authentic_hosts
    pub(super) vouched_for: bool,
}

/// Addresses, each with its group. Most attempts have one.
pub(super) type Candidates = SmallVec<[(u32, Candidate); 1]>;

/// One attempt to reach a destination: its addresses in order, until one takes us.
pub(super) struct Attempt {
    /// Addresses not tried yet, each with its group. A group is tried when those before it are used up.
    untried: Candidates,
    /// What the last candidate met.
    pub(super) last: Option<Box<(Candidate, Diagnosis)>>,
    /// Every failure so far was this machine's own.
    pub(super) all_local: bool,
    /// Every address so far was IPv6.
    pub(super) all_ipv6: bool,
    /// Every failure so far was a 521 (RFC 7504): the host takes no mail at all.
    pub(super) all_521: bool,
    /// Every failure so far was a 5xx.
    pub(super) all_5xx: bool,
    /// It leaves out hosts for mail that these can not take.
    pub(super) seeks: bool,
}

impl Default for Attempt {
    fn default() -> Self {
        Self {
            untried: Candidates::new(),
            last: None,
            all_local: true,
            all_ipv6: true,
            all_521: true,
            all_5xx: true,
            seeks: false,
        }
    }
}

impl Attempt {
    /// Addresses with their groups, the best group first.
    pub(super) fn new(untried: Candidates) -> Self {
        Self { untried, ..Self::default() }
    }

    /// The addresses that may be tried now, in order.
    pub(super) fn group(&self) -> impl Iterator<Item = &Candidate> {
        let best = self.untried.first().map(|&(group, _)| group);
        let group = self.untried.iter().take_while(move |&&(group, _)| Some(group) == best);
        group.map(|(_, candidate)| candidate)
    }

    /// Every address was tried.
    pub(super) fn is_exhausted(&self) -> bool {
        self.untried.is_empty()
    }

    /// Takes out one of the group, to try it.
    pub(super) fn take(&mut self, index: usize) -> Option<Candidate> {
        (index < self.untried.len()).then(|| self.untried.remove(index).1)
    }

    /// Leaves out all addresses of a host.
    pub(super) fn skip(&mut self, host: &str) {
        self.untried.retain(|(_, candidate)| *candidate.host != *host);
    }
}

pub(super) struct Connection {
    pub(super) destination: DestinationKey,
    /// That of its queue.
    pub(super) source: Arc<str>,
    /// Of no use any more once a transaction is done.
    pub(super) attempt: Attempt,
    /// Where it leads, or is to lead.
    pub(super) current: Candidate,
    /// The permits it holds.
    pub(super) holds: Holds,
    pub(super) state: State,
    /// Transactions begun on it.
    pub(super) used: u32,
    /// Transactions that ended with a reply to the dot, or with verdicts for all.
    pub(super) completed: u32,
    /// It has waited for work since it was opened.
    pub(super) has_idled: bool,
    /// Its address no longer belongs to the destination: no new transaction.
    pub(super) retired: bool,
    /// It is idle and stands where others find it.
    pub(super) listed: bool,
    /// What it was opened with.
    pub(super) wish: Wish,
    /// The TLSA records that were demanded of it.
    pub(super) tlsa: Option<Arc<TlsaSet>>,
    pub(super) opened: Opened,
    pub(super) timer: Option<Timestamp>,
}

impl Connection {
    /// Wished for, and not open yet.
    pub(super) fn new(
        destination: DestinationKey,
        source: Arc<str>,
        attempt: Attempt,
        current: Candidate,
        holds: Holds,
    ) -> Self {
        Self {
            destination,
            source,
            attempt,
            current,
            holds,
            state: State::Opening,
            used: 0,
            completed: 0,
            has_idled: false,
            retired: false,
            listed: false,
            wish: Wish::default(),
            tlsa: None,
            opened: Opened::default(),
            timer: None,
        }
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        let peer = SocketAddr::from(([192, 0, 2, 1], 25));
        let current = Candidate { host: "mx.example".into(), peer, tlsa: None, vouched_for: false };
        let nowhere = DestinationKey::of_nothing();
        Self::new(nowhere, "default".into(), Attempt::default(), current, Holds::default())
    }

    pub(super) fn meeting(&self) -> Meeting {
        Meeting::new(self.source.clone(), &self.current, self.wish.clone())
    }

    /// Whether a certificate proved that its server is that of the domain whose mail it carries now. Who is known by TLSA records
    /// is known as the host that has them, and no roots were asked.
    pub(super) fn is_authentic(&self) -> bool {
        let by_records = |tlsa: &Option<Arc<TlsaSet>>| tlsa.as_ref().is_some_and(|tlsa| tlsa.authenticates());
        by_records(&self.current.tlsa) || self.current.vouched_for && !by_records(&self.tlsa)
    }

    /// Whether its server has proved to be the host of this name, with these TLSA records, as far as it is to.
    pub(super) fn serves(&self, host: &str, tlsa: Option<&TlsaSet>) -> bool {
        let proved = self.tlsa.as_deref();
        let certificate = self.opened.certificate.as_ref();
        let is_valid_for = |host: &str| certificate.is_some_and(|certificate| certificate.is_valid_for(host));
        if let Some(demanded) = tlsa
            && !proved.is_some_and(|proved| proved.proves(demanded, is_valid_for))
            && (demanded.authenticates() || self.opened.tls.is_none())
        {
            return false;
        }
        // Usable records do in place of roots, and roots were not asked where they did.
        let needs_roots = self.wish.tls.is_verified() && !tlsa.is_some_and(TlsaSet::authenticates);
        let asked_roots = !proved.is_some_and(TlsaSet::authenticates);
        !needs_roots || (asked_roots && (*self.current.host == *host || is_valid_for(host)))
    }
}

/// What a queue wishes of its sessions. Others use them only if they wish the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Wish {
    pub(super) protocol: Protocol,
    pub(super) tls: TlsWish,
    pub(super) credentials: Option<Credentials>,
}

impl Wish {
    pub(super) fn of(settings: &QueueSettings) -> Self {
        let (protocol, tls) = (settings.protocol(), settings.tls_wish());
        Self { protocol, tls, credentials: settings.credentials() }
    }
}

/// Where an idle session and those who may use it find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meeting {
    source: Arc<str>,
    peer: SocketAddr,
    wish: Wish,
}

/// Sources have many sessions to one address each; what is wished of them hardly differs.
impl Hash for Meeting {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.source.hash(state);
        let address = match self.peer.ip() {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        state.write_u128(address);
        state.write_u16(self.peer.port());
    }
}

impl Meeting {
    pub(super) fn new(source: Arc<str>, to: &Candidate, mut wish: Wish) -> Self {
        if Fault::SharedWithoutTls.is_there() {
            wish.tls = TlsWish::default();
        }
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let peer = if Fault::SentElsewhere.is_there() { nowhere } else { to.peer };
        Self { source, peer, wish }
    }
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
    pub(super) recipients: SmallVec<[u32; 4]>,
    /// Octets of content charged to the transit budget.
    pub(super) octets: usize,
    pub(super) begun: Timestamp,
}
