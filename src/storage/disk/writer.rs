//! The one that writes: calls wait in a queue, whoever comes first leads, and what has come meanwhile shares one
//! flush of bodies and one commit of metadata.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::PoisonError;

use redb::{Database, ReadableDatabase};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::clock::Timestamp;
use crate::storage::apply::{self, Effects};
use crate::storage::rows::{Counters, Result};
use crate::storage::upkeep::Upkeep;
use crate::storage::{
    Change, ChangeOutcome, Inserted, ItemId, Lease, NewMessage, StorageError, StorageErrorKind,
};

use super::backend::MetadataFile;
use super::closing::Closing;
use super::damage::guarded_writing;
use super::error::{self, db};
use super::pairing::Pairing;
use super::segment::SegmentWriter;
use super::table_writer::Writer;
use super::tables::META;
use super::{Job, Shared, lock, open};

/// A round takes no more calls once it has this many octets of bodies.
const ROUND_OCTETS: usize = 32 * 1024 * 1024;
/// A round takes no more calls once it has this many messages and changes.
const ROUND_ENTRIES: usize = 16 * 1024;

/// What only the leader touches.
#[derive(Debug)]
pub(super) struct WriterState {
    pub(super) bodies: SegmentWriter,
    pub(super) counters: Counters,
    pub(super) upkeep: Upkeep,
    /// Body files whose records can not be followed: they stay until all in them has died.
    pub(super) unreadable: HashSet<u64>,
    /// The size of the metadata file after the last compaction.
    pub(super) compacted: u64,
    /// Rounds that were committed, and how many there were at the last upkeep.
    pub(super) rounds: u64,
    pub(super) rounds_at_upkeep: u64,
}

impl WriterState {
    pub(super) fn new(bodies: SegmentWriter, counters: Counters) -> Self {
        let (upkeep, unreadable) = (Upkeep::default(), HashSet::new());
        Self { bodies, counters, upkeep, unreadable, compacted: 0, rounds: 0, rounds_at_upkeep: 0 }
    }

    /// The metadata says so now.
    pub(super) fn committed(&mut self, counters: Counters, pairing: Pairing) {
        self.counters = counters;
        self.bodies.committed(pairing);
    }
}

/// Calls that wait for their round.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Call>,
    led: bool,
}

/// A call that writes, until it is answered.
#[derive(Debug)]
struct Call {
    work: Work,
    _admission: OwnedSemaphorePermit,
}

type Answer<T> = oneshot::Sender<Result<T>>;

#[derive(Debug)]
pub(super) enum Work {
    Insert(Vec<NewMessage>, Answer<Vec<Inserted>>),
    Commit(Vec<Change>, Answer<Vec<ChangeOutcome>>),
    /// `true`: there is more to do.
    Maintain(Timestamp, Answer<bool>),
}

/// What a call gets if its round succeeds.
pub(super) enum Done {
    Inserted(Vec<Inserted>),
    Committed(Vec<ChangeOutcome>),
}

impl Work {
    /// How much of a round it takes: octets and entries.
    fn weight(&self) -> (usize, usize) {
        match self {
            Self::Insert(messages, _) => (messages.iter().map(|m| m.body.len()).sum(), messages.len()),
            Self::Commit(changes, _) => (0, changes.len()),
            Self::Maintain(..) => (0, 0),
        }
    }

    fn answer(self, done: Result<Done>) {
        // Whoever asked may have gone: the contract allows it.
        match (self, done) {
            (Self::Insert(_, answer), Ok(Done::Inserted(inserted))) => drop(answer.send(Ok(inserted))),
            (Self::Commit(_, answer), Ok(Done::Committed(outcomes))) => drop(answer.send(Ok(outcomes))),
            (work, Ok(_)) => work.answer(Err(lost())),
            (work, Err(error)) => work.refuse(error),
        }
    }

