//! A scheduler in a world that does what the test says.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use crate::clock::Timestamp;
use crate::dns::{DnsErrorKind, Freshness, Route, RouteFailure, RouteFailureKind, RouteHost, RouteKind};
use crate::event::{Category, DeliveryEvent, Diagnosis, Failure, Reason};
use crate::message::{Address, Message, MessageId};
use crate::policy::Policy;
use crate::reply::{Reply, Stage};
use crate::scheduler::{
    Answer, Bounds, CancelReport, ClaimId, Command, ConnectionId, DestinationKey, Event, Outgoing, Scheduler,
    SubmitFailure, Token,
};
use crate::storage::{
    Change, ClaimPart, ClaimRequest, Filter, ListPosition, MemoryStorage, NewMessage, OutboxPosition, Owner,
    Storage, StorageError, StorageErrorKind,
};
use crate::transport::{ConnectError, EndCause, RecipientReport, SessionEnd, Target, TransactionReport};

pub(crate) const OWNER: Owner = Owner(7);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn start() -> Timestamp {
    Timestamp::from_unix_seconds(1_800_000_000)
}

pub(crate) fn reply(text: &str) -> Reply {
    Reply::parse(text).unwrap()
}

/// Which commands wait for the test to answer them. All others are answered at once.
#[derive(Default)]
pub(crate) struct ByHand {
    pub(crate) insert: bool,
    pub(crate) commit: bool,
    pub(crate) claim: bool,
    pub(crate) resolve: bool,
    pub(crate) close: bool,
    pub(crate) list: bool,
}

/// The scheduler, a store that answers at once, and lists of what waits for the test's answer.
pub(crate) struct Rig {
    pub(crate) scheduler: Scheduler,
    pub(crate) now: Timestamp,
    pub(crate) store: MemoryStorage,
    pub(crate) by_hand: ByHand,
    /// By domain; unlisted: one host `mx.<domain>` at [`address_of`] it.
    pub(crate) routes: HashMap<String, Result<Arc<Route>, RouteFailure>>,
    pub(crate) inserts: VecDeque<Vec<NewMessage>>,
    pub(crate) commits: VecDeque<Vec<Change>>,
    pub(crate) claims: VecDeque<(ClaimId, Vec<ClaimPart>)>,
    pub(crate) resolves: VecDeque<(DestinationKey, String)>,
    /// Every look-up so far: when (in seconds since the start), of what, and how.
    pub(crate) looked_up: Vec<(u64, String, Freshness)>,
    pub(crate) lists: VecDeque<(Token, MessageId)>,
    pub(crate) pages: VecDeque<(Token, Filter, Option<ListPosition>)>,
    pub(crate) done: BTreeMap<Token, Result<u64, StorageError>>,
    pub(crate) connects: VecDeque<(ConnectionId, Target)>,
    pub(crate) transacts: VecDeque<(ConnectionId, Outgoing)>,
    pub(crate) closes: VecDeque<ConnectionId>,
    /// Every event, final ones from the commits that made them durable.
    pub(crate) events: Vec<DeliveryEvent>,
    pub(crate) submitted: BTreeMap<Token, Result<MessageId, SubmitFailure>>,
    pub(crate) cancelled: BTreeMap<Token, Result<CancelReport, StorageError>>,
    /// Every command, as text: what determinism is compared by.
    pub(crate) commands: Vec<String>,
    pub(crate) keeps_commands: bool,
    pub(crate) drained: bool,
    pub(crate) committed: usize,
    next_token: u64,
    answering: bool,
    steps: usize,
    /// All counters are recomputed at every so many steps.
    pub(crate) check_every: usize,
    reported: OutboxPosition,
    /// Where each connection leads, or last tried to.
    pub(crate) peers: HashMap<ConnectionId, SocketAddr>,
    /// When a connection to where was asked for.
    pub(crate) dialled: Vec<(Timestamp, SocketAddr)>,
    /// The same, and from where.
    pub(crate) dialled_by: Vec<(Timestamp, String)>,
    /// Every transaction: when, over which connection, where to, for whom.
    pub(crate) offered: Vec<Offer>,
}

