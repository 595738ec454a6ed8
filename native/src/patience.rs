//! Whether to look for the next request before sleeping.
//!
//! Decided here and only here: for how long, and how often after it was in vain. An idle core of a virtual
//! machine has been given back to the host, and to be woken on it takes longer than a read; so a loop
//! that looks on while its only reader is busy answers twice as many. Where that reader shares the core,
//! or asks seldom, looking only keeps it waiting: each time in vain doubles how many requests are
//! then slept for.
//!
//! Threading: none of its own; `loops` keeps it behind a lock.

use std::time::Duration;

/// How long the next request is looked for: as long as it takes to wake the reader and to have it ask again.
pub const MOMENT: Duration = Duration::from_micros(100);
/// At most so many requests are not looked for after one that was, in vain.
const FORGONE: u32 = 1 << 12;

/// Whether it pays to look for the next request: of one drive.
pub struct Patience {
    /// So many more are not looked for.
    forgo: u32,
    /// And how many after the next time in vain.
    price: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { forgo: 0, price: 1 }
    }
}

impl Patience {
    /// Whether to look now.
    pub fn now(&mut self) -> bool {
        let now = self.forgo == 0;
        self.forgo = self.forgo.saturating_sub(1);
        now
    }

    /// What came of it.
    pub fn learn(&mut self, came: bool) {
        if came {
            self.price -= self.price.div_ceil(8).min(self.price - 1);
        } else {
            self.forgo = self.price;
            self.price = (2 * self.price).min(FORGONE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_in_vain_is_done_less_and_less_often() {
        let mut patience = Patience::default();
        let looked = (0..1_000_000)
            .filter(|_| {
                let now = patience.now();
                if now {
                    patience.learn(false);
                }
                now
            })
            .count();
        assert!((200..=260).contains(&looked), "{looked}");
        while !patience.now() {}
        for _ in 0..100 {
            patience.learn(true); // it pays again, and is done for every request
            assert!(patience.now());
        }
        assert_eq!(patience.price, 1);
    }
}
