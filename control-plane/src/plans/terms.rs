//! What plans say, and which of them holds. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use shared::time::Timestamp;
use utoipa::ToSchema;

use super::file::{NoName, is_name};

/// Something that a tenant may or may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// Sessions on the real WhatsApp. Without it only the sandbox is open.
    Whatsapp,
    /// Webhook endpoints.
    Webhooks,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Whatsapp, Self::Webhooks];

    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Whatsapp => "whatsapp",
            Self::Webhooks => "webhooks",
        }
    }
}

/// Something of which a tenant may have only so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Sessions that aren't deleted.
    Sessions,
    /// API keys that work.
    ApiKeys,
    /// Webhook endpoints.
    Webhooks,
    /// People.
    Members,
    /// Messages that are taken in a calendar month (UTC) and don't fail.
    MessagesPerMonth,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Sessions, Self::ApiKeys, Self::Webhooks, Self::Members, Self::MessagesPerMonth];

    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::ApiKeys => "api_keys",
            Self::Webhooks => "webhooks",
            Self::Members => "members",
            Self::MessagesPerMonth => "messages_per_month",
        }
    }
}

/// What one version of a plan says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// What may be done.
    #[serde(default)]
    pub features: BTreeSet<Feature>,
    /// How much; what isn't named has no limit.
    #[serde(default)]
    pub limits: BTreeMap<Limit, u32>,
    /// The workers that its sessions run on, and no others; absent: those without a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Whether it is shown to those who don't have it: not, say, if it is made for one customer.
    #[serde(default = "listed", skip_serializing_if = "is_listed")]
    pub listed: bool,
}

pub(super) const fn listed() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_listed(listed: &bool) -> bool {
    *listed
}

/// The workers of a tenant whose plan says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolOverride {
    /// Those without a pool.
    Shared,
    /// Those of this pool.
    Own(String),
}

/// The word for [`PoolOverride::Shared`], so that no override names a pool like that.
const SHARED: &str = "shared";

impl FromStr for PoolOverride {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        match text {
            SHARED => Ok(Self::Shared),
            name if is_name(name) => Ok(Self::Own(name.to_owned())),
            _ => Err(NoName),
        }
    }
}

impl fmt::Display for PoolOverride {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => SHARED,
            Self::Own(name) => name,
        })
    }
}

/// What the operator decided for one tenant, whatever its plan says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// Features given or taken.
    #[serde(default)]
    pub features: BTreeMap<Feature, bool>,
    /// Other limits; `null` is none.
    #[serde(default)]
    pub limits: BTreeMap<Limit, Option<u32>>,
    /// Other workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolOverride>,
}

impl Overrides {
    /// Whether nothing is decided.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Puts decisions over those that were made before.
    pub fn add(&mut self, newer: Self) {
        self.features.extend(newer.features);
        self.limits.extend(newer.limits);
        self.pool = newer.pool.or_else(|| self.pool.take());
    }
}

/// A version of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanVersion {
    /// The plan's name.
    pub plan: String,
    /// Which version, from 1.
    pub version: i64,
    /// As people read it.
    pub title: String,
    /// What it says.
    pub terms: Terms,
}

/// All that can decide what a tenant may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The newest version of the default plan.
    pub default: PlanVersion,
    /// What the tenant was given.
    pub subscription: Option<PlanVersion>,
    /// What it tries, and until when.
    pub trial: Option<(PlanVersion, Timestamp)>,
    /// What the operator decided for it.
    pub overrides: Overrides,
}

/// Where a tenant's plan comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// It was given none.
    Default,
    /// It was given this one.
    Subscription,
    /// It tries this one.
    Trial,
}

/// What a tenant may do now, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entitlements {
    /// The plan that decides where no override does; its terms are those of the plan, without overrides.
    pub plan: PlanVersion,
    /// Why this plan.
    pub source: Source,
    /// When the trial ends, while it lasts.
    pub trial_ends_at: Option<Timestamp>,
    /// Whether the operator decided otherwise in anything.
    pub overridden: bool,
    /// What holds.
    pub terms: Terms,
}

impl Entitlements {
    /// Whether something may be done.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.terms.features.contains(&feature)
    }

    /// How much of something; nothing: without limit.
    #[must_use]
    pub fn limit(&self, limit: Limit) -> Option<u32> {
        self.terms.limits.get(&limit).copied()
    }
}