/// A transaction that was begun.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) at: Timestamp,
    pub(crate) connection: ConnectionId,
    pub(crate) peer: SocketAddr,
    pub(crate) recipients: Vec<Address>,
}

impl Rig {
    /// With the settings of `[domain."*"]`.
    pub(crate) fn new(settings: &str) -> Self {
        Self::with_policy(&format!("[domain.\"*\"]\n{settings}"), Bounds::default())
    }

    pub(crate) fn with_policy(policy: &str, bounds: Bounds) -> Self {
        Self::over(MemoryStorage::new(), policy, bounds, start())
    }

    pub(crate) fn over(store: MemoryStorage, policy: &str, bounds: Bounds, now: Timestamp) -> Self {
        let policy = Policy::from_toml(policy).unwrap();
        Self {
            scheduler: Scheduler::new(policy, "mta.example.org".into(), OWNER, 1, bounds),
            now,
            store,
            by_hand: ByHand::default(),
            routes: HashMap::new(),
            inserts: VecDeque::new(),
            commits: VecDeque::new(),
            claims: VecDeque::new(),
            resolves: VecDeque::new(),
            looked_up: Vec::new(),
            lists: VecDeque::new(),
            pages: VecDeque::new(),
            done: BTreeMap::new(),
            connects: VecDeque::new(),
            transacts: VecDeque::new(),
            closes: VecDeque::new(),
            events: Vec::new(),
            submitted: BTreeMap::new(),
            cancelled: BTreeMap::new(),
            commands: Vec::new(),
            keeps_commands: false,
            drained: false,
            committed: 0,
            next_token: 0,
            answering: false,
            steps: 0,
            check_every: 1,
            reported: OutboxPosition::default(),
            peers: HashMap::new(),
            dialled: Vec::new(),
            dialled_by: Vec::new(),
            offered: Vec::new(),
        }
    }

    /// A crash and a restart at the same time: the store as it was, all else anew.
    pub(crate) fn restarted(self, policy: &str) -> Self {
        let mut rig = Self::over(self.store.reopened(), policy, Bounds::default(), self.now);
        rig.reported = self.reported;
        rig.routes = self.routes;
        let rows = rig.store.state(None, 1_000).now_or_never().unwrap().unwrap();
        rig.tell(Event::State(rows));
        let heads = rig.store.heads(None, 1_000).now_or_never().unwrap().unwrap();
        rig.tell(Event::Heads(heads));
        rig
    }

    /// Tells the scheduler and answers all that is not by hand.
    pub(crate) fn tell(&mut self, event: Event) -> &mut Self {
        self.scheduler.handle(self.now, event);
        self.carry_out();
        self
    }

    /// Lets time pass, timer by timer.
    pub(crate) fn pass(&mut self, time: Duration) -> &mut Self {
        let until = self.now + time;
        let mut timers = 0;
        while let Some(at) = self.scheduler.poll_timeout().filter(|&at| at <= until) {
            timers += 1;
            assert!(timers < 100_000, "timers without end: {:?}", self.commands.last());
            self.now = self.now.max(at);
            self.scheduler.handle_timeout(self.now);
            self.carry_out();
        }
        self.now = until;
        self
    }

    /// Jumps to the scheduler's next timer; how long that was.
    pub(crate) fn next_timer(&mut self) -> Duration {
        let at = self.scheduler.poll_timeout().expect("a timer");
        let passed = at.saturating_since(self.now);
        self.pass(passed);
        passed
    }

