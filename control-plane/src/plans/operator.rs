//! What operators see of plans, and how they change them: the same statements as the commands'.

use std::{collections::BTreeMap, time::Duration};

use sea_orm::{ConnectionTrait, DatabaseTransaction};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use shared::{ids::TenantId, time::Timestamp};
use utoipa::{
    ToSchema,
    openapi::{
        Object, ObjectBuilder, Type,
        schema::{AdditionalProperties, SchemaType},
    },
};
use validator::Validate;

use super::{
    dto::{CurrentPlan, Plan},
    file::{PlanFile, PlanName, by_limit, name},
    routes::current,
    store::{self, PlanError},
    terms::{Feature, Limit, Overrides, PlanVersion, PoolOverride, resolve},
};
use crate::{
    auth::TenantScope,
    error::{ApiError, ApiResult, Kind, Refusal},
    extract::page::{Page, PageQuery},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What holds for a tenant, and all that was decided for it.
#[derive(Debug, Serialize, ToSchema)]
pub struct TenantPlan {
    /// What holds now, as the tenant sees it.
    #[serde(flatten)]
    pub now: CurrentPlan,
    /// The pool of the workers that its sessions run on; null: those without a pool.
    #[schema(example = "acme")]
    pub pool: Option<String>,
    /// The overrides: they come first.
    pub overrides: PlanOverrides,
    /// What it tries: comes before what it was given, until it ends. Stays here after that.
    pub trial: Option<TenantTrial>,
    /// What it was given: comes before the default.
    pub given: Option<PlanReference>,
    /// What it has if nothing else says otherwise: the newest version of the default plan.
    pub default: PlanReference,
}

/// A version of a plan.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlanReference {
    /// The plan's name.
    #[schema(example = "business")]
    pub plan: String,
    /// Which version.
    #[schema(example = 3, minimum = 1)]
    pub version: i64,
}

impl From<&PlanVersion> for PlanReference {
    fn from(version: &PlanVersion) -> Self {
        Self { plan: version.plan.clone(), version: version.version }
    }
}

/// A trial of a tenant's.
#[derive(Debug, Serialize, ToSchema)]
pub struct TenantTrial {
    /// The plan's name.
    #[schema(example = "business")]
    pub plan: String,
    /// Which version.
    #[schema(example = 3, minimum = 1)]
    pub version: i64,
    /// When it ends, or ended.
    pub ends_at: Timestamp,
}

/// What is decided for one tenant, whatever its plan says.
#[derive(Debug, Default, Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanOverrides {
    /// Features that are given (true) or taken (false).
    #[serde(default)]
    #[schema(schema_with = features_schema)]
    pub features: BTreeMap<Feature, bool>,
    /// Other limits; null: none.
    #[serde(default)]
    #[schema(schema_with = limits_schema)]
    pub limits: BTreeMap<Limit, Option<u32>>,
    /// The workers of this pool only; `shared`: those without a pool; null or absent: not decided.
    #[serde(default, serialize_with = "written", deserialize_with = "read")]
    #[schema(value_type = Option<String>, example = "acme", max_length = 50, pattern = "^[a-z0-9-]{1,50}$")]
    pub pool: Option<PoolOverride>,
}

fn written<S: Serializer>(pool: &Option<PoolOverride>, to: S) -> Result<S::Ok, S::Error> {
    pool.as_ref().map(ToString::to_string).serialize(to)
}

fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PoolOverride>, D::Error> {
    Option::<String>::deserialize(from)?.map(|text| text.parse().map_err(Error::custom)).transpose()
}

fn features_schema() -> Object {
    let object = ObjectBuilder::new().description(Some("Features that are given (true) or taken (false)."));
    let object = object.additional_properties(Some(AdditionalProperties::FreeForm(false)));
    let choice = ObjectBuilder::new().schema_type(Type::Boolean).build();
    Feature::ALL.iter().fold(object, |object, feature| object.property(feature.as_str(), choice.clone())).build()
}

fn limits_schema() -> Object {
    by_limit(SchemaType::from_iter([Type::Integer, Type::Null]), "Other limits; null: none.")
}

