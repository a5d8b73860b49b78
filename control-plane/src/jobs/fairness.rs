//! Whose turn it is: start-time fair queueing over tenants, in virtual time. Pure.
//!
//! A tenant's virtual time is the number of its jobs that were claimed, but it never lies more than [`CREDIT`] behind the tenant
//! that was served most: who comes back after a pause gets no credit for it. The tenant with the least is next. So behind any
//! backlog of others, a tenant's first jobs wait for one turn of theirs, and a turn is [`QUANTUM`] jobs while others wait.

use shared::ids::TenantId;

/// How far behind the most served a tenant may lie, in jobs.
pub(super) const CREDIT: i64 = 16;
/// The most jobs of one turn while other tenants have jobs that are due.
pub(super) const QUANTUM: usize = 16;

/// Tenants with due jobs, and their virtual times.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: Vec<(TenantId, i64)>,
    served: Vec<(TenantId, i64)>,
}

impl Turns {
    /// `waiting` with their stored times; `top` is the greatest stored time of any tenant.
    pub(super) fn new(waiting: impl IntoIterator<Item = (TenantId, i64)>, top: i64) -> Self {
        let floor = top.saturating_sub(CREDIT);
        let waiting = waiting.into_iter().map(|(tenant, time)| (tenant, time.max(floor))).collect();
        Self { waiting, served: Vec::new() }
    }

    /// Whether more than one tenant waits.
    pub(super) fn contended(&self) -> bool {
        self.waiting.len() > 1
    }

    /// Whose turn it is.
    pub(super) fn next(&self) -> Option<&TenantId> {
        self.waiting.iter().min_by_key(|(tenant, time)| (*time, tenant)).map(|(tenant, _)| tenant)
    }

    /// The tenant got so many jobs claimed.
    pub(super) fn served(&mut self, tenant: &TenantId, jobs: usize) {
        let Some((_, time)) = self.waiting.iter_mut().find(|(waiting, _)| waiting == tenant) else { return };
        *time = time.saturating_add(i64::try_from(jobs).unwrap_or(i64::MAX));
        let time = *time;
        self.served.retain(|(served, _)| served != tenant);
        self.served.push((tenant.clone(), time));
    }

    /// The tenant has nothing more that could be claimed.
    pub(super) fn exhausted(&mut self, tenant: &TenantId) {
        self.waiting.retain(|(waiting, _)| waiting != tenant);
    }

    /// The virtual times to be stored.
    pub(super) fn to_store(&self) -> &[(TenantId, i64)] {
        &self.served
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A queue that stores its times, as the table does.
    #[derive(Default)]
    struct Queue {
        stored: BTreeMap<TenantId, i64>,
        backlog: BTreeMap<TenantId, usize>,
    }

    impl Queue {
        /// Claims one turn; says whose jobs, and how many.
        fn turn(&mut self, batch: usize) -> Option<(TenantId, usize)> {
            let waiting: Vec<_> = self
                .backlog
                .iter()
                .filter(|(_, jobs)| **jobs > 0)
                .map(|(tenant, _)| (tenant.clone(), self.stored.get(tenant).copied().unwrap_or(0)))
                .collect();
            let mut turns = Turns::new(waiting, self.stored.values().copied().max().unwrap_or(0));
            let batch = if turns.contended() { batch.min(QUANTUM) } else { batch };
            let tenant = turns.next()?.clone();
            let left = self.backlog.get_mut(&tenant)?;
            let jobs = batch.min(*left);
            *left -= jobs;
            turns.served(&tenant, jobs);
            self.stored.extend(turns.to_store().iter().cloned());
            Some((tenant, jobs))
        }
    }

    proptest! {
        #[test]
        fn a_small_tenant_s_tenth_job_is_served_within_forty(
            before in 0usize..2_000, own_before in 0usize..100, batch in 1usize..65, lanes in 1usize..11,
        ) {
            let (big, small) = (TenantId::new(), TenantId::new());
            let mut queue = Queue::default();
            queue.backlog.insert(small.clone(), own_before);
            queue.backlog.insert(big.clone(), 20_000);
            let mut served = 0;
            while served < before {
                served += queue.turn(batch).map_or(before, |(_, jobs)| jobs);
            }
            queue.backlog.insert(small.clone(), 10);
            let (mut all, mut own) = (0, 0);
            while own < 10 {
                // Jobs of several lanes come in several turns.
                let Some((tenant, jobs)) = queue.turn(if lanes > 1 { batch.min(10 / lanes + 1) } else { batch }) else { break };
                all += jobs;
                own += if tenant == small { jobs } else { 0 };
            }
            prop_assert!(all <= 40, "{all}");
        }

        #[test]
        fn tenants_that_all_have_work_are_served_alike(tenants in 2usize..8, turns in 100usize..400, batch in 1usize..65) {
            let mut queue = Queue::default();
            for _ in 0..tenants {
                queue.backlog.insert(TenantId::new(), 1_000_000);
            }
            let mut served = BTreeMap::<TenantId, usize>::new();
            for _ in 0..turns {
                let (tenant, jobs) = queue.turn(batch).unwrap();
                *served.entry(tenant).or_default() += jobs;
            }
            let most = served.values().max().copied().unwrap_or(0);
            let least = if served.len() == tenants { served.values().min().copied().unwrap_or(0) } else { 0 };
            prop_assert!(most - least <= QUANTUM, "{served:?}");
        }

        #[test]
        fn a_pause_earns_no_more_than_the_credit(pause in 0i64..1_000_000, own in 0i64..1_000_000) {
            let (busy, back) = (TenantId::new(), TenantId::new());
            let top = own + pause;
            let mut turns = Turns::new([(busy.clone(), top), (back.clone(), own)], top);
            let mut ahead = 0;
            while turns.next() == Some(&back) && ahead < 1_000 {
                turns.served(&back, 1);
                ahead += 1;
            }
            prop_assert!(ahead <= CREDIT + 1, "{ahead}");
        }
    }
}