    fn refuse(self, error: StorageError) {
        match self {
            Self::Insert(_, answer) => drop(answer.send(Err(error))),
            Self::Commit(_, answer) => drop(answer.send(Err(error))),
            Self::Maintain(_, answer) => drop(answer.send(Err(error))),
        }
    }
}

/// Nobody answered: the leader is gone.
fn lost() -> StorageError {
    StorageError::new(
        StorageErrorKind::OutcomeUnknown,
        "the write was cut off, so it is not known what is on disk",
    )
}

impl super::DiskStorage {
    /// Queues work and waits for its answer.
    pub(super) async fn write<T>(&self, work: impl FnOnce(Answer<T>) -> Work) -> Result<T> {
        let shared = &self.shared;
        let admission = shared.admission.clone().acquire_owned().await.map_err(|_| lost())?;
        shared.works()?;
        let (answer, answered) = oneshot::channel();
        let call = Call { work: work(answer), _admission: admission };
        let lead = {
            let mut queue = lock(&shared.queue);
            queue.waiting.push_back(call);
            !std::mem::replace(&mut queue.led, true)
        };
        if lead {
            // Not awaited: the round goes on if this caller goes away.
            let leader = Leader { job: self.job(), state: LeaderState::Waiting };
            drop(tokio::task::spawn_blocking(move || leader.run()));
        }
        answered.await.unwrap_or_else(|_| Err(lost()))
    }
}

/// Works until the queue is empty.
struct Leader {
    job: Job,
    state: LeaderState,
}

#[derive(PartialEq)]
enum LeaderState {
    Waiting,
    Running,
    Finished,
}

impl Leader {
    fn run(mut self) {
        self.state = LeaderState::Running;
        while let Some(round) = self.next_round() {
            self.job.shared().serve(round);
        }
        self.state = LeaderState::Finished;
    }

    /// The calls of the next round; upkeep has one of its own. `None`: there is no more, and nobody leads.
    fn next_round(&self) -> Option<Vec<Call>> {
        let mut queue = lock(&self.job.shared().queue);
        let mut round = Vec::new();
        let (mut octets, mut entries) = (0usize, 0usize);
        while octets < ROUND_OCTETS && entries < ROUND_ENTRIES {
            let alone = matches!(queue.waiting.front(), Some(Call { work: Work::Maintain(..), .. }));
            if alone && !round.is_empty() {
                break;
            }
            let Some(call) = queue.waiting.pop_front() else { break };
            let weight = call.work.weight();
            (octets, entries) = (octets.saturating_add(weight.0), entries.saturating_add(weight.1));
            round.push(call);
            if alone {
                break;
            }
        }
        queue.led = !round.is_empty();
        queue.led.then_some(round)
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if self.state == LeaderState::Finished {
            return;
        }
        let shared = self.job.shared();
        if self.state == LeaderState::Running {
            shared.poison(&lost());
        }
        // It panicked, or the runtime ended before it ran. Whoever still waits is told by its channel.
        let mut queue = lock(&shared.queue);
        queue.led = false;
        queue.waiting.clear();
    }
}

impl Shared {
    fn serve(&self, calls: Vec<Call>) {
        // Whoever panics with it is a leader, and then the store is poisoned, or a read, which changes nothing of it.
        let mut state = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // Before anything is written by its name.
        if let Err(error) = self.check_written(&state).and_then(|()| self.reopen_if_refused(&state)) {
            return calls.into_iter().for_each(|call| call.work.refuse(error.clone()));
        }
        let has_room = self.reserve.takes_mail();
        let mut round = Vec::with_capacity(calls.len());
        // Admissions are given back once all is answered.
        let mut admissions = Vec::with_capacity(calls.len());
        for Call { work, _admission } in calls {
            admissions.push(_admission);
            match work {
                Work::Maintain(now, answer) => {
                    let done = guarded_writing(|| self.maintain(&mut state, now));
                    self.note(&done);
                    drop(answer.send(done));
                }
                work if matches!(work, Work::Insert(..)) && !has_room => work.refuse(self.reserve.refusal()),
                work => round.push(work),
            }
        }
        if round.is_empty() {
            return;
        }
        match guarded_writing(|| self.round(&mut state, &round)) {
            Ok(done) => round.into_iter().zip(done).for_each(|(work, done)| work.answer(Ok(done))),
            Err(error) if round.len() == 1 || error::is_fatal(&error) => {
                self.note::<()>(&Err(error.clone()));
                round.into_iter().for_each(|work| work.refuse(error.clone()));
            }
            // One of them may be the reason: it alone shall fail.
            Err(_) => {
                for work in round {
                    // What was found to have no room is not written once more for each.
                    if matches!(work, Work::Insert(..)) && !self.reserve.takes_mail() {
                        work.refuse(self.reserve.refusal());
                        continue;
                    }
                    let done = guarded_writing(|| self.round(&mut state, std::slice::from_ref(&work)));
                    self.note(&done);
                    work.answer(done.and_then(|mut done| done.pop().ok_or_else(lost)));
                }
            }
        }
    }

