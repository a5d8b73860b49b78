//! One dialect for both engines.

use sea_orm_migration::prelude::{DbErr, SchemaManager};
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

/// Runs the statements of `script` in order, with `BYTES` as each engine calls its byte strings, and `SERIAL_KEY`
/// as it calls a primary key that counts by itself.
pub(crate) async fn run(manager: &SchemaManager<'_>, script: &str) -> Result<(), DbErr> {
    let connection = manager.get_connection();
    let script = for_engine(connection.get_database_backend(), script);
    for statement in script.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
        connection.execute_unprepared(statement).await?;
    }
    Ok(())
}

/// `script` with the engine's own type names.
fn for_engine(engine: DbBackend, script: &str) -> String {
    let (bytes, serial) = match engine {
        DbBackend::Postgres => ("BYTEA", "BIGSERIAL PRIMARY KEY"),
        _ => ("BLOB", "INTEGER PRIMARY KEY"),
    };
    script.replace("BYTES", bytes).replace("SERIAL_KEY", serial)
}
