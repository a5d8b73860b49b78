//! Sums of facts over time.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Datelike, NaiveDate, Utc};
use sea_orm::{ConnectionTrait, DbErr, Statement, Value};
use serde::{Deserialize, Serialize};
use shared::time::Timestamp;
use utoipa::ToSchema;

use super::Meter;
use crate::auth::TenantScope;

const HOUR_MILLIS: i64 = 60 * 60 * 1000;
const DAY_MILLIS: i64 = 24 * HOUR_MILLIS;

/// The width of a sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// An hour.
    Hour,
    /// A day in UTC.
    #[default]
    Day,
    /// A calendar month in UTC.
    Month,
}

impl Granularity {
    /// The longest period that is summed in one answer.
    #[must_use]
    pub const fn longest(self) -> Duration {
        match self {
            Self::Hour => Duration::from_secs(31 * 24 * 60 * 60),
            Self::Day => Duration::from_secs(366 * 24 * 60 * 60),
            Self::Month => Duration::from_secs(5 * 366 * 24 * 60 * 60),
        }
    }

    /// The width that the database sums by. Months are put together from days, because no arithmetic that both engines share
    /// knows the calendar.
    const fn step_millis(self) -> i64 {
        match self {
            Self::Hour => HOUR_MILLIS,
            Self::Day | Self::Month => DAY_MILLIS,
        }
    }

    /// When the period begins that `at` is in.
    #[must_use]
    pub fn start_of(self, at: Timestamp) -> Timestamp {
        match self {
            Self::Hour | Self::Day => {
                Timestamp::from_millis(at.as_millis() - at.as_millis().rem_euclid(self.step_millis()))
            }
            Self::Month => first_of_month(at.to_utc()).unwrap_or(at),
        }
    }
}

fn first_of_month(at: DateTime<Utc>) -> Option<Timestamp> {
    let day = NaiveDate::from_ymd_opt(at.year(), at.month(), 1)?;
    Some(day.and_hms_opt(0, 0, 0)?.and_utc().into())
}

/// What of the facts is summed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Period {
    pub meter: Option<Meter>,
    pub from: Timestamp,
    pub to: Timestamp,
    pub granularity: Granularity,
}

/// Sums by meter and by the start of their period, in that order; of a scope that is limited to a network, of its sessions.
pub(super) async fn sums<C: ConnectionTrait>(
    conn: &C,
    scope: &TenantScope,
    period: Period,
) -> Result<BTreeMap<(Meter, Timestamp), i64>, DbErr> {
    let step = period.granularity.step_millis();
    let mut values: Vec<Value> = vec![scope.id().clone().into(), period.from.into(), period.to.into()];
    let mut only = String::new();
    if let Some(meter) = period.meter {
        values.push(meter.as_str().into());
        only.push_str(" AND meter = $4");
    }
    if let Some(network) = scope.network() {
        values.push(network.as_str().into());
        let sessions = format!("SELECT id FROM sessions WHERE tenant_id = $1 AND network = ${}", values.len());
        only.push_str(&format!(" AND session_id IN ({sessions})"));
    }
    // A SUM of BIGINT is NUMERIC on PostgreSQL.
    let sql = format!(
        "SELECT meter, occurred_at / {step} AS step, CAST(SUM(quantity) AS BIGINT) AS quantity FROM usage_facts \
         WHERE tenant_id = $1 AND occurred_at >= $2 AND occurred_at < $3{only} GROUP BY meter, occurred_at / {step}"
    );
    let rows = conn.query_all_raw(Statement::from_sql_and_values(conn.get_database_backend(), sql, values)).await?;
    let mut sums = BTreeMap::new();
    for row in rows {
        let meter: String = row.try_get("", "meter")?;
        // A meter of a later version isn't in this version's API.
        let Some(meter) = Meter::named(&meter) else { continue };
        let start = Timestamp::from_millis(row.try_get::<i64>("", "step")? * step);
        let quantity: i64 = row.try_get("", "quantity")?;
        *sums.entry((meter, period.granularity.start_of(start))).or_insert(0) += quantity;
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_period_starts_at_or_before_all_that_is_in_it(millis in 0_i64..4_102_444_800_000) {
            let at = Timestamp::from_millis(millis);
            for granularity in [Granularity::Hour, Granularity::Day, Granularity::Month] {
                let start = granularity.start_of(at);
                prop_assert!(start <= at);
                prop_assert_eq!(granularity.start_of(start), start);
                prop_assert_eq!(start.as_millis() % HOUR_MILLIS, 0);
            }
            prop_assert!(Granularity::Month.start_of(at) <= Granularity::Day.start_of(at));
            prop_assert!(Granularity::Day.start_of(at) <= Granularity::Hour.start_of(at));
        }
    }

    #[test]
    fn a_month_is_the_calendar_s() {
        let at = Timestamp::from(DateTime::parse_from_rfc3339("2024-02-29T23:59:59Z").unwrap().to_utc());
        assert_eq!(Granularity::Month.start_of(at).to_string(), "2024-02-01T00:00:00.000Z");
    }
}