    /// What came of writing metadata. Where there was no room for it redb refuses all that follows: it is opened anew, as
    /// it was before.
    pub(super) fn with_room<T>(&self, state: &WriterState, written: Result<T>) -> Result<T> {
        let explained = self.damage.heed(written).map_err(|error| self.reserve.explain(error));
        // To open it anew may take of the reserve, whatever found no room: accepted mail depends on it.
        self.reserve.hold_back(false);
        match self.reopen_if_refused(state) {
            Err(error) if error::is_fatal(&error) => {
                let why = explained.as_ref().err().map(ToString::to_string).unwrap_or_default();
                let message = format!("what was to be written may be on disk in part: {why}: {error}");
                Err(StorageError::new(StorageErrorKind::OutcomeUnknown, message).with_source(error))
            }
            // Where there is no room for that either, the next call does it.
            _ => explained,
        }
    }

    /// Gives back the bodies that were written for what found no room, once the metadata was seen to name none of them.
    pub(super) fn take_back_unnamed<T>(
        &self,
        state: &mut WriterState,
        written: Option<(u64, u64)>,
        done: &Result<T>,
    ) {
        let is_full = done.as_ref().is_err_and(|error| error.kind() == StorageErrorKind::Full);
        if is_full && !self.reserve.has_refused() {
            state.bodies.take_back(written);
        }
    }

    /// Opens the metadata anew if a write to it was refused: it must be as it was after the last commit.
    ///
    /// Only then: a database that was not refused anything would write to the file once more as it is dropped.
    ///
    /// # Errors
    /// `Full` if there is no room for that.
    pub(super) fn reopen_if_refused(&self, state: &WriterState) -> Result<()> {
        if !self.reserve.has_refused() {
            return Ok(());
        }
        self.works()?;
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        let opened = self.damage.heed(self.opened_anew(state)).map_err(|error| self.reserve.explain(error));
        self.note(&opened);
        let opened = opened?;
        *database = Arc::new(Closing::new(opened, self.damage.clone()));
        Ok(())
    }

    fn opened_anew(&self, state: &WriterState) -> Result<Database> {
        let backend = MetadataFile::new(self.metadata.clone(), self.reserve.clone());
        let opened = open::database(backend, self.cache_size, false).map_err(db)?;
        let transaction = opened.begin_read().map_err(db)?;
        let meta = transaction.open_table(META).map_err(db)?;
        let found = (open::counters(&meta)?, open::pairing(&meta)?);
        if found != (Some(state.counters.clone()), Some(state.bodies.pairing())) {
            let message = "the metadata is not as it was after the last commit";
            return Err(StorageError::new(StorageErrorKind::OutcomeUnknown, message));
        }
        Ok(opened)
    }

    /// Remembers that nothing may be written any more.
    fn note<T>(&self, done: &Result<T>) {
        if let Err(error) = done
            && error::is_fatal(error)
        {
            self.poison(error);
        }
    }

