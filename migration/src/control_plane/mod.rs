//! The control plane's database.

use sea_orm_migration::prelude::{MigrationTrait, MigratorTrait};

mod m0001_foundation;
mod m0002_fair_jobs;
mod m0003_numbered_events;
mod m0004_identity;
mod m0005_members;
mod m0006_plans;
mod m0007_audit;
mod m0010_operators;
mod m0011_operator_second_factors;
mod m0012_limits;
mod m0013_refresh_tokens;
mod m0014_moves;
mod m0015_sandbox_endpoints;
mod m0016_replicas_apart;

/// Applies the control plane's migrations in order.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_foundation::Migration),
            Box::new(m0002_fair_jobs::Migration),
            Box::new(m0003_numbered_events::Migration),
            Box::new(m0004_identity::Migration),
            Box::new(m0005_members::Migration),
            Box::new(m0006_plans::Migration),
            Box::new(m0007_audit::Migration),
            Box::new(m0010_operators::Migration),
            Box::new(m0011_operator_second_factors::Migration),
            Box::new(m0012_limits::Migration),
            Box::new(m0013_refresh_tokens::Migration),
            Box::new(m0014_moves::Migration),
            Box::new(m0015_sandbox_endpoints::Migration),
            Box::new(m0016_replicas_apart::Migration),
        ]
    }
}