impl From<Overrides> for PlanOverrides {
    fn from(Overrides { features, limits, pool }: Overrides) -> Self {
        Self { features, limits, pool }
    }
}

impl From<PlanOverrides> for Overrides {
    fn from(PlanOverrides { features, limits, pool }: PlanOverrides) -> Self {
        Self { features, limits, pool }
    }
}

/// The plan that a tenant is given.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignPlan {
    /// Its name.
    #[validate(custom(function = "name"))]
    #[schema(example = "business", max_length = 50, pattern = "^[a-z0-9-]{1,50}$")]
    pub plan: String,
    /// Which version; null or absent: the newest.
    #[serde(default)]
    #[validate(range(min = 1))]
    #[schema(example = 3, minimum = 1, maximum = 4_294_967_295_u32)]
    pub version: Option<u32>,
}

/// What a tenant is to try.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BeginTrial {
    /// The plan's name: its newest version.
    #[validate(custom(function = "name"))]
    #[schema(example = "business", max_length = 50, pattern = "^[a-z0-9-]{1,50}$")]
    pub plan: String,
    /// For how many days from now: 1 to 3650.
    #[validate(range(min = 1, max = 3650))]
    #[schema(example = 14, minimum = 1, maximum = 3650)]
    pub days: u32,
}

/// A version of a plan, with all that it says.
#[derive(Debug, Serialize, ToSchema)]
pub struct PublishedPlan {
    /// What tenants see of it.
    #[serde(flatten)]
    pub plan: Plan,
    /// The pool of the workers that its sessions run on; null: those without a pool.
    #[schema(example = "acme")]
    pub pool: Option<String>,
    /// Whether it is shown to those who don't have it.
    pub listed: bool,
    /// When this version was published.
    pub created_at: Timestamp,
}

impl From<(PlanVersion, Timestamp)> for PublishedPlan {
    fn from((version, created_at): (PlanVersion, Timestamp)) -> Self {
        Self { pool: version.terms.pool.clone(), listed: version.terms.listed, plan: version.into(), created_at }
    }
}

/// A plan, in its newest version.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdminPlan {
    /// Its newest version.
    #[serde(flatten)]
    pub newest: PublishedPlan,
    /// Whether those have it who were given none.
    pub default: bool,
    /// For how many days a new tenant may try it; null: new tenants don't.
    #[schema(example = 14, minimum = 1)]
    pub trial_days: Option<u32>,
}

/// What became of the plans that were published.
#[derive(Debug, Serialize, ToSchema)]
pub struct AppliedPlans {
    /// In the order in which they were named.
    pub data: Vec<AppliedPlan>,
}

/// What became of one plan.
#[derive(Debug, Serialize, ToSchema)]
pub struct AppliedPlan {
    /// Its name.
    #[schema(example = "business")]
    pub plan: String,
    /// Its newest version.
    #[schema(example = 4, minimum = 1)]
    pub version: i64,
    /// Whether that was made now; else the plan is as it was.
    pub is_new: bool,
}

/// What an operator is told.
fn told(error: PlanError) -> ApiError {
    match error {
        PlanError::NoSuchTenant => Kind::NotFound.into(),
        PlanError::NoSuchPlan => no_such_plan("/plan"),
        PlanError::NamesNoPlan(place) => no_such_plan(place),
        other => other.into(),
    }
}

fn no_such_plan(place: &str) -> ApiError {
    Refusal::field(place, "unknown-plan", "there is no such plan, or no such version of it").into()
}

/// What holds for a tenant, and why.
///
/// # Errors
/// `not-found`; as the driver.
pub(crate) async fn plan_of<C: ConnectionTrait>(connection: &C, tenant: &TenantId) -> ApiResult<TenantPlan> {
    store::known(connection, tenant).await.map_err(told)?;
    let now = Timestamp::now();
    let sources = store::sources(connection, tenant).await.map_err(told)?;
    let (overrides, default) = (sources.overrides.clone().into(), (&sources.default).into());
    let given = sources.subscription.as_ref().map(Into::into);
    let trial = sources.trial.as_ref().map(|(version, ends_at)| TenantTrial {
        plan: version.plan.clone(),
        version: version.version,
        ends_at: *ends_at,
    });
    let entitlements = resolve(sources, now);
    let pool = entitlements.terms.pool.clone();
    let now = current(connection, &TenantScope::of_row(tenant.clone()), entitlements, now).await?;
    Ok(TenantPlan { now, pool, overrides, trial, given, default })
}