    pub(crate) fn carry_out(&mut self) {
        // With much mail each check is long: then now and again.
        self.steps += 1;
        let is_small = self.scheduler.lanes.len() + self.scheduler.window.len() < 64;
        if self.steps.is_multiple_of(if is_small { self.check_every } else { 61 }) {
            self.scheduler.assert_consistent();
        }
        while let Some(command) = self.scheduler.poll_command() {
            if self.keeps_commands {
                self.commands.push(format!("{} {command:?}", self.now.as_unix_micros()));
            }
            match command {
                Command::Insert(messages) => self.inserts.push_back(messages),
                Command::Commit(changes) => self.commits.push_back(Arc::unwrap_or_clone(changes)),
                Command::Claim { claim, what } => self.claims.push_back((claim, what)),
                Command::List { token, message } => self.lists.push_back((token, message)),
                Command::Page { token, filter, after } => self.pages.push_back((token, filter, after)),
                Command::Resolve { destination, domain, freshness, .. } => {
                    self.looked_up.push((self.elapsed(), domain.to_string(), freshness));
                    self.resolves.push_back((destination, domain.to_string()));
                }
                Command::Connect { connection, target, .. } => {
                    self.peers.insert(connection, target.peer);
                    self.dialled.push((self.now, target.peer));
                    let local = target.local.map(|local| local.to_string());
                    self.dialled_by.push((self.now, local.unwrap_or_default()));
                    self.connects.push_back((connection, *target));
                }
                Command::Transact { connection, transaction } => {
                    let (peer, recipients) = (self.peers[&connection], transaction.recipients.clone());
                    self.offered.push(Offer { at: self.now, connection, peer, recipients });
                    self.transacts.push_back((connection, *transaction));
                }
                Command::Close { connection } => self.closes.push_back(connection),
                Command::Report(event) => self.events.push(*event),
                Command::Answer { token, answer: Answer::Submitted(result) } => {
                    assert!(self.submitted.insert(token, result).is_none(), "answered twice");
                }
                Command::Answer { token, answer: Answer::Cancelled(result) } => {
                    assert!(self.cancelled.insert(token, result).is_none(), "answered twice");
                }
                Command::Answer { token, answer: Answer::Done(result) } => {
                    assert!(self.done.insert(token, result).is_none(), "answered twice");
                }
                Command::Drained => self.drained = true,
            }
            assert!(
                self.inserts.len() <= 1 && self.commits.len() <= 1,
                "one insert and one commit at a time"
            );
        }
        if !std::mem::replace(&mut self.answering, true) {
            let mut answers = 0;
            while self.answer_one() {
                answers += 1;
                assert!(answers < 100_000, "commands without end: {:?}", self.commands.last());
            }
            self.answering = false;
        }
    }

    fn answer_one(&mut self) -> bool {
        if !self.by_hand.insert && !self.inserts.is_empty() {
            self.insert();
        } else if !self.by_hand.commit && !self.commits.is_empty() {
            self.commit();
        } else if !self.by_hand.claim && !self.claims.is_empty() {
            self.claim();
        } else if !self.by_hand.list && !self.lists.is_empty() {
            self.list();
        } else if !self.by_hand.list && !self.pages.is_empty() {
            self.page();
        } else if !self.by_hand.resolve && !self.resolves.is_empty() {
            self.resolve();
        } else if !self.by_hand.close && !self.closes.is_empty() {
            self.close();
        } else {
            return false;
        }
        true
    }

    pub(crate) fn insert(&mut self) -> &mut Self {
        let messages = self.inserts.pop_front().expect("an insert");
        let result = self.store.insert(messages).now_or_never().unwrap();
        self.tell(Event::InsertDone(result))
    }

    pub(crate) fn fail_insert(&mut self, kind: StorageErrorKind) -> &mut Self {
        self.inserts.pop_front().expect("an insert");
        self.tell(Event::InsertDone(Err(StorageError::new(kind, "made up"))))
    }

