//! Plans as the API shows them.

use serde::Serialize;
use shared::time::Timestamp;
use utoipa::ToSchema;

use super::terms::{Feature, Limit, PlanVersion, Source};

/// What the tenant may do, and how much of it is used.
#[derive(Debug, Serialize, ToSchema)]
pub struct CurrentPlan {
    /// The plan's name.
    #[schema(example = "starter")]
    pub plan: String,
    /// Its version: one that is given stays as it was, whatever becomes of the plan.
    #[schema(example = 3, minimum = 1)]
    pub version: i64,
    /// As people read it.
    #[schema(example = "Starter")]
    pub title: String,
    /// Why this plan.
    pub source: Source,
    /// When the trial ends.
    pub trial_ends_at: Option<Timestamp>,
    /// Whether the operator decided otherwise than the plan in anything.
    pub overridden: bool,
    /// What may be done.
    pub features: Vec<Feature>,
    /// How much, and how much of it is used.
    pub limits: Vec<LimitState>,
}

/// One limit, and what is used of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct LimitState {
    /// Of what.
    pub limit: Limit,
    /// How many there may be; null: as many as one likes.
    #[schema(example = 5)]
    pub allowed: Option<u32>,
    /// How many there are. Of messages: those that wait and those that were sent this month.
    #[schema(example = 2, minimum = 0)]
    pub used: i64,
    /// When it begins anew, if it does.
    pub resets_at: Option<Timestamp>,
}

/// A plan that the operator has.
#[derive(Debug, Serialize, ToSchema)]
pub struct Plan {
    /// Its name.
    #[schema(example = "starter")]
    pub plan: String,
    /// Its newest version.
    #[schema(example = 3, minimum = 1)]
    pub version: i64,
    /// As people read it.
    #[schema(example = "Starter")]
    pub title: String,
    /// What may be done.
    pub features: Vec<Feature>,
    /// How much.
    pub limits: Vec<PlanLimit>,
}

/// A limit of a plan.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlanLimit {
    /// Of what.
    pub limit: Limit,
    /// How many there may be; null: as many as one likes.
    #[schema(example = 5)]
    pub allowed: Option<u32>,
}

/// All plans.
#[derive(Debug, Serialize, ToSchema)]
pub struct Plans {
    /// By name.
    pub data: Vec<Plan>,
}

impl From<PlanVersion> for Plan {
    fn from(version: PlanVersion) -> Self {
        let allowed = |limit| version.terms.limits.get(&limit).copied();
        Self {
            limits: Limit::ALL.into_iter().map(|limit| PlanLimit { limit, allowed: allowed(limit) }).collect(),
            features: version.terms.features.into_iter().collect(),
            plan: version.plan,
            version: version.version,
            title: version.title,
        }
    }
}
