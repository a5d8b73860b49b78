//! Seeded faults: which stanzas of which device are hurt, and how.
//!
//! The throw for the n-th stanza of a device in a direction depends on the seed, the device's address, the direction and n,
//! on nothing else: a plan replays, however tasks are scheduled. Numbers go on across reconnects.
//!
//! What is hurt, and what that means on a network that keeps what isn't acknowledged:
//! - dropped on the way up: the server never saw it. A message gets no ack, a receipt releases nothing;
//! - dropped on the way down: a stanza of the mailbox is skipped in this connection and comes again in the next; an ack of
//!   a message is lost for good;
//! - delayed: everything of that connection waits, so that nothing overtakes;
//! - repeated, only on the way down: the stanza is written twice;
//! - cut: the socket ends without a close frame, before the stanza in question;
//! - late, only the ack of a message: it is written that much later, and nothing waits for it. So other acks, receipts of the
//!   same message and what others write overtake it, as they do where one server takes a message and another delivers it.
//!
//! Queries (`iq`) are spared: a lost answer to one costs a client a minute, and says nothing about messages.

use std::hash::{Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

/// A plan. Shares are in thousandths of the stanzas; their sum is at most 1,000.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// Decides everything.
    pub seed: u64,
    /// Share that is dropped.
    #[serde(default)]
    pub drop: u16,
    /// Share that is delayed.
    #[serde(default)]
    pub delay: u16,
    /// Share that is written twice, of those that go down.
    #[serde(default)]
    pub duplicate: u16,
    /// Share at which the socket is cut.
    #[serde(default)]
    pub cut: u16,
    /// Share that is late, of the acks of messages.
    #[serde(default)]
    pub late_acks: u16,
    /// The longest delay, in milliseconds.
    #[serde(default = "longest_delay")]
    pub longest_delay_ms: u64,
    /// How late a late ack is, in milliseconds.
    #[serde(default = "ack_lateness")]
    pub ack_lateness_ms: u64,
}

const fn longest_delay() -> u64 {
    200
}

const fn ack_lateness() -> u64 {
    300
}

impl Default for FaultPlan {
    /// Hurts nothing.
    fn default() -> Self {
        Self {
            seed: 0,
            drop: 0,
            delay: 0,
            duplicate: 0,
            cut: 0,
            late_acks: 0,
            longest_delay_ms: longest_delay(),
            ack_lateness_ms: ack_lateness(),
        }
    }
}

impl FaultPlan {
    pub(crate) fn is_valid(&self) -> bool {
        let shares = [self.drop, self.delay, self.duplicate, self.cut, self.late_acks];
        let possible = 1..=60_000;
        shares.into_iter().map(u32::from).sum::<u32>() <= 1_000
            && possible.contains(&self.longest_delay_ms)
            && possible.contains(&self.ack_lateness_ms)
    }
}

/// How often a plan struck.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanCounts {
    /// Stanzas that it was asked about.
    pub stanzas: u64,
    /// Dropped on the way up.
    pub dropped_up: u64,
    /// Dropped on the way down, acks of messages aside.
    pub dropped_down: u64,
    /// Acks of messages that were dropped.
    pub dropped_acks: u64,
    /// Delayed, both ways.
    pub delayed: u64,
    /// Written twice.
    pub duplicated: u64,
    /// Sockets cut.
    pub cuts: u64,
    /// Acks of messages that were late.
    pub late_acks: u64,
}

/// Which way a stanza goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// From the client.
    Up,
    /// To the client.
    Down,
    /// To the client, and an ack of a message.
    Ack,
}

/// What becomes of a stanza.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Pass,
    Drop,
    Delay(Duration),
    Duplicate,
    Cut,
    /// Only of [`Direction::Ack`]: written that much later, while everything else goes on.
    Late(Duration),
}

/// How many throws there were for a device, up and down.
#[derive(Debug, Default)]
pub(crate) struct Dice {
    up: u64,
    down: u64,
}

/// A plan in force.
pub(crate) struct Plan {
    pub(crate) order: FaultPlan,
    stanzas: AtomicU64,
    dropped_up: AtomicU64,
    dropped_down: AtomicU64,
    dropped_acks: AtomicU64,
    delayed: AtomicU64,
    duplicated: AtomicU64,
    cuts: AtomicU64,
    late_acks: AtomicU64,
}

