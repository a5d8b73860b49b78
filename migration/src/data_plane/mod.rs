//! The schema of the data plane's store, for SQLite and PostgreSQL alike.
//!
//! Moments are whole milliseconds since 1970 by the store's own clock (seconds where the WhatsApp library counts in
//! seconds), so that both engines compare them in the same way.

mod m20251121_000001_store;
mod m20261121_000002_open_tries;

use sea_orm_migration::prelude::*;

/// Brings a data-plane store up to date.
#[derive(Debug)]
pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m20251121_000001_store::Migration), Box::new(m20261121_000002_open_tries::Migration)]
    }

    /// A table of its own, so that both planes may live in one database.
    fn migration_table_name() -> DynIden {
        Alias::new("data_plane_migrations").into_iden()
    }
}
