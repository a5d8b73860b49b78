//! Placement: which worker a session runs on.
//!
//! Filter, then score, over a snapshot of the fleet; both are pure. The filter is about what must hold: the worker
//! speaks the session's network and our protocol, works on the store that holds the session's state (if there is
//! any), belongs to the pool of the tenant's plan (or to none, if the plan names none), is `active` and schedulable, and has room. The score prefers the least loaded, and counts the sessions that the
//! same tenant has there a second time, so that a tenant's sessions spread.
//!
//! A snapshot is old when it is used, so room is not taken from it: [`reserve`] takes it with one conditional update in
//! the transaction that places the session, and the next best is tried if somebody was faster. `workers.assigned` is
//! thereby always the number of sessions placed on the worker, and never more than its capacity at the time.
//!
//! Owns no table; it writes `workers.assigned` and nothing else.

use std::{cmp::Ordering, collections::HashMap};

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, FromQueryResult, QueryFilter, QuerySelect,
    Statement,
};
use shared::{
    ids::{StoreId, WorkerId},
    time::Timestamp,
    wire::{PROTOCOL_VERSION, session::Network},
};

use crate::{
    auth::TenantScope,
    sessions::entity as session,
    workers::{
        entity::{self as worker, Schedulability},
        policy::Availability,
    },
};

/// What a session asks of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Which WhatsApp it speaks to.
    pub network: Network,
    /// The store that holds its state, if it has any.
    pub store: Option<StoreId>,
    /// The pool of the tenant's plan.
    pub pool: Option<String>,
}

/// A worker as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub id: WorkerId,
    /// Its store.
    pub store: StoreId,
    /// The pool that it belongs to.
    pub pool: Option<String>,
    /// Its network.
    pub network: Option<Network>,
    /// Whether it can be counted on.
    pub availability: Availability,
    /// Whether its operator lets it.
    pub schedulability: Schedulability,
    /// The wire protocol that it speaks.
    pub protocol_version: i64,
    /// The most sessions that it takes.
    pub capacity: i64,
    /// Sessions on it.
    pub assigned: i64,
    /// Of them, those of the session's own tenant.
    pub of_tenant: i64,
}

/// The workers that can take the session, the best first.
#[must_use]
pub fn rank<'a>(need: &Need, fleet: &'a [Candidate]) -> Vec<&'a Candidate> {
    let mut fit: Vec<_> = fleet.iter().filter(|candidate| fits(need, candidate)).collect();
    fit.sort_by(|a, b| score(a, b));
    fit
}

fn fits(need: &Need, candidate: &Candidate) -> bool {
    obstacle(need, candidate).is_none()
}

/// Why a worker can't take the session; nothing if it can.
#[must_use]
pub fn obstacle(need: &Need, candidate: &Candidate) -> Option<&'static str> {
    if candidate.network != Some(need.network) {
        Some("speaks to another network")
    } else if need.store.as_ref().is_some_and(|store| *store != candidate.store) {
        Some("works on another store than the one that holds the session's state")
    } else if need.pool != candidate.pool {
        Some("is not of the pool that the tenant's sessions run on")
    } else if candidate.protocol_version != i64::from(PROTOCOL_VERSION) {
        Some("speaks another version of the protocol")
    } else if candidate.availability != Availability::Active {
        Some("is not heard")
    } else if candidate.schedulability != Schedulability::Schedulable {
        Some("is cordoned or being drained")
    } else if candidate.assigned >= candidate.capacity {
        Some("has no room")
    } else {
        None
    }
}

/// The less of its capacity is taken, the better; multiplied out, so that nothing is rounded.
fn score(a: &Candidate, b: &Candidate) -> Ordering {
    let load = |c: &Candidate, other: &Candidate| i128::from(c.assigned + c.of_tenant) * i128::from(other.capacity);
    load(a, b).cmp(&load(b, a)).then_with(|| a.of_tenant.cmp(&b.of_tenant)).then_with(|| a.id.cmp(&b.id))
}

#[derive(FromQueryResult)]
struct OfTenant {
    worker_id: WorkerId,
    sessions: i64,
}

/// The fleet as it is now, for a session of one tenant.
///
/// # Errors
/// As the driver.
pub async fn snapshot<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    now: Timestamp,
) -> Result<Vec<Candidate>, DbErr> {
    let of_tenant: HashMap<WorkerId, i64> = session::Entity::all_of_tenant(scope)
        .filter(session::Column::WorkerId.is_not_null())
        .select_only()
        .column(session::Column::WorkerId)
        .column_as(session::Column::Id.count(), "sessions")
        .group_by(session::Column::WorkerId)
        .into_model::<OfTenant>()
        .all(connection)
        .await?
        .into_iter()
        .map(|row| (row.worker_id, row.sessions))
        .collect();
    let workers = worker::Entity::find().all(connection).await?;
    Ok(workers
        .into_iter()
        .map(|worker| Candidate {
            availability: worker.availability(now),
            of_tenant: of_tenant.get(&worker.id).copied().unwrap_or(0),
            network: worker.network(),
            id: worker.id,
            store: worker.store_id,
            pool: worker.pool,
            schedulability: worker.schedulability,
            protocol_version: worker.protocol_version,
            capacity: worker.capacity,
            assigned: worker.assigned,
        })
        .collect())
}

