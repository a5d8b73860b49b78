//! Plans and subscriptions in the database.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbErr, FromQueryResult, Statement, Value};
use shared::{ids::TenantId, time::Timestamp};

use super::{
    file::{PlanFile, TrialOffer},
    terms::{Entitlements, Overrides, PlanVersion, Sources, resolve},
};
use crate::{
    auth::TenantScope,
    error::{ApiError, ApiResult},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Why plans could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The database said no.
    #[error("the database said no ({})", crate::error::database_error_kind(.0))]
    Database(#[from] DbErr),
    /// What is stored isn't what this version stores.
    #[error("the stored terms of a plan can't be read")]
    Unreadable,
    /// The default plan is missing.
    #[error("there is no default plan")]
    NoDefault,
    /// There is no such plan, or no such version of it.
    #[error("there is no such plan, or no such version of it")]
    NoSuchPlan,
    /// The default or the trial of a file is no plan: which of them, as a JSON pointer.
    #[error("{0} names a plan that isn't there")]
    NamesNoPlan(&'static str),
    /// There is no such tenant.
    #[error("there is no such tenant")]
    NoSuchTenant,
}

impl From<PlanError> for ApiError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Database(error) => error.into(),
            PlanError::Unreadable => Self::Defect("the stored terms of a plan can't be read"),
            PlanError::NoDefault => Self::Defect("there is no default plan"),
            PlanError::NoSuchPlan | PlanError::NamesNoPlan(_) => Self::Defect("a plan is missing"),
            PlanError::NoSuchTenant => Self::Defect("a tenant with a scope is missing"),
        }
    }
}

#[derive(FromQueryResult)]
struct SourcesRow {
    default_plan: String,
    default_version: i64,
    default_title: String,
    default_terms: String,
    plan: Option<String>,
    version: Option<i64>,
    title: Option<String>,
    terms: Option<String>,
    trial_plan: Option<String>,
    trial_version: Option<i64>,
    trial_title: Option<String>,
    trial_terms: Option<String>,
    trial_ends_at: Option<Timestamp>,
    overrides: Option<String>,
}

fn version(
    plan: Option<String>,
    version: Option<i64>,
    title: Option<String>,
    terms: Option<String>,
) -> Result<Option<PlanVersion>, PlanError> {
    let (Some(plan), Some(version), Some(title), Some(terms)) = (plan, version, title, terms) else { return Ok(None) };
    Ok(Some(PlanVersion { plan, version, title, terms: read(&terms)? }))
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, PlanError> {
    serde_json::from_str(text).map_err(|_| PlanError::Unreadable)
}

fn written<T: serde::Serialize>(value: &T) -> Result<String, PlanError> {
    serde_json::to_string(value).map_err(|_| PlanError::Unreadable)
}

fn statement<C: ConnectionTrait>(connection: &C, sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(connection.get_database_backend(), sql, values)
}

/// What a tenant may do now.
///
/// # Errors
/// As the driver; a defect if what is stored can't be read.
pub async fn entitlements<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    now: Timestamp,
) -> ApiResult<Entitlements> {
    Ok(resolve(sources(connection, scope.id()).await?, now))
}

/// The pool of workers that a tenant's sessions run on, if its plan names one.
///
/// # Errors
/// As the driver; also if what is stored can't be read.
pub async fn pool<C: ConnectionTrait>(
    connection: &C,
    scope: &TenantScope,
    now: Timestamp,
) -> Result<Option<String>, DbErr> {
    match sources(connection, scope.id()).await {
        Ok(sources) => Ok(resolve(sources, now).terms.pool),
        Err(PlanError::Database(error)) => Err(error),
        Err(error) => Err(DbErr::Custom(error.to_string())),
    }
}

