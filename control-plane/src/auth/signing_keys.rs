//! The control plane's own key pairs: made at the first start, sealed with the master key.

use std::time::Duration;

use sea_orm::{
    ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Set, Statement,
    sea_query::{Expr, ExprTrait, OnConflict},
};
use shared::{
    identity::{IdentityError, SigningKey},
    seal::{Place, SealError},
    time::Timestamp,
};

use super::entity::signing_key;
use crate::{db::Db, master_key::MasterKey};

const ACTIVE: &str = "active";
const RETIRED: &str = "retired";
/// How many keys are published at most.
const PUBLISHED: u64 = 8;
/// How long a replica may go on signing with a key that was retired, and clocks may differ.
const SLACK: Duration = Duration::from_secs(120);

/// What a key pair signs. A token of one purpose is never accepted for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Access tokens of people.
    AccessTokens,
    /// Tokens for workers.
    Peers,
}

impl Purpose {
    const fn as_str(self) -> &'static str {
        match self {
            Self::AccessTokens => "access_tokens",
            Self::Peers => "peers",
        }
    }
}

/// No key pair to sign with.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// The database said no.
    #[error("the signing keys can't be read")]
    Database(#[from] DbErr),
    /// The stored key doesn't open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The key can't be made or used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It was stored and isn't there.
    #[error("a signing key that was just stored is missing")]
    Missing,
    /// The password hash that unknown addresses are compared with can't be made.
    #[error("password hashing doesn't work")]
    Password,
}

fn place(kid: &str) -> Place<'_> {
    Place { owner: "installation", table: "signing_keys", row: kid }
}

/// The active key pair. Of replicas that start at once, one stores its new key and all use that one: the index
/// `signing_keys_active` lets only one be active.
pub(super) async fn load(db: &Db, master_key: &MasterKey, purpose: Purpose) -> Result<SigningKey, SigningKeyError> {
    if let Some(key) = active(db.read(), master_key, purpose).await? {
        return Ok(key);
    }
    let key = SigningKey::generate()?;
    let kid = key.public().kid;
    signing_key::Entity::insert(signing_key::ActiveModel {
        sealed_pkcs8: Set(master_key.seal(&place(&kid), key.pkcs8())?),
        kid: Set(kid),
        purpose: Set(purpose.as_str().into()),
        state: Set(ACTIVE.into()),
        created_at: Set(Timestamp::now()),
        retired_at: Set(None),
    })
    .on_conflict(OnConflict::new().do_nothing().to_owned())
    .exec_without_returning(db.autocommit())
    .await?;
    active(db.autocommit(), master_key, purpose).await?.ok_or(SigningKeyError::Missing)
}

async fn active<C: ConnectionTrait>(
    connection: &C,
    master_key: &MasterKey,
    purpose: Purpose,
) -> Result<Option<SigningKey>, SigningKeyError> {
    let row = signing_key::Entity::find()
        .filter(signing_key::Column::Purpose.eq(purpose.as_str()))
        .filter(signing_key::Column::State.eq(ACTIVE))
        .one(connection)
        .await?;
    row.map(|row| open(master_key, &row)).transpose()
}

/// Has a new key sign from now on, and gives its id. The old one verifies until the last token that it signed has ended; if it
/// is `compromised`, not at all. Rotations that come at once come one after the other.
///
/// # Errors
/// [`SigningKeyError`] if the database doesn't answer.
pub async fn rotate(
    db: &Db,
    master_key: &MasterKey,
    purpose: Purpose,
    compromised: bool,
) -> Result<String, SigningKeyError> {
    let key = SigningKey::generate()?;
    let kid = key.public().kid;
    let tx = db.write().await?;
    if db.engine() == DbBackend::Postgres {
        // Else the second wouldn't see the key that the first has made, and both would be active.
        tx.query_one_raw(Statement::from_string(
            DbBackend::Postgres,
            "SELECT 1 FROM installation WHERE id = 1 FOR NO KEY UPDATE",
        ))
        .await?;
    }
    let now = Timestamp::now();
    let retired_at = if compromised { Timestamp::from_millis(0) } else { now };
    let mut retired = signing_key::Entity::update_many()
        .col_expr(signing_key::Column::State, Expr::value(RETIRED))
        .col_expr(signing_key::Column::RetiredAt, Expr::value(retired_at))
        .filter(signing_key::Column::Purpose.eq(purpose.as_str()));
    if !compromised {
        retired = retired.filter(signing_key::Column::State.eq(ACTIVE));
    }
    retired.exec(&tx).await?;
    signing_key::Entity::insert(signing_key::ActiveModel {
        sealed_pkcs8: Set(master_key.seal(&place(&kid), key.pkcs8())?),
        kid: Set(kid.clone()),
        purpose: Set(purpose.as_str().into()),
        state: Set(ACTIVE.into()),
        created_at: Set(now),
        retired_at: Set(None),
    })
    .exec_without_returning(&tx)
    .await?;
    tx.commit().await?;
    Ok(kid)
}

/// The key pairs of the purpose whose tokens, which live for so long, are accepted, in one snapshot: the active one first, then those
/// that were retired lately.
pub(super) async fn accepted<C: ConnectionTrait>(
    connection: &C,
    master_key: &MasterKey,
    purpose: Purpose,
    ttl: Duration,
) -> Result<Vec<SigningKey>, SigningKeyError> {
    let rows = signing_key::Entity::find()
        .filter(signing_key::Column::Purpose.eq(purpose.as_str()))
        .filter(
            signing_key::Column::State
                .eq(ACTIVE)
                .or(signing_key::Column::RetiredAt.gt(Timestamp::now().minus(ttl + SLACK))),
        )
        .order_by_desc(Expr::col(signing_key::Column::State).eq(ACTIVE))
        .order_by_desc(signing_key::Column::CreatedAt)
        .limit(PUBLISHED)
        .all(connection)
        .await?;
    rows.iter().map(|row| open(master_key, row)).collect()
}

fn open(master_key: &MasterKey, row: &signing_key::Model) -> Result<SigningKey, SigningKeyError> {
    Ok(SigningKey::from_pkcs8(&master_key.open(&place(&row.kid), &row.sealed_pkcs8)?)?)
}