    pub(crate) fn commit(&mut self) -> &mut Self {
        let changes = self.commits.pop_front().expect("a commit");
        let result = self.store.commit(changes).now_or_never().unwrap();
        self.committed += 1;
        let outbox = self.store.outbox(self.reported, usize::MAX).now_or_never().unwrap().unwrap();
        for entry in outbox {
            self.reported = entry.position;
            self.events.push(crate::outbox::event(&entry).unwrap());
        }
        self.tell(Event::CommitDone(result))
    }

    pub(crate) fn fail_commit(&mut self, kind: StorageErrorKind) -> &mut Self {
        self.commits.pop_front().expect("a commit");
        self.tell(Event::CommitDone(Err(StorageError::new(kind, "made up"))))
    }

    pub(crate) fn claim(&mut self) -> &mut Self {
        let (claim, what) = self.claims.pop_front().expect("a claim");
        let request = ClaimRequest { owner: OWNER, now: self.now, until: self.now + HOUR, what };
        let result = self.store.claim(request).now_or_never().unwrap();
        self.tell(Event::Claimed { claim, result })
    }

    pub(crate) fn fail_claim(&mut self, kind: StorageErrorKind) -> &mut Self {
        let (claim, _) = self.claims.pop_front().expect("a claim");
        self.tell(Event::Claimed { claim, result: Err(StorageError::new(kind, "made up")) })
    }

    pub(crate) fn list(&mut self) -> &mut Self {
        let (token, message) = self.lists.pop_front().expect("a list");
        let result = self.store.list(Filter::Message(message), None, usize::MAX).now_or_never().unwrap();
        self.tell(Event::Listed { token, result })
    }

    pub(crate) fn page(&mut self) -> &mut Self {
        let (token, filter, after) = self.pages.pop_front().expect("a page");
        let result = self.store.list(filter, after, 3).now_or_never().unwrap();
        self.tell(Event::Page { token, result })
    }

    /// Says something to the scheduler; the token of the answer.
    pub(crate) fn control(&mut self, control: crate::scheduler::Control) -> Token {
        let token = self.token();
        self.tell(Event::Control { token, control });
        token
    }

    pub(crate) fn resolve(&mut self) -> &mut Self {
        let (destination, domain) = self.resolves.pop_front().expect("a look-up");
        let result = self.routes.get(&domain).cloned();
        let result =
            result.unwrap_or_else(|| Ok(route(&[&[(&format!("mx.{domain}"), &[&address_of(&domain)])]])));
        self.tell(Event::Resolved { destination, result })
    }

    pub(crate) fn close(&mut self) -> &mut Self {
        let connection = self.closes.pop_front().expect("a close");
        self.tell(Event::Closed { connection })
    }

    /// Submits a message to these; the token of the answer.
    pub(crate) fn submit_to(&mut self, to: &[&str]) -> Token {
        self.submit_message(Message::new("s@sender.example", to, "Subject: x\r\n\r\nhi\r\n").unwrap())
    }

    pub(crate) fn submit_message(&mut self, message: Message) -> Token {
        let token = self.token();
        self.tell(Event::Submit { token, message: Box::new(message) });
        token
    }

    pub(crate) fn submit(&mut self, to: &str) -> MessageId {
        let token = self.submit_to(&[to]);
        *self.submitted[&token].as_ref().unwrap()
    }