/// All that decides what a tenant may do.
pub(super) async fn sources<C: ConnectionTrait>(connection: &C, tenant: &TenantId) -> Result<Sources, PlanError> {
    let row = SourcesRow::find_by_statement(statement(
        connection,
        "SELECT d.plan AS default_plan, d.version AS default_version, d.title AS default_title, d.terms AS default_terms, \
         p.plan AS plan, p.version AS version, p.title AS title, p.terms AS terms, \
         t.plan AS trial_plan, t.version AS trial_version, t.title AS trial_title, t.terms AS trial_terms, \
         s.trial_ends_at AS trial_ends_at, s.overrides AS overrides \
         FROM plan_settings \
         JOIN plan_versions d ON d.plan = plan_settings.default_plan \
         AND d.version = (SELECT MAX(version) FROM plan_versions WHERE plan = plan_settings.default_plan) \
         LEFT JOIN subscriptions s ON s.tenant_id = $1 \
         LEFT JOIN plan_versions p ON p.plan = s.plan AND p.version = s.version \
         LEFT JOIN plan_versions t ON t.plan = s.trial_plan AND t.version = s.trial_version \
         WHERE plan_settings.id = 1",
        [tenant.clone().into()],
    ))
    .one(connection)
    .await?
    .ok_or(PlanError::NoDefault)?;
    let trial = version(row.trial_plan, row.trial_version, row.trial_title, row.trial_terms)?;
    Ok(Sources {
        default: PlanVersion {
            plan: row.default_plan,
            version: row.default_version,
            title: row.default_title,
            terms: read(&row.default_terms)?,
        },
        subscription: version(row.plan, row.version, row.title, row.terms)?,
        trial: trial.zip(row.trial_ends_at),
        overrides: row.overrides.as_deref().map(read).transpose()?.unwrap_or_default(),
    })
}

/// What became of a plan of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Applied {
    /// Its name.
    pub(super) plan: String,
    /// Its newest version.
    pub(super) version: i64,
    /// Whether that was made now; else the plan is as it was.
    pub(super) is_new: bool,
}

/// Makes the plans as a file says. A plan that the file doesn't name stays as it is.
pub(super) async fn apply<C: ConnectionTrait>(
    tx: &C,
    file: &PlanFile,
    now: Timestamp,
) -> Result<Vec<Applied>, PlanError> {
    // Files are applied one after another, or two would make the same version. The update that changes nothing takes the lock.
    tx.execute_raw(statement(tx, "UPDATE plan_settings SET default_plan = default_plan WHERE id = 1", [])).await?;
    let mut done = Vec::with_capacity(file.plans.len());
    for plan in &file.plans {
        let newest = newest(tx, &plan.name).await?;
        let (version, is_new) = match newest {
            Some(held) if held.title == plan.title && held.terms == plan.terms() => (held.version, false),
            held => (held.map_or(1, |held| held.version + 1), true),
        };
        if is_new {
            tx.execute_raw(statement(
                tx,
                "INSERT INTO plan_versions (plan, version, title, terms, created_at) VALUES ($1, $2, $3, $4, $5)",
                [
                    plan.name.clone().into(),
                    version.into(),
                    plan.title.clone().into(),
                    written(&plan.terms())?.into(),
                    now.into(),
                ],
            ))
            .await?;
        }
        done.push(Applied { plan: plan.name.clone(), version, is_new });
    }
    let trial = file.trial.as_ref().map(|trial| ("/trial/plan", &trial.plan));
    for (place, name) in [Some(("/default", &file.default)), trial].into_iter().flatten() {
        newest(tx, name).await?.ok_or(PlanError::NamesNoPlan(place))?;
    }
    let (plan, days) = match &file.trial {
        Some(TrialOffer { plan, days }) => (Some(plan.clone()), Some(i64::from(*days))),
        None => (None, None),
    };
    tx.execute_raw(statement(
        tx,
        "UPDATE plan_settings SET default_plan = $1, trial_plan = $2, trial_days = $3 WHERE id = 1",
        [file.default.clone().into(), plan.into(), days.into()],
    ))
    .await?;
    Ok(done)
}

#[derive(FromQueryResult)]
struct VersionRow {
    plan: String,
    version: i64,
    title: String,
    terms: String,
}

impl VersionRow {
    fn into_version(self) -> Result<PlanVersion, PlanError> {
        Ok(PlanVersion { terms: read(&self.terms)?, plan: self.plan, version: self.version, title: self.title })
    }
}

async fn newest<C: ConnectionTrait>(connection: &C, plan: &str) -> Result<Option<PlanVersion>, PlanError> {
    let row = VersionRow::find_by_statement(statement(
        connection,
        "SELECT plan, version, title, terms FROM plan_versions WHERE plan = $1 ORDER BY version DESC LIMIT 1",
        [plan.into()],
    ))
    .one(connection)
    .await?;
    row.map(VersionRow::into_version).transpose()
}

