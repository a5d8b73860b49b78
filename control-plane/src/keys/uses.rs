//! When keys were last used: noted in memory, written in batches, so that a request with a key writes nothing.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sea_orm::{ColumnTrait, Condition, DbErr, EntityTrait, QueryFilter, sea_query::Expr};
use shared::{ids::KeyId, time::Timestamp};
use tokio::time::MissedTickBehavior;

use super::{entity, service::LAST_USED_STEP};
use crate::{error::database_error_kind, state::App};

/// How often what was noted is written: well within the minute to which a last use is known.
const WRITE_EVERY: Duration = Duration::from_secs(2);
/// How many keys are written at once.
const BATCH: usize = 1000;
/// How many keys are noted between two writes. Others are noted at their next use.
const MOST_NOTED: usize = 100_000;

/// Keys that were used since the last write.
#[derive(Debug, Default)]
pub(crate) struct KeyUses(Mutex<HashSet<KeyId>>);

impl KeyUses {
    /// Notes a use.
    pub(super) fn note(&self, id: &KeyId) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() < MOST_NOTED && !noted.contains(id) {
            noted.insert(id.clone());
        }
    }

    fn take(&self) -> Vec<KeyId> {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken: Vec<_> = noted.drain().collect();
        // In one order over all replicas, so that no two of them wait for each other's rows.
        taken.sort_unstable();
        taken
    }
}

/// Writes the uses of keys until the process stops, and what is left then.
pub async fn write_uses(app: App) {
    let mut every = tokio::time::interval(WRITE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let stops = tokio::select! {
            () = app.stop.cancelled() => true,
            _ = every.tick() => false,
        };
        // A use that couldn't be written is noted again at the next one.
        if let Err(error) = write(&app).await {
            tracing::warn!(kind = database_error_kind(&error), "the last uses of API keys were not written");
        }
        if stops {
            return;
        }
    }
}

async fn write(app: &App) -> Result<(), DbErr> {
    let now = Timestamp::now();
    for batch in app.keyring.key_uses().take().chunks(BATCH) {
        let older = Condition::any()
            .add(entity::Column::LastUsedAt.is_null())
            .add(entity::Column::LastUsedAt.lte(now.minus(LAST_USED_STEP)));
        entity::Entity::update_many()
            .col_expr(entity::Column::LastUsedAt, Expr::value(now))
            .filter(entity::Column::Id.is_in(batch.iter().cloned()))
            .filter(older)
            .exec(app.db.autocommit())
            .await?;
    }
    Ok(())
}
