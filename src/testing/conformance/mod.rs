//! The rules of [`Storage`], for whoever writes a store: one test for each.
//!
//! A store of one's own needs a fixture, which is a [`StorageUnderTest`], and one line:
//!
//! ```
//! use postrider::storage::MemoryStorage;
//! use postrider::testing::conformance::StorageUnderTest;
//!
//! /// Where a store lies between two openings. For a store on disk: its folder.
//! struct InMemory(MemoryStorage);
//!
//! impl StorageUnderTest for InMemory {
//!     type Store = MemoryStorage;
//!
//!     async fn create() -> Self {
//!         Self(MemoryStorage::new())
//!     }
//!
//!     async fn open(&self) -> MemoryStorage {
//!         self.0.reopened()
//!     }
//! }
//!
//! postrider::storage_conformance!(
//!     in_memory: InMemory,
//!     without crashes,
//!     without damaged_bodies,
//!     without damaged_items,
//!     without damaged_rows,
//!     without failed_flushes,
//!     without full_disks
//! );
//! # // The tests of the line are not compiled here. This is what each of them does.
//! # use postrider::testing::conformance::{rules, run};
//! # run::<InMemory>("settling_twice_does_no_harm");
//! # assert!(rules().iter().any(|rule| rule.name() == "claims_are_disjoint"));
//! ```
//!
//! `cargo test in_memory` then runs `in_memory::settling_twice_does_no_harm` and all the others. The line needs nothing
//! but this crate with the feature `testing`.
//!
//! # What a rule is
//!
//! A name and a sentence that says what a store does: [`rules`] lists them. Each rule makes stores of its own, so that
//! tests run side by side. One that is broken panics with its sentence and with what was found instead.
//!
//! Rules say what [`Storage`] promises, in terms of what its methods answer, and nothing of how a store does it. They
//! take time from what they pass as `now`; none waits. They run on a tokio runtime of one thread whose clock goes on as
//! usual, so that a store may talk to a server; some call the store from many threads at once.
//!
//! # Restarts
//!
//! To a store, a restart of the process is that it is dropped and opened again where it was. Rules do so all along: what
//! was acknowledged is there. Leases are void in an exclusive store ([`Storage::is_exclusive`]). In others they may hold until
//! their time: there a rule that goes on after a restart claims as another owner, when they have run out.
//!
//! # Damage
//!
//! What a store does about an entry that was damaged can only be seen if one is. [`StorageUnderTest::damage`] is asked to
//! do that. Where it can not be done, the macro is told: `without damaged_bodies`, `without damaged_items`,
//! `without damaged_rows`. The rules in question are then shown as ignored, with the reason; they are never passed unseen.
//!
//! # Crashes and troubles
//!
//! Nor can it be seen without the fixture's help what is there after the process ended with nothing closed
//! ([`StorageUnderTest::crash`], else `without crashes`), what a store does that finds no room
//! ([`StorageUnderTest::trouble`], else `without full_disks`), and what it does that can not flush (the same, else
//! `without failed_flushes`). A rule may need two of these powers.
//!
//! # Beyond the rules
//!
//! A crash in the middle of a call looks different in every store: those tests are its own. So is what keeps others out: a store
//! for one process tests for itself that a second opening, while it is open, is refused as
//! [`Locked`](crate::storage::StorageErrorKind::Locked). [`Simulation`](crate::testing::Simulation) runs the whole engine on a store, with crashes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "it fails a test, as assert does"
)]

mod atomic;
mod bodies;
mod changes;
mod claims;
mod concurrent;
mod crash;
mod damage;
mod dropped;
mod fencing;
mod insert;
mod list;
mod listing;
mod model;
mod outbox;
mod rows;
mod subject;
mod support;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::message::MessageId;
use crate::storage::{ItemId, OutboxPosition, Storage};

use subject::*;
pub(crate) use support::*;

/// Where a store lies, so that it can be opened there again and again: the fixture of a store's tests.
///
/// [The module](self) has an example. A method that can not do what it should panics: that fails the test.
pub trait StorageUnderTest: Sized {
    /// The store.
    type Store: Storage;

