//! The key that signs the control plane's calls to workers: one for the installation, sealed with the master key.

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};
use shared::{
    identity::{KeySet, SigningKey},
    seal::Place,
    time::Timestamp,
};

use super::FleetError;
use crate::{db::Db, master_key::MasterKey};

const PURPOSE: &str = "workers";

/// Loads the key, or makes it. Replicas that start at once agree on one: the table is locked while one is made.
///
/// # Errors
/// [`FleetError`].
pub async fn load_or_create(db: &Db, master_key: &MasterKey) -> Result<SigningKey, FleetError> {
    let tx = db.write().await?;
    let engine = tx.get_database_backend();
    if engine == DbBackend::Postgres {
        tx.execute_unprepared("LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE").await?;
    }
    let row = tx
        .query_one_raw(Statement::from_sql_and_values(
            engine,
            "SELECT kid, sealed_pkcs8 FROM signing_keys WHERE purpose = $1 AND state = 'current'",
            [PURPOSE.into()],
        ))
        .await?;
    if let Some(row) = row {
        let kid: String = row.try_get("", "kid")?;
        let sealed: Vec<u8> = row.try_get("", "sealed_pkcs8")?;
        let der = master_key.open(&place(&kid), &sealed).map_err(|_| FleetError::Key)?;
        return SigningKey::from_pkcs8(&der).map_err(|_| FleetError::Key);
    }
    let key = SigningKey::generate().map_err(|_| FleetError::Key)?;
    let kid = key.public().kid;
    let sealed = master_key.seal(&place(&kid), key.pkcs8()).map_err(|_| FleetError::Key)?;
    insert(&tx, &kid, sealed).await?;
    tx.commit().await?;
    Ok(key)
}

async fn insert(connection: &impl ConnectionTrait, kid: &str, sealed: Vec<u8>) -> Result<(), DbErr> {
    connection
        .execute_raw(Statement::from_sql_and_values(
            connection.get_database_backend(),
            "INSERT INTO signing_keys (kid, purpose, sealed_pkcs8, state, created_at) VALUES ($1, $2, $3, 'current', $4)",
            [kid.into(), PURPOSE.into(), sealed.into(), Timestamp::now().into()],
        ))
        .await
        .map(drop)
}

/// What workers check the control plane's calls with.
#[must_use]
pub fn key_set(key: &SigningKey) -> KeySet {
    KeySet { keys: vec![key.public()] }
}

fn place(kid: &str) -> Place<'_> {
    Place { owner: "installation", table: "signing_keys", row: kid }
}