impl Plan {
    pub(crate) fn new(order: FaultPlan) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            order,
            stanzas: zero(),
            dropped_up: zero(),
            dropped_down: zero(),
            dropped_acks: zero(),
            delayed: zero(),
            duplicated: zero(),
            cuts: zero(),
            late_acks: zero(),
        }
    }

    /// Throws for a device's next stanza in a direction, and counts what comes of it.
    pub(crate) fn decide(&self, dice: &mut Dice, device: &str, direction: Direction) -> Decision {
        let number = match direction {
            Direction::Up => &mut dice.up,
            Direction::Down | Direction::Ack => &mut dice.down,
        };
        *number += 1;
        let decision = throw(&self.order, device, direction, *number);
        let counter = match (decision, direction) {
            (Decision::Pass, _) => None,
            (Decision::Drop, Direction::Up) => Some(&self.dropped_up),
            (Decision::Drop, Direction::Down) => Some(&self.dropped_down),
            (Decision::Drop, Direction::Ack) => Some(&self.dropped_acks),
            (Decision::Delay(_), _) => Some(&self.delayed),
            (Decision::Duplicate, _) => Some(&self.duplicated),
            (Decision::Cut, _) => Some(&self.cuts),
            (Decision::Late(_), _) => Some(&self.late_acks),
        };
        self.stanzas.fetch_add(1, Ordering::Relaxed);
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        decision
    }

    pub(crate) fn counts(&self) -> PlanCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PlanCounts {
            stanzas: read(&self.stanzas),
            dropped_up: read(&self.dropped_up),
            dropped_down: read(&self.dropped_down),
            dropped_acks: read(&self.dropped_acks),
            delayed: read(&self.delayed),
            duplicated: read(&self.duplicated),
            cuts: read(&self.cuts),
            late_acks: read(&self.late_acks),
        }
    }
}

fn throw(plan: &FaultPlan, device: &str, direction: Direction, number: u64) -> Decision {
    let up = direction == Direction::Up;
    // Its keys are fixed, so the same throw comes out in every run of the same build.
    let mut hasher = std::hash::DefaultHasher::new();
    (plan.seed, device, up, number).hash(&mut hasher);
    let mut random = StdRng::seed_from_u64(hasher.finish());
    let mut thrown: u16 = random.random_range(0..1_000);
    let mut hit = |share: u16| {
        let hit = thrown < share;
        thrown = thrown.wrapping_sub(share);
        hit
    };
    if hit(plan.drop) {
        Decision::Drop
    } else if hit(plan.delay) {
        Decision::Delay(Duration::from_millis(random.random_range(1..=plan.longest_delay_ms)))
    } else if hit(plan.duplicate) {
        // The stream is in order and sealed with counters: between client and server nothing can be repeated on its way up.
        if direction == Direction::Down { Decision::Duplicate } else { Decision::Pass }
    } else if hit(plan.cut) {
        Decision::Cut
    } else if hit(plan.late_acks) && direction == Direction::Ack {
        Decision::Late(Duration::from_millis(plan.ack_lateness_ms))
    } else {
        Decision::Pass
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(seed: u64, shares: [u16; 5]) -> FaultPlan {
        let [drop, delay, duplicate, cut, late_acks] = shares;
        FaultPlan { seed, drop, delay, duplicate, cut, late_acks, longest_delay_ms: 50, ack_lateness_ms: 50 }
    }

    proptest! {
        #[test]
        fn the_same_seed_throws_the_same_for_each_device_whatever_happens_between(
            seed: u64, other in 0usize..20, count in 1usize..100,
        ) {
            let order = plan(seed, [200; 5]);
            let run = |between: usize| {
                let plan = Plan::new(order.clone());
                let (mut dice, mut others) = (Dice::default(), Dice::default());
                (0..count)
                    .map(|_| {
                        for _ in 0..between {
                            plan.decide(&mut others, "other", Direction::Up);
                        }
                        plan.decide(&mut dice, "device", Direction::Down)
                    })
                    .collect::<Vec<_>>()
            };
            prop_assert_eq!(run(0), run(other));
        }

        #[test]
        fn everything_that_is_hurt_is_counted(seed: u64, shares: [u8; 4], late in 0u16..200) {
            let [drop, delay, duplicate, cut] = shares.map(|share| u16::from(share) / 2);
            let plan = Plan::new(plan(seed, [drop, delay, duplicate, cut, late]));
            let mut dice = Dice::default();
            let mut hurt = 0;
            for number in 0..300 {
                let direction = [Direction::Up, Direction::Down, Direction::Ack][number % 3];
                let decision = plan.decide(&mut dice, "device", direction);
                hurt += u64::from(decision != Decision::Pass);
                prop_assert!(direction == Direction::Down || decision != Decision::Duplicate);
                prop_assert!(direction == Direction::Ack || !matches!(decision, Decision::Late(_)));
            }
            let c = plan.counts();
            prop_assert_eq!(c.stanzas, 300);
            let dropped = c.dropped_up + c.dropped_down + c.dropped_acks;
            let counted = dropped + c.delayed + c.duplicated + c.cuts + c.late_acks;
            prop_assert_eq!(counted, hurt);
        }
    }

    #[test]
    fn shares_are_kept() {
        let plan = Plan::new(plan(7, [10; 5]));
        let mut dice = Dice::default();
        for _ in 0..100_000 {
            plan.decide(&mut dice, "device", Direction::Ack);
        }
        let c = plan.counts();
        for count in [c.dropped_acks, c.delayed, c.cuts, c.late_acks] {
            assert!((850..1_150).contains(&count), "{c:?}");
        }
    }

    #[test]
    fn an_impossible_plan_is_refused() {
        assert!(plan(1, [200; 5]).is_valid());
        assert!(!plan(1, [200, 200, 200, 200, 201]).is_valid());
        assert!(!FaultPlan { longest_delay_ms: 0, ..plan(1, [0; 5]) }.is_valid());
        assert!(!FaultPlan { ack_lateness_ms: 60_001, ..plan(1, [0; 5]) }.is_valid());
    }
}