/// Gives a tenant a plan, or takes its plan away.
///
/// # Errors
/// `not-found`; `validation` if there is no such plan; as the driver.
pub(crate) async fn assign(
    tx: &DatabaseTransaction,
    tenant: &TenantId,
    wanted: Option<AssignPlan>,
) -> ApiResult<TenantPlan> {
    let plan = wanted.as_ref().map(|wanted| (wanted.plan.as_str(), wanted.version.map(i64::from)));
    store::assign(tx, tenant, plan, Timestamp::now()).await.map_err(told)?;
    plan_of(tx, tenant).await
}

/// Lets a tenant try a plan, or ends its trial.
///
/// # Errors
/// As [`assign`].
pub(crate) async fn try_out(
    tx: &DatabaseTransaction,
    tenant: &TenantId,
    wanted: Option<BeginTrial>,
) -> ApiResult<TenantPlan> {
    let now = Timestamp::now();
    let done = match wanted {
        Some(BeginTrial { plan, days }) => store::begin(tx, tenant, &plan, now.plus(DAY * days), now).await,
        None => store::end_trial(tx, tenant, now).await,
    };
    done.map_err(told)?;
    plan_of(tx, tenant).await
}

/// Decides for one tenant: over what was decided before, or in its place.
///
/// # Errors
/// `not-found`; as the driver.
pub(crate) async fn decide(
    tx: &DatabaseTransaction,
    tenant: &TenantId,
    wanted: PlanOverrides,
    in_place: bool,
) -> ApiResult<TenantPlan> {
    store::decide(tx, tenant, wanted.into(), in_place, Timestamp::now()).await.map_err(told)?;
    plan_of(tx, tenant).await
}

/// The plans, from the end of the alphabet.
///
/// # Errors
/// `bad-request` for a cursor of something else; as the driver.
pub(crate) async fn list<C: ConnectionTrait>(connection: &C, page: &PageQuery) -> ApiResult<Page<AdminPlan>> {
    let before = page.before::<PlanName>()?;
    let (default, trial) = store::settings(connection).await.map_err(told)?;
    let rows = store::page(connection, before.as_ref().map(PlanName::as_str), page.rows()).await.map_err(told)?;
    Ok(page.page(
        rows,
        |(version, _)| &version.plan,
        |row| AdminPlan {
            default: row.0.plan == default,
            trial_days: trial.as_ref().filter(|trial| trial.plan == row.0.plan).map(|trial| trial.days),
            newest: row.into(),
        },
    ))
}

/// The versions of a plan, the newest first.
///
/// # Errors
/// `not-found`; `bad-request` for a cursor of something else; as the driver.
pub(crate) async fn versions<C: ConnectionTrait>(
    connection: &C,
    plan: &PlanName,
    page: &PageQuery,
) -> ApiResult<Page<PublishedPlan>> {
    let before = page.before::<i64>()?;
    let rows = match store::versions(connection, plan.as_str(), before, page.rows()).await {
        Err(PlanError::NoSuchPlan) => return Err(Kind::NotFound.into()),
        other => other.map_err(told)?,
    };
    Ok(page.page(rows, |(version, _)| &version.version, PublishedPlan::from))
}

/// Makes the plans as a file says.
///
/// # Errors
/// `validation` if its default or its trial is no plan; as the driver.
pub(crate) async fn apply(tx: &DatabaseTransaction, file: &PlanFile) -> ApiResult<AppliedPlans> {
    let done = store::apply(tx, file, Timestamp::now()).await.map_err(told)?;
    let data = done.into_iter().map(|one| AppliedPlan { plan: one.plan, version: one.version, is_new: one.is_new });
    Ok(AppliedPlans { data: data.collect() })
}