    pub(crate) fn cancel(&mut self, message: MessageId) -> Token {
        let token = self.token();
        self.tell(Event::Cancel { token, message });
        token
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    /// The oldest wish for a connection, which then is to be answered.
    pub(crate) fn opening(&mut self) -> (ConnectionId, Target) {
        self.connects.pop_front().expect("a connection is wanted")
    }

    /// The oldest connection wanted succeeds.
    pub(crate) fn connect(&mut self) -> ConnectionId {
        let (connection, _) = self.opening();
        self.tell(Event::Connected { connection, opened: Default::default() });
        connection
    }

    /// The oldest connection wanted fails; where it was to go.
    pub(crate) fn fail_connect(&mut self, cause: EndCause) -> SocketAddr {
        let (connection, target) = self.opening();
        self.tell(Event::ConnectFailed { connection, error: ConnectError { stage: Stage::Connect, cause } });
        target.peer
    }

    pub(crate) fn refuse(&mut self) -> SocketAddr {
        self.fail_connect(EndCause::Broken("connection refused".to_owned()))
    }

    /// The oldest transaction ends with this report, made for its number of recipients.
    pub(crate) fn transact(&mut self, report: impl FnOnce(usize) -> TransactionReport) -> ConnectionId {
        let (connection, outgoing) = self.transacts.pop_front().expect("a transaction");
        self.tell(Event::TransactionDone { connection, report: Box::new(report(outgoing.recipients.len())) });
        connection
    }

    /// The oldest transaction is accepted.
    pub(crate) fn accept(&mut self) -> ConnectionId {
        self.transact(accepted)
    }

    /// Everything connects and everything is accepted until nothing is left to do at this time.
    pub(crate) fn accept_all(&mut self) -> usize {
        let mut accepted = 0;
        loop {
            if !self.connects.is_empty() {
                self.connect();
            } else if !self.transacts.is_empty() {
                self.accept();
                accepted += 1;
                assert!(accepted < 100_000, "transactions without end: {:?}", self.commands.last());
            } else {
                return accepted;
            }
        }
    }

    /// Seconds since the start.
    pub(crate) fn elapsed(&self) -> u64 {
        self.now.saturating_since(start()).as_secs()
    }

    /// One line per event but `received`: `300 deferred a@x.example 4.2.0`.
    pub(crate) fn timeline(&self) -> Vec<String> {
        self.events.iter().filter_map(line).collect()
    }

    pub(crate) fn last_line(&self) -> String {
        self.timeline().pop().unwrap_or_default()
    }
}

fn line(event: &DeliveryEvent) -> Option<String> {
    let (at, text) = match event {
        DeliveryEvent::Delivered(e) => (e.record.time, format!("delivered {}", e.record.recipient)),
        DeliveryEvent::Deferred(e) => {
            (e.record.time, format!("deferred {} {}", e.record.recipient, e.diagnosis.status))
        }
        DeliveryEvent::Bounced(e) => {
            let Diagnosis { reason, status, failure, .. } = &e.diagnosis;
            // What was read from a reply is a matter of its own.
            let is_read =
                matches!(failure, Failure::Reply(_)) && reason.category() != Category::MessageExpired;
            let reason =
                if is_read || *reason == Reason::Expired { String::new() } else { format!(" {reason}") };
            (e.record.time, format!("bounced {} {status}{reason}", e.record.recipient))
        }
        DeliveryEvent::Cancelled(e) => (e.record.time, format!("cancelled {}", e.record.recipient)),
        DeliveryEvent::QueueDeferred(e) => {
            (e.time, format!("queue-deferred {} {}", e.domain, e.diagnosis.status))
        }
        DeliveryEvent::QueueMode(e) => (e.time, format!("queue-mode {} {}", e.queue, e.mode)),
        DeliveryEvent::LocalTrouble(e) => (e.time, "local-trouble".to_owned()),
        DeliveryEvent::StorageTrouble(e) => {
            let stopped = if e.stopped { " stopped" } else { "" };
            (e.time, format!("storage-trouble {}{stopped}", e.operation))
        }
        _ => return None,
    };
    Some(format!("{} {text}", at.saturating_since(start()).as_secs()))
}

/// An address of its own for each domain.
pub(crate) fn address_of(domain: &str) -> String {
    let hash = domain.bytes().fold(7_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    format!("198.{}.{}.{}:25", 18 + (hash >> 16 & 1), hash >> 8 & 255, hash & 255)
}

/// Preferences of hosts with their addresses; holds for an hour.
pub(crate) fn route(preferences: &[&[(&str, &[&str])]]) -> Arc<Route> {
    let host = |preference, &(name, addresses): &(&str, &[&str])| RouteHost {
        name: name.into(),
        preference,
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        barred: false,
        unknown: false,
        tlsa: None,
    };
    let hosts = (0..).zip(preferences).flat_map(|(place, hosts)| hosts.iter().map(move |it| host(place, it)));
    let (hosts, kind, ttl) = (hosts.collect(), RouteKind::Mx, HOUR);
    Arc::new(Route { hosts, kind, ttl, mta_sts: None, policy_unknown: false })
}

pub(crate) fn no_route(kind: RouteFailureKind) -> Result<Arc<Route>, RouteFailure> {
    Err(RouteFailure { kind, message: "made up".to_owned(), policy_unknown: false })
}

pub(crate) const SERVFAIL: RouteFailureKind = RouteFailureKind::LookUp(DnsErrorKind::ServFail);

pub(crate) fn accepted(recipients: usize) -> TransactionReport {
    rcpts(vec!["250 ok"; recipients], "250 2.0.0 taken")
}

/// Replies to each RCPT, and to the dot.
pub(crate) fn rcpts(replies: Vec<&str>, dot: &str) -> TransactionReport {
    TransactionReport {
        mail: Some(reply("250 ok")),
        recipients: replies.into_iter().map(|text| RecipientReport::Reply(reply(text))).collect(),
        data: Some(reply("354 go on")),
        dot_sent: true,
        dot: Some(reply(dot)),
        end: None,
    }
}

/// Every RCPT gets this.
pub(crate) fn all_rcpts(text: &str) -> impl FnOnce(usize) -> TransactionReport {
    move |recipients| {
        let given = RecipientReport::Reply(reply(text));
        TransactionReport {
            mail: Some(reply("250 ok")),
            recipients: vec![given; recipients],
            ..TransactionReport::default()
        }
    }
}

/// MAIL gets 421 and the session ends.
pub(crate) fn sent_away(recipients: usize) -> TransactionReport {
    let bye = reply("421 4.3.2 go away");
    TransactionReport {
        mail: Some(bye.clone()),
        recipients: vec![RecipientReport::None; recipients],
        end: Some(SessionEnd { stage: Stage::Mail, cause: EndCause::Reply(bye) }),
        ..TransactionReport::default()
    }
}

/// The session ends so before any reply.
pub(crate) fn cut(cause: EndCause) -> impl FnOnce(usize) -> TransactionReport {
    move |recipients| TransactionReport {
        recipients: vec![RecipientReport::None; recipients],
        end: Some(SessionEnd { stage: Stage::Mail, cause }),
        ..TransactionReport::default()
    }
}

/// No MX: the domain itself is the host.
pub(crate) fn implicit(domain: &str) -> Result<Arc<Route>, RouteFailure> {
    let route = route(&[&[(domain, &[&address_of(domain)])]]);
    Ok(Arc::new(Route { kind: RouteKind::Implicit, ..(*route).clone() }))
}

impl Rig {
    pub(crate) fn answer_with(
        &mut self,
        domain: &str,
        answer: Result<Arc<Route>, RouteFailure>,
    ) -> &mut Self {
        self.routes.insert(domain.to_owned(), answer);
        self
    }

    /// When look-ups past any cache were made, in seconds since the start.
    pub(crate) fn fresh_look_ups(&self) -> Vec<u64> {
        let fresh = self.looked_up.iter().filter(|(_, _, freshness)| *freshness == Freshness::Fresh);
        fresh.map(|(at, ..)| *at).collect()
    }

    /// The last bounce.
    pub(crate) fn bounced(&self) -> &crate::event::Bounced {
        let bounced = self.events.iter().rev().find_map(|event| match event {
            DeliveryEvent::Bounced(bounced) => Some(bounced),
            _ => None,
        });
        bounced.expect("a bounce")
    }

    /// The last deferral of a recipient.
    pub(crate) fn deferred(&self) -> &crate::event::Deferred {
        let deferred = self.events.iter().rev().find_map(|event| match event {
            DeliveryEvent::Deferred(deferred) => Some(deferred),
            _ => None,
        });
        deferred.expect("a deferral")
    }

    /// Goes on until a connection is wanted (`true`), or that second after the start has come.
    pub(crate) fn wanted_by(&mut self, second: u64) -> bool {
        let until = start() + Duration::from_secs(second);
        while let Some(at) = self.scheduler.poll_timeout().filter(|&at| at <= until) {
            self.pass(at.saturating_since(self.now));
            if !self.connects.is_empty() {
                return true;
            }
        }
        self.pass(until.saturating_since(self.now));
        !self.connects.is_empty()
    }

    /// Every transaction now under way, and each that follows over open connections, gets this at RCPT.
    pub(crate) fn refuse_transactions(&mut self, text: &str) {
        while !self.transacts.is_empty() {
            self.transact(all_rcpts(text));
        }
    }

    /// Every connection that is wanted now is refused.
    pub(crate) fn refuse_all(&mut self) {
        while !self.connects.is_empty() {
            self.refuse();
        }
    }

    /// State rows in the store.
    pub(crate) fn state_rows(&self) -> usize {
        self.store.state(None, 1_000).now_or_never().unwrap().unwrap().len()
    }
}

impl Rig {
    /// A domain's hosts, by preference, and their addresses.
    pub(crate) fn lead(&mut self, domain: &str, preferences: &[&[(&str, &[&str])]]) -> &mut Self {
        self.routes.insert(domain.to_owned(), Ok(route(preferences)));
        self
    }

    /// A domain's one host at these addresses.
    pub(crate) fn lead_to(&mut self, domain: &str, host: &str, addresses: &[&str]) -> &mut Self {
        self.lead(domain, &[&[(host, addresses)]])
    }

    /// Submits a message by this source or pool.
    pub(crate) fn submit_by(&mut self, source: &str, to: &str) {
        let message = Message::new("s@sender.example", [to], "Subject: x\r\n\r\nhi\r\n").unwrap();
        self.submit_message(message.with_source(source));
    }

    /// How many connections are open or opening to each address, closing ones included.
    pub(crate) fn open_to(&self) -> BTreeMap<String, usize> {
        let mut open = BTreeMap::new();
        for (_, connection) in self.scheduler.connections.iter() {
            *open.entry(connection.current.peer.ip().to_canonical().to_string()).or_default() += 1;
        }
        open
    }

    /// Every transaction went to an address of each of its recipients' own domains, as it leads now.
    pub(crate) fn assert_no_stray(&self) {
        for offer in &self.offered {
            for recipient in &offer.recipients {
                let route = self.routes[recipient.domain().as_str()].as_ref().unwrap();
                let own = route.hosts.iter().any(|host| host.addresses.contains(&offer.peer));
                assert!(own, "{recipient} was offered to {}", offer.peer);
            }
        }
    }

    /// What is left waits for.
    pub(crate) fn left(&self) -> Vec<String> {
        let items = self.store.list(Filter::All, None, 100).now_or_never().unwrap().unwrap();
        self.scheduler.why(self.now, items).items.iter().map(ToString::to_string).collect()
    }

    /// Everything connects and is accepted, timer by timer, until all mail is gone; at most for this long.
    pub(crate) fn run_dry(&mut self, most: Duration) -> Duration {
        let begun = self.now;
        loop {
            self.accept_all();
            if self.scheduler.lanes.len() == 0 {
                return self.now.saturating_since(begun);
            }
            self.next_timer();
            let taken = self.now.saturating_since(begun);
            assert!(taken <= most, "mail is left after {taken:?}: {:?} {:#?}", self.last_line(), self.left());
        }
    }
}
