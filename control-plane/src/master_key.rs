//! The master key: held by the control plane alone, it seals the data keys of tenants and sessions.

use sea_orm::{ConnectionTrait, DbErr, Statement};
use shared::{
    seal::{DataKey, Place, SealError},
    time::Timestamp,
};

/// Wraps and unwraps data keys. Bound to a database by a sealed check value, so that starting with another key fails
/// at once instead of at the first session.
#[derive(Debug, Clone)]
pub struct MasterKey(DataKey);

/// The master key doesn't fit.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// Another key made this database.
    #[error("MASTER_KEY is not the key that this database was made with")]
    Mismatch,
    /// The database said no.
    #[error(transparent)]
    Database(#[from] DbErr),
    /// Not a key.
    #[error(transparent)]
    Seal(#[from] SealError),
}

const CHECK: Place<'static> = Place { owner: "installation", table: "installation", row: "check" };

impl MasterKey {
    /// Wraps a key that was read from configuration.
    #[must_use]
    pub const fn new(key: DataKey) -> Self {
        Self(key)
    }

    /// Makes sure that this is the key the database was made with; a new database takes it.
    ///
    /// # Errors
    /// [`MasterKeyError::Mismatch`] if it isn't.
    pub async fn bind<C: ConnectionTrait>(&self, connection: &C) -> Result<(), MasterKeyError> {
        let engine = connection.get_database_backend();
        let check = self.0.seal(&CHECK, b"switchboard")?;
        connection
            .execute_raw(Statement::from_sql_and_values(
                engine,
                "INSERT INTO installation (id, sealed_check, created_at) VALUES (1, $1, $2) ON CONFLICT (id) DO NOTHING",
                [check.into(), Timestamp::now().into()],
            ))
            .await?;
        let row = connection
            .query_one_raw(Statement::from_string(engine, "SELECT sealed_check FROM installation WHERE id = 1"))
            .await?
            .ok_or(MasterKeyError::Mismatch)?;
        let sealed: Vec<u8> = row.try_get("", "sealed_check")?;
        self.0.open(&CHECK, &sealed).map_err(|_| MasterKeyError::Mismatch)?;
        Ok(())
    }

    /// Seals a data key (or any small secret of the installation) for one place.
    ///
    /// # Errors
    /// [`SealError`], which for values of this size means a defect.
    pub fn seal(&self, place: &Place<'_>, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        self.0.seal(place, secret)
    }

    /// Opens what [`seal`](Self::seal) made.
    ///
    /// # Errors
    /// [`SealError`] if it was made elsewhere or altered.
    pub fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        self.0.open(place, sealed)
    }

    /// Makes a new data key for the owner and seals it for its row.
    ///
    /// # Errors
    /// As [`seal`](Self::seal).
    pub fn new_data_key(&self, table: &str, owner: &str) -> Result<(DataKey, Vec<u8>), SealError> {
        let key = DataKey::generate();
        let sealed = self.0.seal(&Place { owner, table, row: "data_key" }, key.as_bytes())?;
        Ok((key, sealed))
    }

    /// Opens a data key that [`new_data_key`](Self::new_data_key) sealed.
    ///
    /// # Errors
    /// [`SealError`] if it was sealed for another owner or altered.
    pub fn open_data_key(&self, table: &str, owner: &str, sealed: &[u8]) -> Result<DataKey, SealError> {
        let bytes = self.0.open(&Place { owner, table, row: "data_key" }, sealed)?;
        DataKey::from_slice(&bytes)
    }

    /// A key for keyed hashes of one purpose (API keys, refresh tokens, throttles): HMAC-SHA256 of the purpose.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> DataKey {
        self.0.derive(purpose)
    }
}