    /// A place of its own for a store that holds nothing yet: a new folder, a new schema.
    ///
    /// What is to be removed afterwards is removed when the fixture is dropped. The store is dropped before it.
    fn create() -> impl Future<Output = Self>;

    /// Opens the store that lies here, as a new process would. Any store opened here before has been dropped.
    fn open(&self) -> impl Future<Output = Self::Store>;

    /// Damages an entry of the store, which is closed, such that its next opening succeeds: a few octets of it are
    /// not what was written.
    ///
    /// # Errors
    /// [`NotSupported`], which fails the rule. A fixture that can not do it says so to
    /// [`storage_conformance!`](crate::storage_conformance) as well, and the rule is ignored.
    fn damage(&self, what: Damage) -> impl Future<Output = Result<(), NotSupported>> {
        let _ = what;
        async { Err(NotSupported) }
    }

    /// Ends what has the store as a crash would, better still as a power cut: nothing of it is closed or flushed any more. Then
    /// it is opened again. A store on disk may copy its folder before it drops the store, and open the copy.
    ///
    /// # Errors
    /// As [`StorageUnderTest::damage`].
    fn crash(&self, store: Self::Store) -> impl Future<Output = Result<(), NotSupported>> {
        let _ = store;
        async { Err(NotSupported) }
    }

    /// Has the store that is open meet this trouble from now on. `None`: no more, and new openings meet none.
    ///
    /// # Errors
    /// As [`StorageUnderTest::damage`]. A fixture may know one trouble and not the other.
    fn trouble(&self, trouble: Option<Trouble>) -> impl Future<Output = Result<(), NotSupported>> {
        let _ = trouble;
        async { Err(NotSupported) }
    }
}

/// What [`StorageUnderTest::trouble`] is to make of the place where a store lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// There is no room for new mail.
    NoRoom,
    /// What is flushed does not become durable, and that is said.
    FailedFlush,
}

/// What [`StorageUnderTest::damage`] is to damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// The body of a message. It has some kilobytes, all of the octet that is the last of the message's id.
    Body(MessageId),
    /// What is stored for an item, such that it can not be read: its recipients, its due time.
    Item(ItemId),
    /// The value of a state row of this key.
    State(&'static [u8]),
    /// The payload of an outbox entry.
    Outbox(OutboxPosition),
}

/// The fixture can not do this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the fixture can not do this")]
#[allow(clippy::exhaustive_structs, reason = "there is no more to say")]
pub struct NotSupported;

/// A rule that every store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    name: &'static str,
    statement: &'static str,
}

impl Rule {
    /// The name of its test.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What a store does that keeps it.
    pub fn statement(&self) -> &'static str {
        self.statement
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.statement)
    }
}

/// All rules, in the order of their tests.
pub fn rules() -> &'static [Rule] {
    RULES
}

/// Tries the rule of this name on the store of `F`: what each test of
/// [`storage_conformance!`](crate::storage_conformance) does.
///
/// # Panics
/// If the store breaks the rule, with what would be right and what was found; if there is no such rule; within a runtime.
pub fn run<F: StorageUnderTest>(name: &str) {
    let Some(rule) = RULES.iter().find(|rule| rule.name == name) else { panic!("there is no rule {name}") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("there is no runtime: {error}"));
    if let Err(found) = catch_unwind(AssertUnwindSafe(|| runtime.block_on(check::<F>(name)))) {
        let text = found.downcast_ref::<String>().map(String::as_str);
        let found = text.or_else(|| found.downcast_ref::<&str>().copied()).unwrap_or("a panic without words");
        let Rule { name, statement } = rule;
        panic!("the store breaks the rule `{name}`.\nRight would be: {statement}\nFound: {found}");
    }
}

/// Makes of the one list of rules what is needed here.
macro_rules! rules {
    ($($file:ident { $($needs:tt $rule:ident: $statement:literal;)* })*) => {
        const RULES: &[Rule] = &[$($(Rule { name: stringify!($rule), statement: $statement },)*)*];

        async fn check<F: StorageUnderTest>(name: &str) {
            $($(
                if name == stringify!($rule) {
                    return Box::pin($file::$rule::<F>()).await;
                }
            )*)*
        }
    };
}

crate::__storage_rules! { rules; }
