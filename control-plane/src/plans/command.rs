//! `control-plane plans`: the operator's commands.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::{ArgGroup, Subcommand};
use sea_orm::DatabaseTransaction;
use shared::{ids::TenantId, time::Timestamp};

use super::{
    file::PlanFile,
    store::{self, Applied, PlanError},
    terms::{Feature, Limit, Overrides, PlanVersion, PoolOverride, Terms, resolve},
};
use crate::db::Db;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// See docs/plans.md.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum PlansCommand {
    /// Make the plans as a file says. A plan that changed gets a new version; who was given an older one keeps it.
    Apply {
        /// The file, as JSON.
        file: PathBuf,
    },
    /// List the newest version of each plan.
    List,
    /// Show what a tenant may do, and why.
    Show {
        /// Which.
        tenant: TenantId,
    },
    /// Give a tenant a plan. Ends its trial.
    Assign {
        /// Which.
        tenant: TenantId,
        /// The plan.
        plan: String,
        /// Another version than the newest.
        #[arg(long)]
        version: Option<i64>,
    },
    /// Take a tenant's plan away, so that it has the default plan again.
    Unassign {
        /// Which.
        tenant: TenantId,
    },
    /// Let a tenant try a plan.
    Trial {
        /// Which.
        tenant: TenantId,
        /// The plan.
        plan: String,
        /// For how many days from now.
        #[arg(long, value_parser = clap::value_parser!(u32).range(0..=3650))]
        days: u32,
    },
    /// Decide for one tenant, whatever its plan says. What isn't named stays as it was decided before.
    Override(OverrideCommand),
}

/// See [`PlansCommand::Override`].
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(group(ArgGroup::new("decision").args(["limit", "feature", "pool", "clear"]).required(true).multiple(true)))]
pub struct OverrideCommand {
    /// Which.
    tenant: TenantId,
    /// Such as `sessions=20` or `messages_per_month=unlimited`.
    #[arg(long, value_parser = limit)]
    limit: Vec<(Limit, Option<u32>)>,
    /// Such as `webhooks=on` or `whatsapp=off`.
    #[arg(long, value_parser = feature)]
    feature: Vec<(Feature, bool)>,
    /// The workers of this pool only; `shared`: those without a pool.
    #[arg(long)]
    pool: Option<PoolOverride>,
    /// Forget first what was decided before.
    #[arg(long)]
    clear: bool,
}

fn limit(text: &str) -> Result<(Limit, Option<u32>), String> {
    let expected = || {
        let names: Vec<_> = Limit::ALL.iter().map(|limit| limit.as_str()).collect();
        format!("NAME=NUMBER or NAME=unlimited; the names are {}", names.join(", "))
    };
    let (name, value) = text.split_once('=').ok_or_else(expected)?;
    let limit = Limit::ALL.into_iter().find(|limit| limit.as_str() == name).ok_or_else(expected)?;
    match value {
        "unlimited" => Ok((limit, None)),
        number => Ok((limit, Some(number.parse().map_err(|_| expected())?))),
    }
}

fn feature(text: &str) -> Result<(Feature, bool), String> {
    let expected = || {
        let names: Vec<_> = Feature::ALL.iter().map(|feature| feature.as_str()).collect();
        format!("NAME=on or NAME=off; the names are {}", names.join(", "))
    };
    let (name, value) = text.split_once('=').ok_or_else(expected)?;
    let feature = Feature::ALL.into_iter().find(|feature| feature.as_str() == name).ok_or_else(expected)?;
    match value {
        "on" => Ok((feature, true)),
        "off" => Ok((feature, false)),
        _ => Err(expected()),
    }
}