/// The newest version of each plan, by name.
pub(super) async fn all<C: ConnectionTrait>(connection: &C) -> Result<Vec<PlanVersion>, PlanError> {
    VersionRow::find_by_statement(statement(
        connection,
        "SELECT plan, version, title, terms FROM plan_versions p \
         WHERE version = (SELECT MAX(version) FROM plan_versions WHERE plan = p.plan) ORDER BY plan",
        [],
    ))
    .all(connection)
    .await?
    .into_iter()
    .map(VersionRow::into_version)
    .collect()
}

#[derive(FromQueryResult)]
struct PublishedRow {
    plan: String,
    version: i64,
    title: String,
    terms: String,
    created_at: Timestamp,
}

/// Versions of plans and when they were published, in the order of a query on `plan_versions p` without its columns.
async fn published<C: ConnectionTrait>(
    connection: &C,
    which: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<Vec<(PlanVersion, Timestamp)>, PlanError> {
    let sql = format!("SELECT plan, version, title, terms, created_at FROM plan_versions p {which}");
    let rows = PublishedRow::find_by_statement(statement(connection, &sql, values)).all(connection).await?;
    rows.into_iter()
        .map(|row| {
            let PublishedRow { plan, version, title, terms, created_at } = row;
            Ok((PlanVersion { plan, version, title, terms: read(&terms)? }, created_at))
        })
        .collect()
}

/// The newest version of each plan, from the end of the alphabet, or of those before a name.
pub(super) async fn page<C: ConnectionTrait>(
    connection: &C,
    before: Option<&str>,
    rows: u64,
) -> Result<Vec<(PlanVersion, Timestamp)>, PlanError> {
    let which = "WHERE version = (SELECT MAX(version) FROM plan_versions WHERE plan = p.plan) \
                 AND ($1 IS NULL OR plan < $1) ORDER BY plan DESC LIMIT $2";
    published(connection, which, [before.map(str::to_owned).into(), rows.into()]).await
}

/// The versions of a plan, the newest first, or those before one.
pub(super) async fn versions<C: ConnectionTrait>(
    connection: &C,
    plan: &str,
    before: Option<i64>,
    rows: u64,
) -> Result<Vec<(PlanVersion, Timestamp)>, PlanError> {
    newest(connection, plan).await?.ok_or(PlanError::NoSuchPlan)?;
    let which = "WHERE plan = $1 AND version < $2 ORDER BY version DESC LIMIT $3";
    published(connection, which, [plan.into(), before.unwrap_or(i64::MAX).into(), rows.into()]).await
}

/// The default plan, and what a new tenant may try.
pub(super) async fn settings<C: ConnectionTrait>(connection: &C) -> Result<(String, Option<TrialOffer>), PlanError> {
    let sql = "SELECT default_plan, trial_plan, trial_days FROM plan_settings WHERE id = 1";
    let row = connection.query_one_raw(statement(connection, sql, [])).await?.ok_or(PlanError::NoDefault)?;
    let plan: Option<String> = row.try_get("", "trial_plan")?;
    let days: Option<i64> = row.try_get("", "trial_days")?;
    let trial = plan.zip(days).map(|(plan, days)| TrialOffer { plan, days: u32::try_from(days).unwrap_or_default() });
    Ok((row.try_get("", "default_plan")?, trial))
}

/// The newest version of a plan, or one that is asked for.
async fn version_of<C: ConnectionTrait>(tx: &C, plan: &str, version: Option<i64>) -> Result<i64, PlanError> {
    let row = tx
        .query_one_raw(statement(
            tx,
            "SELECT MAX(version) AS version FROM plan_versions WHERE plan = $1 AND (version = $2 OR $2 = 0)",
            [plan.into(), version.unwrap_or(0).into()],
        ))
        .await?;
    match row {
        Some(row) => row.try_get::<Option<i64>>("", "version")?.ok_or(PlanError::NoSuchPlan),
        None => Err(PlanError::NoSuchPlan),
    }
}

/// Makes sure that there is such a tenant.
pub(super) async fn known<C: ConnectionTrait>(connection: &C, tenant: &TenantId) -> Result<(), PlanError> {
    let sql = "SELECT 1 AS one FROM tenants WHERE id = $1";
    let row = connection.query_one_raw(statement(connection, sql, [tenant.clone().into()])).await?;
    row.map(drop).ok_or(PlanError::NoSuchTenant)
}

/// The row of a tenant, locked; made if there is none.
async fn open<C: ConnectionTrait>(tx: &C, tenant: &TenantId, now: Timestamp) -> Result<(), PlanError> {
    known(tx, tenant).await?;
    // The update that changes nothing takes the row's lock.
    tx.execute_raw(statement(
        tx,
        "INSERT INTO subscriptions (tenant_id, overrides, updated_at) VALUES ($1, '{}', $2) \
         ON CONFLICT (tenant_id) DO UPDATE SET updated_at = $2",
        [tenant.clone().into(), now.into()],
    ))
    .await?;
    Ok(())
}

/// Gives a tenant a plan: its newest version, unless another is asked for; `None` takes it away. A trial ends with it.
pub(super) async fn assign<C: ConnectionTrait>(
    tx: &C,
    tenant: &TenantId,
    plan: Option<(&str, Option<i64>)>,
    now: Timestamp,
) -> Result<(), PlanError> {
    open(tx, tenant, now).await?;
    let (plan, version) = match plan {
        Some((plan, version)) => (Some(plan.to_owned()), Some(version_of(tx, plan, version).await?)),
        None => (None, None),
    };
    tx.execute_raw(statement(
        tx,
        "UPDATE subscriptions SET plan = $2, version = $3, trial_plan = NULL, trial_version = NULL, trial_ends_at = NULL \
         WHERE tenant_id = $1",
        [tenant.clone().into(), plan.into(), version.into()],
    ))
    .await?;
    Ok(())
}

/// Lets a tenant try a plan until `ends_at`.
pub(super) async fn begin<C: ConnectionTrait>(
    tx: &C,
    tenant: &TenantId,
    plan: &str,
    ends_at: Timestamp,
    now: Timestamp,
) -> Result<(), PlanError> {
    open(tx, tenant, now).await?;
    let version = version_of(tx, plan, None).await?;
    tx.execute_raw(statement(
        tx,
        "UPDATE subscriptions SET trial_plan = $2, trial_version = $3, trial_ends_at = $4 WHERE tenant_id = $1",
        [tenant.clone().into(), plan.into(), version.into(), ends_at.into()],
    ))
    .await?;
    Ok(())
}

/// Ends a tenant's trial, if it has one.
pub(super) async fn end_trial<C: ConnectionTrait>(tx: &C, tenant: &TenantId, now: Timestamp) -> Result<(), PlanError> {
    open(tx, tenant, now).await?;
    tx.execute_raw(statement(
        tx,
        "UPDATE subscriptions SET trial_plan = NULL, trial_version = NULL, trial_ends_at = NULL WHERE tenant_id = $1",
        [tenant.clone().into()],
    ))
    .await?;
    Ok(())
}

/// Lets a new tenant try what new tenants may try, if anything.
pub(crate) async fn begin_trial<C: ConnectionTrait>(tx: &C, tenant: &TenantId, now: Timestamp) -> ApiResult<()> {
    if let (_, Some(TrialOffer { plan, days })) = settings(tx).await? {
        begin(tx, tenant, &plan, now.plus(DAY * days), now).await?;
    }
    Ok(())
}

/// Puts decisions over those that were made before for a tenant, or over none.
pub(super) async fn decide<C: ConnectionTrait>(
    tx: &C,
    tenant: &TenantId,
    newer: Overrides,
    forget: bool,
    now: Timestamp,
) -> Result<(), PlanError> {
    open(tx, tenant, now).await?;
    let mut overrides = if forget { Overrides::default() } else { sources(tx, tenant).await?.overrides };
    overrides.add(newer);
    tx.execute_raw(statement(
        tx,
        "UPDATE subscriptions SET overrides = $2 WHERE tenant_id = $1",
        [tenant.clone().into(), written(&overrides)?.into()],
    ))
    .await?;
    Ok(())
}
