//! How many event loops are in use.
//!
//! Decided here and only here: that one is, while one thread reads and asks for one thing after another.
//! A second would only cost: the kernel wakes those that sleep in turn, so each answer would come from a
//! loop that has slept for longest. `fuser` takes the requests, so a loop can be held up only within one,
//! once that is answered. Whatever ends a loop (an unmount) sets the others free. The one in use looks
//! for the next request before it sleeps, as long as that pays (`patience`).
//!
//! Threading: the event loops; a lock for a few operations.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::patience::{Patience, MOMENT};

/// Reads in a row by one thread that make it the only reader.
const ALONE: u32 = 32;
/// The same, at most, for one that was taken for it and asked for several things at once.
const ALONE_AT_MOST: u32 = 1 << 20;
/// One read in so many is looked at for whether another waits before it is answered (0.2 us). It is done
/// before, because afterwards one reader's next may be there too.
const LOOK: u32 = 16;

/// Who has read lately.
struct Readers {
    last: u32,
    streak: u32,
    needed: u32,
}

impl Default for Readers {
    fn default() -> Self {
        Self {
            last: 0,
            streak: 0,
            needed: ALONE,
        }
    }
}

impl Readers {
    /// Thread `reader` (0: unknown) asks; `queued` tells whether there are more requests by now.
    fn came(&mut self, reader: u32, queued: impl FnOnce() -> bool) {
        if reader == 0 || reader != self.last {
            *self = Self {
                last: reader,
                ..Self::default()
            };
            return;
        }
        self.streak = self.streak.checked_add(1).unwrap_or(self.needed);
        if self.alone() && self.streak % LOOK == 0 && queued() {
            self.streak = 0;
            self.needed = (2 * self.needed).min(ALONE_AT_MOST);
        }
    }

    /// Whether one loop is enough.
    fn alone(&self) -> bool {
        self.streak >= self.needed
    }
}

/// The loops of one drive.
pub struct Loops {
    device: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    readers: Readers,
    patience: Patience,
    /// The one that goes on while one is enough.
    leader: Option<ThreadId>,
    /// How many are held up.
    held: usize,
    /// Whether one has ended.
    ended: bool,
}

impl State {
    fn free_all(&mut self, changed: &Condvar) {
        if self.leader.take().is_some() {
            changed.notify_all();
        }
    }
}

/// A loop's; dropped with its thread.
struct Leaving(Arc<Loops>);

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.ended = true;
        state.free_all(&self.0.changed);
    }
}

thread_local! {
    static LEAVING: RefCell<Option<Leaving>> = const { RefCell::new(None) };
}

