//! The control plane's own key pairs: made at the first start, sealed with the master key.

use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Set,
    sea_query::{Expr, ExprTrait, OnConflict},
};
use shared::{
    identity::{IdentityError, KeySet, SigningKey},
    seal::{Place, SealError},
    time::Timestamp,
};

use super::entity::signing_key;
use crate::{db::Db, master_key::MasterKey};

const ACTIVE: &str = "active";
/// How many retired keys are still published.
const PUBLISHED: u64 = 8;

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

/// All public keys of the purpose: the active one first, then those that were retired.
pub(super) async fn key_set<C: ConnectionTrait>(
    connection: &C,
    master_key: &MasterKey,
    purpose: Purpose,
) -> Result<KeySet, SigningKeyError> {
    let rows = signing_key::Entity::find()
        .filter(signing_key::Column::Purpose.eq(purpose.as_str()))
        .order_by_desc(Expr::col(signing_key::Column::State).eq(ACTIVE))
        .order_by_desc(signing_key::Column::CreatedAt)
        .limit(PUBLISHED)
        .all(connection)
        .await?;
    let keys = rows.iter().map(|row| Ok(open(master_key, row)?.public())).collect::<Result<_, SigningKeyError>>()?;
    Ok(KeySet { keys })
}

fn open(master_key: &MasterKey, row: &signing_key::Model) -> Result<SigningKey, SigningKeyError> {
    Ok(SigningKey::from_pkcs8(&master_key.open(&place(&row.kid), &row.sealed_pkcs8)?)?)
}