impl PlansCommand {
    /// Under which name the audit log records it, and which tenant it is about; nothing for what only reads.
    #[must_use]
    pub fn changes(&self) -> Option<(&'static str, Option<TenantId>)> {
        match self {
            Self::List | Self::Show { .. } => None,
            Self::Apply { .. } => Some(("apply_plans", None)),
            Self::Assign { tenant, .. } => Some(("assign_plan", Some(tenant.clone()))),
            Self::Unassign { tenant } => Some(("unassign_plan", Some(tenant.clone()))),
            Self::Trial { tenant, .. } => Some(("begin_trial", Some(tenant.clone()))),
            Self::Override(wanted) => Some(("override_plan", Some(wanted.tenant.clone()))),
        }
    }

    /// Does it, and gives what is to be printed.
    ///
    /// # Errors
    /// With a sentence for the operator.
    pub async fn run(self, db: &Db) -> anyhow::Result<String> {
        let now = Timestamp::now();
        let tx = db.write().await.map_err(PlanError::from)?;
        let said = self.run_in(&tx, now).await?;
        tx.commit().await.map_err(PlanError::from)?;
        Ok(said)
    }

    async fn run_in(self, tx: &DatabaseTransaction, now: Timestamp) -> anyhow::Result<String> {
        Ok(match self {
            Self::Apply { file } => {
                let text =
                    std::fs::read_to_string(&file).with_context(|| format!("{} can't be read", file.display()))?;
                let file = PlanFile::read(&text)?;
                let done = store::apply(tx, &file, now).await?;
                let what = |applied: &Applied| if applied.is_new { "new version" } else { "unchanged" };
                done.iter().map(|one| format!("{}\t{}\t{}\n", one.plan, one.version, what(one))).collect()
            }
            Self::List => store::all(tx).await?.iter().map(line).collect(),
            Self::Show { tenant } => {
                let got = resolve(store::sources(tx, &tenant).await?, now);
                let mut said = line(&PlanVersion { terms: got.terms, ..got.plan });
                if let Some(ends_at) = got.trial_ends_at {
                    said.push_str(&format!("a trial, until {ends_at}\n"));
                }
                if got.overridden {
                    said.push_str("with overrides\n");
                }
                said
            }
            Self::Assign { tenant, plan, version } => {
                store::assign(tx, &tenant, Some((&plan, version)), now).await?;
                String::new()
            }
            Self::Unassign { tenant } => {
                store::assign(tx, &tenant, None, now).await?;
                String::new()
            }
            Self::Trial { tenant, plan, days } => {
                store::begin(tx, &tenant, &plan, now.plus(DAY * days), now).await?;
                String::new()
            }
            Self::Override(wanted) => {
                let overrides = Overrides {
                    features: wanted.feature.into_iter().collect::<BTreeMap<_, _>>(),
                    limits: wanted.limit.into_iter().collect(),
                    pool: wanted.pool,
                };
                store::decide(tx, &wanted.tenant, overrides, wanted.clear, now).await?;
                String::new()
            }
        })
    }
}

/// Name, version and terms, with tabs between them.
fn line(version: &PlanVersion) -> String {
    let Terms { features, limits, pool, listed } = &version.terms;
    let features: Vec<_> = features.iter().map(|feature| feature.as_str()).collect();
    let limits: Vec<_> = limits.iter().map(|(limit, allowed)| format!("{}={allowed}", limit.as_str())).collect();
    let pool = pool.as_deref().unwrap_or("shared");
    format!(
        "{}\t{}\t{}\t{}\t{}\tpool={pool}{}\n",
        version.plan,
        version.version,
        version.title,
        features.join(","),
        limits.join(","),
        if *listed { "" } else { "\tnot listed" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_features_are_read_by_name() {
        assert_eq!(limit("sessions=20"), Ok((Limit::Sessions, Some(20))));
        assert_eq!(limit("messages_per_month=unlimited"), Ok((Limit::MessagesPerMonth, None)));
        assert_eq!(feature("webhooks=off"), Ok((Feature::Webhooks, false)));
        assert_eq!("shared".parse::<PoolOverride>().unwrap(), PoolOverride::Shared);
        for wrong in ["sessions", "sessions=-1", "moons=1", "sessions="] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
        assert!(feature("webhooks=maybe").is_err() && "Not a name".parse::<PoolOverride>().is_err());
    }
}
