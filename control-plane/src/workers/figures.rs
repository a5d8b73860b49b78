//! How many workers there are, and how they do.

use std::collections::BTreeMap;

use sea_orm::{DbErr, EntityTrait, QuerySelect};
use shared::time::Timestamp;

use super::entity::Entity;
use crate::db::Db;

/// How many workers are looked at. A fleet beyond it is counted in part, which is still no reason for a slow answer.
const MOST: u64 = 10_000;

/// Sums over the fleet: nothing of any tenant's, no endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FleetFigures {
    /// Workers, by the name of their availability.
    pub by_availability: BTreeMap<&'static str, i64>,
    /// The most sessions that all of them take.
    pub capacity: i64,
    /// Sessions placed on them.
    pub assigned: i64,
    /// Sessions that are connected.
    pub connected: i64,
}

/// The figures of the fleet, for health.
///
/// # Errors
/// As the driver.
pub async fn figures(db: &Db) -> Result<FleetFigures, DbErr> {
    let now = Timestamp::now();
    let mut figures = FleetFigures::default();
    for worker in Entity::find().limit(MOST).all(db.read()).await? {
        *figures.by_availability.entry(worker.availability(now).as_str()).or_default() += 1;
        figures.capacity = figures.capacity.saturating_add(worker.capacity);
        figures.assigned = figures.assigned.saturating_add(worker.assigned);
        figures.connected = figures.connected.saturating_add(worker.connected);
    }
    Ok(figures)
}
