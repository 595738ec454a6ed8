//! What waits for a worker: bounded in workers, fair among files.
//!
//! Decided here and only here: who is served next. Each file has a lane of its own, questions about
//! names and attributes share one; lanes take turns, so a file with a thousand reads waiting delays
//! another's single one. Reads never occupy the last `reserved` workers, so when every read hangs on a
//! dead link, folders can still be looked at. Workers come when all are busy and leave when enough are
//! idle.
//!
//! Threading: any thread; one lock for a few operations.

use std::collections::{HashMap, VecDeque};

use parking_lot::{Condvar, Mutex};

/// How many workers there may be.
#[derive(Clone, Copy, Debug)]
pub struct Staff {
    /// At most so many.
    pub most: usize,
    /// Of these, kept for what is not a read.
    pub reserved: usize,
    /// So many stay when there is nothing to do.
    pub idle: usize,
}

/// The lane of questions about names and attributes.
pub const QUESTIONS: u64 = 0;

/// Small things for Python that nobody waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum Chore {
    /// The kernel dropped so many references to a node.
    Forget(u64, u64),
    /// An open file or folder is used no more.
    Close(u64),
}

/// What a worker is to do.
pub enum Step<T> {
    /// Work: a job if there is one, chores, and whether another worker is needed.
    Work {
        /// To be handed back by `done` with its lane.
        job: Option<(u64, T)>,
        /// All there are now.
        chores: Vec<Chore>,
        /// Nobody is left to take what comes next: start a worker.
        another: bool,
    },
    /// End this thread.
    Leave,
}

struct State<T> {
    lanes: HashMap<u64, VecDeque<T>>,
    turns: VecDeque<u64>,
    chores: Vec<Chore>,
    workers: usize,
    idle: usize,
    reading: usize,
    ended: bool,
}

/// Jobs in lanes.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    all_left: Condvar,
    staff: Staff,
}

impl<T> Queue<T> {
    /// An empty one; `staff.most` is more than is reserved.
    pub fn new(staff: Staff) -> Self {
        let state = State {
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            chores: Vec::new(),
            workers: 0,
            idle: 0,
            reading: 0,
            ended: false,
        };
        Self {
            state: Mutex::new(state),
            ready: Condvar::new(),
            all_left: Condvar::new(),
            staff,
        }
    }

