//! Facts and how they are recorded.

use sea_orm::{ConnectionTrait, DbErr, Statement};
use serde::{Deserialize, Serialize};
use shared::{ids::SessionId, time::Timestamp};
use utoipa::ToSchema;

use crate::auth::TenantScope;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Meter {
    /// Messages that WhatsApp accepted from us.
    MessagesSent,
    /// Messages that came in.
    MessagesReceived,
}

impl Meter {
    /// The name in JSON, in queries and in the ids of facts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MessagesSent => "messages_sent",
            Self::MessagesReceived => "messages_received",
        }
    }

    /// The meter with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::MessagesSent, Self::MessagesReceived].into_iter().find(|meter| meter.as_str() == name)
    }
}

/// One thing to count.
#[derive(Debug, Clone)]
pub struct Fact<'a> {
    /// Whose usage.
    pub tenant: &'a TenantScope,
    /// The session it came from.
    pub session_id: Option<&'a SessionId>,
    /// What is counted.
    pub meter: Meter,
    /// The id of the thing: with the meter it is the fact's identity.
    pub thing: &'a str,
    /// How many units.
    pub quantity: i64,
    /// When it happened.
    pub occurred_at: Timestamp,
}

/// Records a fact, once: says whether it was new.
///
/// # Errors
/// As the database.
pub async fn record<C: ConnectionTrait>(conn: &C, fact: Fact<'_>) -> Result<bool, DbErr> {
    let done = conn
        .execute_raw(Statement::from_sql_and_values(
            conn.get_database_backend(),
            "INSERT INTO usage_facts (id, tenant_id, session_id, meter, quantity, occurred_at, recorded_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING",
            [
                format!("{}:{}", fact.meter.as_str(), fact.thing).into(),
                fact.tenant.id().clone().into(),
                fact.session_id.map(|id| id.as_str().to_owned()).into(),
                fact.meter.as_str().into(),
                fact.quantity.into(),
                fact.occurred_at.into(),
                Timestamp::now().into(),
            ],
        ))
        .await?;
    let new = done.rows_affected() == 1;
    let outcome = if new { "counted" } else { "known" };
    metrics::counter!("usage_facts_total", "meter" => fact.meter.as_str(), "outcome" => outcome).increment(1);
    Ok(new)
}