/// Takes room on a worker; says whether there was any.
///
/// # Errors
/// As the driver.
pub async fn reserve(tx: &DatabaseTransaction, id: &WorkerId) -> Result<bool, DbErr> {
    let done = tx
        .execute_raw(Statement::from_sql_and_values(
            tx.get_database_backend(),
            "UPDATE workers SET assigned = assigned + 1 WHERE id = $1 AND assigned < capacity",
            [id.clone().into()],
        ))
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Gives room back.
///
/// # Errors
/// As the driver.
pub async fn give_back(tx: &DatabaseTransaction, id: &WorkerId) -> Result<(), DbErr> {
    tx.execute_raw(Statement::from_sql_and_values(
        tx.get_database_backend(),
        "UPDATE workers SET assigned = assigned - 1 WHERE id = $1 AND assigned > 0",
        [id.clone().into()],
    ))
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn store(number: u8) -> StoreId {
        format!("str_0000000000000000000000000{number}").parse().unwrap()
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0u8..3, any::<(bool, bool)>(), 0u8..4, any::<bool>(), 0i64..3, 0i64..6, 1i64..6, 0i64..4);
        prop::collection::vec(one, 0..8).prop_map(|drawn| {
            drawn
                .into_iter()
                .enumerate()
                .map(|(index, (st, (sandbox, own), availability, open, protocol, assigned, capacity, of_tenant))| {
                    Candidate {
                        id: format!("w{index}").parse().unwrap(),
                        store: store(st),
                        pool: own.then(|| "acme".into()),
                        network: Some(if sandbox { Network::Sandbox } else { Network::Whatsapp }),
                        availability: [
                            Availability::Joining,
                            Availability::Active,
                            Availability::Suspect,
                            Availability::Offline,
                        ][usize::from(availability)],
                        schedulability: if open { Schedulability::Schedulable } else { Schedulability::Cordoned },
                        protocol_version: protocol,
                        capacity,
                        assigned,
                        of_tenant: of_tenant.min(assigned),
                    }
                })
                .collect()
        })
    }

    fn needs() -> impl Strategy<Value = Need> {
        (any::<(bool, bool)>(), prop::option::of(0u8..3)).prop_map(|((sandbox, own), st)| Need {
            network: if sandbox { Network::Sandbox } else { Network::Whatsapp },
            store: st.map(store),
            pool: own.then(|| "acme".into()),
        })
    }

    proptest! {
        #[test]
        fn only_workers_that_can_take_the_session_are_ranked(need in needs(), fleet in candidates()) {
            for chosen in rank(&need, &fleet) {
                prop_assert!(chosen.assigned < chosen.capacity);
                prop_assert_eq!(chosen.network, Some(need.network));
                prop_assert!(need.store.as_ref().is_none_or(|store| store == &chosen.store));
                prop_assert_eq!(&chosen.pool, &need.pool);
                prop_assert_eq!(chosen.availability, Availability::Active);
                prop_assert_eq!(chosen.schedulability, Schedulability::Schedulable);
                prop_assert_eq!(chosen.protocol_version, i64::from(PROTOCOL_VERSION));
            }
        }

        #[test]
        fn every_worker_that_can_take_it_is_ranked_once(need in needs(), fleet in candidates()) {
            let ranked = rank(&need, &fleet);
            let fit = fleet.iter().filter(|candidate| fits(&need, candidate)).count();
            prop_assert_eq!(ranked.len(), fit);
        }

        #[test]
        fn the_ranking_does_not_depend_on_the_order_of_the_snapshot(need in needs(), fleet in candidates()) {
            let mut reversed = fleet.clone();
            reversed.reverse();
            prop_assert_eq!(rank(&need, &fleet), rank(&need, &reversed));
        }

        #[test]
        fn equal_workers_fill_evenly(workers in 1usize..6, capacity in 1i64..20, sessions in 0usize..60) {
            let mut fleet: Vec<Candidate> = (0..workers)
                .map(|index| Candidate {
                    id: format!("w{index}").parse().unwrap(),
                    store: store(0),
                    pool: None,
                    network: Some(Network::Whatsapp),
                    availability: Availability::Active,
                    schedulability: Schedulability::Schedulable,
                    protocol_version: i64::from(PROTOCOL_VERSION),
                    capacity,
                    assigned: 0,
                    of_tenant: 0,
                })
                .collect();
            let need = Need { network: Network::Whatsapp, store: None, pool: None };
            for _ in 0..sessions {
                let Some(id) = rank(&need, &fleet).first().map(|chosen| chosen.id.clone()) else { break };
                let chosen = fleet.iter_mut().find(|candidate| candidate.id == id).unwrap();
                chosen.assigned += 1;
                chosen.of_tenant += 1;
            }
            let counts: Vec<i64> = fleet.iter().map(|candidate| candidate.assigned).collect();
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{:?}", counts);
        }
    }

    #[test]
    fn a_tenant_s_sessions_spread_when_the_load_is_equal() {
        let base = Candidate {
            id: "a".parse().unwrap(),
            store: store(0),
            pool: None,
            network: Some(Network::Whatsapp),
            availability: Availability::Active,
            schedulability: Schedulability::Schedulable,
            protocol_version: i64::from(PROTOCOL_VERSION),
            capacity: 10,
            assigned: 3,
            of_tenant: 3,
        };
        let fleet = [base.clone(), Candidate { id: "b".parse().unwrap(), of_tenant: 0, ..base }];
        let need = Need { network: Network::Whatsapp, store: Some(store(0)), pool: None };
        assert_eq!(rank(&need, &fleet).first().map(|chosen| chosen.id.as_str()), Some("b"));
    }
}
