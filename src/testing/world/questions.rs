//! What a [`World`]'s test may ask of what was seen.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::observation::{Observation, Seen};
use super::report::{self, Key, Outcome, ServerReport};
use super::{World, builder};
use crate::event::DeliveryEvent;
use crate::message::{Address, MessageId};
use crate::policy::Policy;

impl World {
    /// All that was seen, in order: the first four million.
    pub fn trace(&self) -> Vec<Observation> {
        self.book.trace()
    }

    /// The trace as text, one line for each observation.
    pub fn trace_text(&self) -> String {
        self.book.trace_text()
    }

    /// What was seen of one message.
    ///
    /// # Panics
    /// Once more was seen than the trace holds.
    pub fn timeline(&self, message: MessageId) -> Vec<Observation> {
        self.assert_whole();
        self.book.timeline(message)
    }

    /// How a recipient of a message ended.
    ///
    /// # Panics
    /// If `recipient` is no address, or the message has no such recipient.
    pub fn outcome(&self, message: MessageId, recipient: &str) -> Outcome {
        self.final_event(message, recipient).map_or(Outcome::Queued, |event| Outcome::of(&event))
    }

    /// The final event of a recipient of a message.
    ///
    /// # Panics
    /// If `recipient` is no address, or the message has no such recipient.
    pub fn final_event(&self, message: MessageId, recipient: &str) -> Option<DeliveryEvent> {
        self.book.final_event(message, &self.recipient(message, recipient))
    }

    /// How many recipients ended so. [`Outcome::Queued`] is not counted.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.book.outcomes().get(&outcome).copied().unwrap_or(0)
    }

    /// How often a recipient of a message was offered to a server.
    ///
    /// # Panics
    /// If `recipient` is no address, or the message has no such recipient, and once more was seen than the trace holds.
    pub fn attempts(&self, message: MessageId, recipient: &str) -> u64 {
        let recipient = self.recipient(message, recipient);
        let offered = |observation: &Observation| match &observation.seen {
            Seen::Offered { recipients, .. } => recipients.contains(&recipient),
            _ => false,
        };
        self.timeline(message).iter().filter(|observation| offered(observation)).count() as u64
    }

    /// The most connections there were at once, open or being opened. A connection counts for the queue that wanted it.
    pub fn peak_connections(&self, key: Key) -> u64 {
        self.book.peak(&key)
    }

    /// What the server at an address saw. Without a port: at all its ports together.
    ///
    /// # Panics
    /// If `address` is none.
    pub fn server(&self, address: &str) -> ServerReport {
        let Ok(ip) = address.parse::<IpAddr>() else {
            return self.book.server(socket(address, &self.policy));
        };
        let ip = ip.to_canonical();
        let mut sum = ServerReport::default();
        self.servers().filter(|(address, _)| address.ip() == ip).for_each(|(_, report)| sum.add(&report));
        sum
    }

    /// What all servers saw that were ever connected to.
    pub fn servers(&self) -> impl Iterator<Item = (SocketAddr, ServerReport)> + use<> {
        self.book.servers().into_iter()
    }

    /// The most recipients that the server at an address was offered in any stretch of time of this length. Without a port:
    /// at all its ports together.
    ///
    /// # Panics
    /// If `address` is none, and once more was seen than the trace holds.
    pub fn most_offered_in(&self, address: &str, window: Duration) -> u64 {
        self.assert_whole();
        let (socket, all_ports) = (socket(address, &self.policy), address.parse::<IpAddr>().is_ok());
        let is_it = |peer: &SocketAddr| *peer == socket || all_ports && peer.ip() == socket.ip();
        report::most_offered_in(&self.book.trace(), is_it, window)
    }

    /// A typo must not pass for somebody who got nothing.
    #[allow(clippy::panic, reason = "it fails a test, as assert does")]
    fn recipient(&self, message: MessageId, text: &str) -> Address {
        let recipient = Address::parse(text).unwrap_or_else(|error| panic!("a recipient: {error}"));
        assert!(!self.book.is_nobodys(message, &recipient), "{message} is not for {recipient}");
        recipient
    }

    /// An answer by a part of what was seen would be a wrong one.
    #[allow(clippy::panic, reason = "it fails a test, as assert does")]
    fn assert_whole(&self) {
        if self.book.is_cut_off() {
            panic!("more was seen than the trace holds: World::server and World::count go on counting");
        }
    }
}

#[allow(clippy::panic, reason = "it fails a test, as assert does")]
fn socket(text: &str, policy: &Policy) -> SocketAddr {
    builder::address(text, policy).unwrap_or_else(|error| panic!("{error}"))
}