impl Loops {
    /// Those that serve `device`.
    pub fn new(device: OwnedFd) -> Arc<Self> {
        Arc::new(Self {
            device,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Whether a request waits, or the connection has ended.
    fn queued(&self) -> bool {
        let mut asked = libc::pollfd {
            fd: self.device.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `asked` is one valid entry that lives until the call returns, which is at once.
        unsafe { libc::poll(&raw mut asked, 1, 0) > 0 }
    }

    /// Whether a request comes within a moment; asked for, not slept for.
    fn linger(&self) -> bool {
        let since = Instant::now();
        while !self.queued() {
            if since.elapsed() > MOMENT {
                return false;
            }
        }
        true
    }

    /// A loop begins with a read by thread `reader`.
    pub fn begin(self: &Arc<Self>, reader: u32) {
        LEAVING.with_borrow_mut(|leaving| {
            leaving.get_or_insert_with(|| Leaving(Arc::clone(self)));
        });
        let mut state = self.state.lock();
        state.readers.came(reader, || self.queued());
        if !state.readers.alone() {
            state.free_all(&self.changed);
        }
    }

    /// A loop is done with a read, which was answered or handed on. Returns when it should ask for more.
    pub fn end(&self) {
        let mut state = self.state.lock();
        if !state.readers.alone() || state.ended {
            return;
        }
        let me = thread::current().id();
        if *state.leader.get_or_insert(me) == me {
            let look = state.patience.now();
            drop(state);
            if look {
                let came = self.linger();
                self.state.lock().patience.learn(came);
            }
            return;
        }
        state.held += 1;
        self.changed
            .wait_while(&mut state, |state| state.leader.is_some());
        state.held -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{pipe, PipeWriter, Result, Write};

    fn one_reader() -> Readers {
        let mut readers = Readers::default();
        for n in 0..=ALONE {
            assert!(!readers.alone(), "{n}");
            readers.came(7, || false);
        }
        readers
    }

    #[test]
    fn one_reader_is_alone_until_another_comes() {
        let mut readers = one_reader();
        assert!(readers.alone());
        readers.came(8, || false);
        assert!(!readers.alone());
        for n in 0..10 * ALONE {
            readers.came(7 + n % 2, || false);
            assert!(!readers.alone());
        }
    }

    #[test]
    fn the_unknown_are_never_one() {
        let mut readers = Readers::default();
        for _ in 0..10 * ALONE {
            readers.came(0, || false);
            assert!(!readers.alone());
        }
    }

    #[test]
    fn one_reader_stays_alone() {
        let mut readers = one_reader();
        readers.streak = u32::MAX - 2 * LOOK;
        let mut looks = 0;
        for _ in 0..100 * LOOK {
            readers.came(7, || {
                looks += 1;
                false
            });
            assert!(readers.alone());
        }
        assert!((99..=101).contains(&looks), "{looks}");
    }

    #[test]
    fn who_asks_for_more_at_once_is_less_and_less_often_taken_for_one() {
        let mut readers = one_reader();
        let mut alone = 0;
        for _ in 0..100_000 {
            readers.came(7, || true);
            alone += u32::from(readers.alone());
        }
        assert!(alone <= LOOK * 12, "{alone}");
        for _ in 0..=ALONE {
            readers.came(8, || false); // all is forgotten with the next
        }
        assert!(readers.alone());
    }

    #[test]
    fn the_next_is_looked_for_for_a_moment() -> Result<()> {
        let (loops, mut to) = piped()?;
        assert!(!loops.linger());
        to.write_all(b"x")?;
        assert!(loops.linger());
        drop(to); // a connection that has ended too
        assert!(loops.linger());
        Ok(())
    }

    fn piped() -> Result<(Arc<Loops>, PipeWriter)> {
        let (from, to) = pipe()?;
        Ok((Loops::new(from.into()), to))
    }

    fn serve(loops: &Arc<Loops>, reader: u32) {
        loops.begin(reader);
        loops.end();
    }

    #[test]
    fn what_waits_is_seen() -> Result<()> {
        let (loops, mut to) = piped()?;
        assert!(!loops.queued());
        to.write_all(b"x")?;
        assert!(loops.queued());
        for _ in 0..10 * ALONE {
            serve(&loops, 7);
        }
        assert!(loops.state.lock().readers.needed > ALONE);
        Ok(())
    }

    #[test]
    fn a_second_loop_is_held_up_until_another_reads() -> Result<()> {
        let (loops, _to) = piped()?;
        for _ in 0..=ALONE {
            serve(&loops, 7);
        }
        thread::scope(|scope| {
            let second = scope.spawn(|| serve(&loops, 7));
            while loops.state.lock().held == 0 {
                thread::yield_now();
            }
            assert!(!second.is_finished());
            serve(&loops, 8);
            assert!(second.join().is_ok());
        });
        assert_eq!(loops.state.lock().held, 0);
        Ok(())
    }

    #[test]
    fn whatever_ends_a_loop_frees_the_others() -> Result<()> {
        let (loops, _to) = piped()?;
        thread::scope(|scope| {
            let leader = scope.spawn(|| {
                for _ in 0..=ALONE {
                    serve(&loops, 7);
                }
                while loops.state.lock().held == 0 {
                    thread::yield_now();
                }
            });
            while loops.state.lock().leader.is_none() {
                thread::yield_now();
            }
            let second = scope.spawn(|| serve(&loops, 7));
            assert!(leader.join().is_ok() && second.join().is_ok());
        });
        serve(&loops, 7);
        assert_eq!(loops.state.lock().held, 0);
        Ok(())
    }
}