    /// Applies all of `round` and makes it durable, or nothing of it.
    fn round(&self, state: &mut WriterState, round: &[Work]) -> Result<Vec<Done>> {
        self.works()?;
        let pinned = self.pin(round);
        let mut effects = Effects::default();
        self.reserve.hold_back(round.iter().any(|work| matches!(work, Work::Insert(..))));
        let written = state.bodies.written();
        let applied = self.apply(state, round, &pinned, &mut effects);
        state.bodies.rollback();
        let applied = self.with_room(state, applied);
        self.take_back_unnamed(state, written, &applied);
        let mut leases = lock(&self.leases);
        if applied.is_ok() {
            effects.finish(&mut leases);
        }
        pinned.iter().for_each(|(item, _)| leases.unpin(*item));
        drop(leases);
        let (done, dead) = applied?;
        if !dead.is_empty() {
            state.bodies.delete(&dead, &self.bodies);
            self.reserve.retry();
        }
        // Whoever is answered now may ask what there is room for: it may have been given up, or there may be room again.
        self.reserve.ensure();
        Ok(done)
    }

    /// Leases that are current stay so until the round is over.
    fn pin(&self, round: &[Work]) -> HashSet<(ItemId, Lease)> {
        let mut pinned = HashSet::new();
        let mut leases = lock(&self.leases);
        for work in round {
            let Work::Commit(changes, _) = work else { continue };
            for change in changes {
                if let Change::Update { item, lease, .. }
                | Change::Unclaim { item, lease }
                | Change::Report { of: Some((item, lease)), .. } = change
                    && leases.pin(*item, *lease)
                {
                    pinned.insert((*item, *lease));
                }
            }
        }
        pinned
    }

    pub(super) fn apply(
        &self,
        state: &mut WriterState,
        round: &[Work],
        pinned: &HashSet<(ItemId, Lease)>,
        effects: &mut Effects,
    ) -> Result<(Vec<Done>, Vec<u64>)> {
        let database = self.database();
        let mut transaction = database.begin_write().map_err(db)?;
        transaction.set_quick_repair(true);
        let mut writer = Writer::new(&transaction, &state.counters, &mut state.bodies, self.damage.clone())?;
        let mut done = Vec::with_capacity(round.len());
        for work in round {
            done.push(match work {
                Work::Insert(messages, _) => {
                    let inserted =
                        messages.iter().map(|message| apply::insert(&mut writer, effects, message));
                    Done::Inserted(inserted.collect::<Result<_>>()?)
                }
                Work::Commit(changes, _) => {
                    let is_current = |item, lease| pinned.contains(&(item, lease));
                    let outcomes =
                        changes.iter().map(|change| apply::change(&mut writer, effects, is_current, change));
                    Done::Committed(outcomes.collect::<Result<_>>()?)
                }
                Work::Maintain(..) => continue,
            });
        }
        let (counters, changed, dead) = writer.finish(&transaction)?;
        if !changed {
            transaction.abort().map_err(db)?;
            return Ok((done, Vec::new()));
        }
        let pairing = state.bodies.flush()?;
        // Before the commit: once a claim can see the items, it must see that they are taken.
        let granted = effects.grant(&mut lock(&self.leases));
        if let Err(error) = transaction.commit() {
            effects.revoke(&mut lock(&self.leases));
            return Err(error::flush("committing metadata", error));
        }
        state.committed(counters, pairing);
        state.rounds = state.rounds.wrapping_add(1);
        if let Err(error) = self.check_committed(state) {
            effects.revoke(&mut lock(&self.leases));
            return Err(error);
        }
        self.reserve.wrote();
        fill_leases(&mut done, &granted);
        Ok((done, dead))
    }
}

fn fill_leases(done: &mut [Done], granted: &HashMap<ItemId, Lease>) {
    for done in done {
        if let Done::Inserted(answers) = done {
            let filled =
                std::mem::take(answers).into_iter().map(|answer| apply::with_leases(answer, granted));
            *answers = filled.collect();
        }
    }
}
