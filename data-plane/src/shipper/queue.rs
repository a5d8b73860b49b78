//! Which sessions have something to ship, in which order, and who has to wait.
//!
//! A session is at most once in line, and at most once in flight. A ring while it is in flight puts it back in line
//! afterwards; a ring while it waits after a failure changes nothing, one while it waits for more rows ends that wait.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
};

use shared::ids::SessionId;
use tokio::time::Instant;

/// The line.
#[derive(Default)]
pub struct Queue {
    ready: VecDeque<SessionId>,
    waiting: BinaryHeap<Reverse<(Instant, SessionId)>>,
    known: HashMap<SessionId, Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    place: Place,
    failures: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Ready,
    InFlight {
        rung: bool,
    },
    /// For more rows, until then.
    Soon(Instant),
    /// After a failure, until then.
    Waiting(Instant),
}

impl Queue {
    /// Puts a session in line. Answers whether that changed anything.
    pub fn ring(&mut self, session: &SessionId) -> bool {
        match self.known.get_mut(session) {
            None => {
                self.known.insert(session.clone(), Entry { place: Place::Ready, failures: 0 });
                self.ready.push_back(session.clone());
                true
            }
            Some(entry) => match &mut entry.place {
                Place::Soon(_) => {
                    entry.place = Place::Ready;
                    self.ready.push_back(session.clone());
                    true
                }
                Place::InFlight { rung } => {
                    *rung = true;
                    false
                }
                Place::Ready | Place::Waiting(_) => false,
            },
        }
    }

    /// Puts a session in line at a time, unless it comes up before. Answers whether that changed anything.
    pub fn ring_soon(&mut self, session: &SessionId, due: Instant) -> bool {
        match self.known.get_mut(session) {
            None => {
                self.known.insert(session.clone(), Entry { place: Place::Soon(due), failures: 0 });
                self.waiting.push(Reverse((due, session.clone())));
                true
            }
            Some(Entry { place: Place::InFlight { rung }, .. }) => {
                *rung = true;
                false
            }
            Some(_) => false,
        }
    }

    /// The next session, which is in flight from now on.
    pub fn take(&mut self, now: Instant) -> Option<SessionId> {
        while let Some(Reverse((due, _))) = self.waiting.peek()
            && *due <= now
        {
            let Some(Reverse((due, session))) = self.waiting.pop() else { break };
            // A wait that was ended before its time leaves its entry behind.
            if let Some(entry) = self.known.get_mut(&session)
                && matches!(entry.place, Place::Soon(until) | Place::Waiting(until) if until == due)
            {
                entry.place = Place::Ready;
                self.ready.push_back(session);
            }
        }
        let session = self.ready.pop_front()?;
        if let Some(entry) = self.known.get_mut(&session) {
            entry.place = Place::InFlight { rung: false };
        }
        Some(session)
    }

    /// Whether somebody is in line now.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When the next of those that wait is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse((due, _))| *due)
    }

    /// A flight went well. The session goes back in line if there is `more`, or it was rung meanwhile.
    pub fn shipped(&mut self, session: SessionId, more: bool) {
        let rung = self.known.get(&session).is_some_and(|entry| entry.place == Place::InFlight { rung: true });
        if more || rung {
            self.known.insert(session.clone(), Entry { place: Place::Ready, failures: 0 });
            self.ready.push_back(session);
        } else {
            self.known.remove(&session);
        }
    }

    /// A flight failed. Answers how many did in a row; the caller says with [`wait`](Self::wait) for how long.
    pub fn failed(&mut self, session: &SessionId) -> u32 {
        self.known.get_mut(session).map_or(1, |entry| {
            entry.failures += 1;
            entry.failures
        })
    }

    /// Lets a session that failed wait.
    pub fn wait(&mut self, session: SessionId, until: Instant) {
        if let Some(entry) = self.known.get_mut(&session) {
            entry.place = Place::Waiting(until);
            self.waiting.push(Reverse((until, session)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Ring(usize),
        RingSoon(usize, u64),
        Take,
        Ship(bool),
        Fail(u64),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0usize..4).prop_map(Step::Ring),
            (0usize..4, 0u64..50).prop_map(|(at, ms)| Step::RingSoon(at, ms)),
            Just(Step::Take),
            any::<bool>().prop_map(Step::Ship),
            (0u64..100).prop_map(Step::Fail),
            (0u64..50).prop_map(Step::Pass),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn no_session_flies_twice_at_once_and_no_ring_is_lost(steps in steps()) {
            let sessions: Vec<_> = (0..4).map(|_| SessionId::new()).collect();
            let mut queue = Queue::default();
            let mut now = Instant::now();
            let mut flying: Vec<SessionId> = Vec::new();
            let mut owed: HashSet<SessionId> = HashSet::new();
            for step in steps {
                match step {
                    Step::Ring(at) => {
                        queue.ring(&sessions[at]);
                        owed.insert(sessions[at].clone());
                    }
                    Step::RingSoon(at, wait) => {
                        queue.ring_soon(&sessions[at], now + Duration::from_millis(wait));
                        owed.insert(sessions[at].clone());
                    }
                    Step::Take => if let Some(session) = queue.take(now) {
                        prop_assert!(!flying.contains(&session), "in flight twice");
                        owed.remove(&session);
                        flying.push(session);
                    },
                    Step::Ship(more) => if let Some(session) = flying.pop() {
                        if more { owed.insert(session.clone()); }
                        queue.shipped(session, more);
                    },
                    Step::Fail(wait) => if let Some(session) = flying.pop() {
                        prop_assert!(queue.failed(&session) > 0);
                        owed.insert(session.clone());
                        queue.wait(session, now + Duration::from_millis(wait));
                    },
                    Step::Pass(ms) => now += Duration::from_millis(ms),
                }
            }
            for session in flying {
                queue.shipped(session, false);
            }
            let late = now + Duration::from_secs(1);
            while let Some(session) = queue.take(late) {
                owed.remove(&session);
                queue.shipped(session, false);
            }
            prop_assert!(owed.is_empty(), "a rung session was forgotten");
        }
    }
}