/// What holds at `now`: override, else trial, else subscription, else default.
#[must_use]
pub fn resolve(sources: Sources, now: Timestamp) -> Entitlements {
    let Sources { default, subscription, trial, overrides } = sources;
    let (plan, source, trial_ends_at) = match (trial.filter(|(_, ends_at)| now < *ends_at), subscription) {
        (Some((plan, ends_at)), _) => (plan, Source::Trial, Some(ends_at)),
        (None, Some(plan)) => (plan, Source::Subscription, None),
        (None, None) => (default, Source::Default, None),
    };
    let mut terms = plan.terms.clone();
    let overridden = !overrides.is_empty();
    for (feature, given) in overrides.features {
        if given {
            terms.features.insert(feature);
        } else {
            terms.features.remove(&feature);
        }
    }
    for (limit, allowed) in overrides.limits {
        match allowed {
            Some(allowed) => terms.limits.insert(limit, allowed),
            None => terms.limits.remove(&limit),
        };
    }
    match overrides.pool {
        Some(PoolOverride::Shared) => terms.pool = None,
        Some(PoolOverride::Own(pool)) => terms.pool = Some(pool),
        None => {}
    }
    Entitlements { plan, source, trial_ends_at, overridden, terms }
}

#[cfg(test)]
mod tests {
    use proptest::{collection, option, prelude::*, sample};

    use super::*;

    fn terms() -> impl Strategy<Value = Terms> {
        (
            collection::btree_set(sample::select(Feature::ALL.to_vec()), 0..3),
            collection::btree_map(sample::select(Limit::ALL.to_vec()), 0_u32..100, 0..5),
            option::of("[a-z]{1,8}"),
        )
            .prop_map(|(features, limits, pool)| Terms { features, limits, pool, listed: true })
    }

    fn plan(name: &'static str) -> impl Strategy<Value = PlanVersion> {
        (terms(), 1_i64..9).prop_map(move |(terms, version)| PlanVersion {
            plan: name.into(),
            version,
            title: name.into(),
            terms,
        })
    }

    fn overrides() -> impl Strategy<Value = Overrides> {
        (
            collection::btree_map(sample::select(Feature::ALL.to_vec()), any::<bool>(), 0..3),
            collection::btree_map(sample::select(Limit::ALL.to_vec()), option::of(0_u32..100), 0..5),
            option::of(prop_oneof![Just(PoolOverride::Shared), "[a-z]{1,8}".prop_map(PoolOverride::Own)]),
        )
            .prop_map(|(features, limits, pool)| Overrides { features, limits, pool })
    }

    fn sources() -> impl Strategy<Value = Sources> {
        (
            plan("default"),
            option::of(plan("subscription")),
            option::of((plan("trial"), (0_i64..200).prop_map(Timestamp::from_millis))),
            overrides(),
        )
            .prop_map(|(default, subscription, trial, overrides)| Sources {
                default,
                subscription,
                trial,
                overrides,
            })
    }

    proptest! {
        #[test]
        fn each_entitlement_is_the_first_of_override_trial_subscription_default(
            sources in sources(),
            now in (0_i64..200).prop_map(Timestamp::from_millis),
        ) {
            let got = resolve(sources.clone(), now);
            let plan = match (&sources.trial, &sources.subscription) {
                (Some((plan, ends_at)), _) if now < *ends_at => plan,
                (_, Some(plan)) => plan,
                _ => &sources.default,
            };
            prop_assert_eq!(&got.plan, plan);
            prop_assert_eq!(got.overridden, !sources.overrides.is_empty());
            prop_assert_eq!(got.trial_ends_at.is_some(), got.source == Source::Trial);
            for feature in Feature::ALL {
                let expected = sources.overrides.features.get(&feature).copied();
                prop_assert_eq!(got.has(feature), expected.unwrap_or_else(|| plan.terms.features.contains(&feature)));
            }
            for limit in Limit::ALL {
                let expected = sources.overrides.limits.get(&limit).copied();
                prop_assert_eq!(got.limit(limit), expected.unwrap_or_else(|| plan.terms.limits.get(&limit).copied()));
            }
            let pool = match &sources.overrides.pool {
                Some(PoolOverride::Shared) => None,
                Some(PoolOverride::Own(pool)) => Some(pool.clone()),
                None => plan.terms.pool.clone(),
            };
            prop_assert_eq!(got.terms.pool, pool);
        }

        #[test]
        fn terms_and_overrides_are_read_as_they_were_written(terms in terms(), overrides in overrides()) {
            let text = serde_json::to_string(&terms).unwrap();
            prop_assert_eq!(serde_json::from_str::<Terms>(&text).unwrap(), terms);
            let text = serde_json::to_string(&overrides).unwrap();
            prop_assert_eq!(serde_json::from_str::<Overrides>(&text).unwrap(), overrides);
        }

        #[test]
        fn a_newer_override_holds_and_leaves_the_others(older in overrides(), newer in overrides()) {
            let mut both = older.clone();
            both.add(newer.clone());
            for limit in Limit::ALL {
                let expected = newer.limits.get(&limit).or_else(|| older.limits.get(&limit));
                prop_assert_eq!(both.limits.get(&limit), expected);
            }
            prop_assert_eq!(both.pool, newer.pool.or(older.pool));
        }
    }
}