    /// Enter a job; gives it back when the drive has ended.
    pub fn push(&self, lane: u64, job: T) -> Result<(), T> {
        let mut state = self.state.lock();
        if state.ended {
            return Err(job);
        }
        let waiting = state.lanes.entry(lane).or_default();
        waiting.push_back(job);
        if waiting.len() == 1 {
            state.turns.push_back(lane);
        }
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Enter a chore.
    pub fn chore(&self, chore: Chore) {
        let mut state = self.state.lock();
        state.chores.push(chore);
        let first = state.chores.len() == 1;
        drop(state);
        if first {
            self.ready.notify_one();
        }
    }

    /// A worker is about to begin.
    pub fn arrive(&self) {
        self.state.lock().workers += 1;
    }

    /// A worker has ended (or could not be started after all).
    pub fn depart(&self) {
        let mut state = self.state.lock();
        state.workers -= 1;
        if state.workers == 0 {
            self.all_left.notify_all();
        }
    }

    /// Wait until there is something to do.
    pub fn next(&self) -> Step<T> {
        let mut state = self.state.lock();
        if state.idle >= self.staff.idle {
            return Step::Leave;
        }
        state.idle += 1;
        loop {
            let job = self.take(&mut state);
            if job.is_some() || !state.chores.is_empty() {
                state.idle -= 1;
                let chores = std::mem::take(&mut state.chores);
                let another = state.idle == 0 && state.workers < self.staff.most && !state.ended;
                if another {
                    state.workers += 1;
                }
                return Step::Work {
                    job,
                    chores,
                    another,
                };
            }
            if state.ended {
                state.idle -= 1;
                return Step::Leave;
            }
            self.ready.wait(&mut state);
        }
    }

    fn take(&self, state: &mut State<T>) -> Option<(u64, T)> {
        let full = state.reading + self.staff.reserved >= self.staff.most;
        for _ in 0..state.turns.len() {
            let lane = state.turns.pop_front()?;
            if full && lane != QUESTIONS {
                state.turns.push_back(lane);
                continue;
            }
            let waiting = state.lanes.get_mut(&lane)?;
            let job = waiting.pop_front();
            if waiting.is_empty() {
                state.lanes.remove(&lane);
            } else {
                state.turns.push_back(lane);
            }
            if lane != QUESTIONS {
                state.reading += 1;
            }
            return job.map(|job| (lane, job));
        }
        None
    }

    /// A job of this lane has ended.
    pub fn done(&self, lane: u64) {
        if lane == QUESTIONS {
            return;
        }
        let mut state = self.state.lock();
        let was_full = state.reading + self.staff.reserved >= self.staff.most;
        state.reading -= 1;
        if was_full && !state.turns.is_empty() {
            self.ready.notify_one();
        }
    }

    /// Nothing comes any more: workers leave when they are done. Gives back what nobody began.
    pub fn end(&self) -> Vec<T> {
        let mut state = self.state.lock();
        state.ended = true;
        state.turns.clear();
        let left = state.lanes.drain().flat_map(|(_, jobs)| jobs).collect();
        drop(state);
        self.ready.notify_all();
        left
    }

    /// Wait until every worker has left.
    pub fn wait_all_left(&self) {
        let mut state = self.state.lock();
        while state.workers > 0 {
            self.all_left.wait(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAFF: Staff = Staff {
        most: 512,
        reserved: 32,
        idle: 4,
    };

    fn job<T>(step: Step<T>) -> Option<(u64, T)> {
        match step {
            Step::Work { job, .. } => job,
            Step::Leave => None,
        }
    }

    #[test]
    fn lanes_take_turns() {
        let queue = Queue::new(STAFF);
        queue.arrive();
        for n in 0..3 {
            assert!(queue.push(7, n).is_ok());
        }
        assert!(queue.push(8, 10).is_ok());
        assert!(queue.push(QUESTIONS, 20).is_ok());
        let order: Vec<_> = (0..5).filter_map(|_| job(queue.next())).collect();
        assert_eq!(order, [(7, 0), (8, 10), (0, 20), (7, 1), (7, 2)]);
    }

    #[test]
    fn reads_leave_some_workers_to_questions() {
        let queue = Queue::new(Staff { most: 34, ..STAFF });
        queue.arrive();
        for n in 0..3 {
            assert!(queue.push(7, n).is_ok());
        }
        assert!(queue.push(QUESTIONS, 9).is_ok());
        assert_eq!(job(queue.next()), Some((7, 0)));
        assert_eq!(job(queue.next()), Some((QUESTIONS, 9)));
        assert_eq!(job(queue.next()), Some((7, 1)));
        assert!(queue.push(QUESTIONS, 10).is_ok());
        assert_eq!(job(queue.next()), Some((QUESTIONS, 10)));
        queue.done(7);
        assert_eq!(job(queue.next()), Some((7, 2)));
    }

    #[test]
    fn a_worker_is_asked_for_when_nobody_is_idle() {
        let queue = Queue::new(STAFF);
        queue.arrive();
        assert!(queue.push(7, 1).is_ok());
        assert!(matches!(queue.next(), Step::Work { another: true, .. }));
        queue.depart();
        queue.depart();
        queue.wait_all_left();
    }

    #[test]
    fn chores_come_together() {
        let queue: Queue<()> = Queue::new(STAFF);
        queue.chore(Chore::Forget(3, 1));
        queue.chore(Chore::Close(4));
        match queue.next() {
            Step::Work { job, chores, .. } => {
                assert!(job.is_none());
                assert_eq!(chores, [Chore::Forget(3, 1), Chore::Close(4)]);
            }
            Step::Leave => panic!("there were chores"),
        }
    }

    #[test]
    fn the_end_gives_back_what_nobody_began() {
        let queue = Queue::new(STAFF);
        assert!(queue.push(7, 1).is_ok());
        assert_eq!(queue.end(), [1]);
        assert_eq!(queue.push(7, 2), Err(2));
        assert!(matches!(queue.next(), Step::Leave));
    }
}
