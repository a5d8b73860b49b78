//! The operator's file of plans.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::terms::{Feature, Limit, Terms, listed};

/// All plans of an installation, as JSON; see `docs/plans.md`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// The plan of tenants who were given none.
    pub default: String,
    /// What a new tenant may try.
    #[serde(default)]
    pub trial: Option<TrialOffer>,
    /// The plans.
    pub plans: Vec<PlanSpec>,
}

/// What a new tenant may try.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialOffer {
    /// Which plan.
    pub plan: String,
    /// For how many days: 1 to 365.
    pub days: u32,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanSpec {
    /// What it is called in commands and answers: 1 to 50 characters of `a-z`, `0-9` and `-`.
    pub name: String,
    /// As people read it.
    pub title: String,
    /// What may be done.
    #[serde(default)]
    pub features: BTreeSet<Feature>,
    /// How much; what isn't named has no limit.
    #[serde(default)]
    pub limits: BTreeMap<Limit, u32>,
    /// The workers that its sessions run on.
    #[serde(default)]
    pub pool: Option<String>,
    /// Whether it is shown to those who don't have it.
    #[serde(default = "listed")]
    pub listed: bool,
}

impl PlanSpec {
    pub(super) fn terms(&self) -> Terms {
        Terms {
            features: self.features.clone(),
            limits: self.limits.clone(),
            pool: self.pool.clone(),
            listed: self.listed,
        }
    }
}

impl PlanFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let file: Self = serde_json::from_str(text)?;
        let mut names = BTreeSet::new();
        for plan in &file.plans {
            anyhow::ensure!(is_name(&plan.name), "{:?} is no name: 1 to 50 characters of a-z, 0-9 and -", plan.name);
            anyhow::ensure!(names.insert(&plan.name), "the plan {} is there twice", plan.name);
            let title = plan.title.trim();
            anyhow::ensure!(!title.is_empty() && title.len() <= 100, "the plan {} needs a title", plan.name);
            if let Some(pool) = &plan.pool {
                anyhow::ensure!(is_name(pool), "{pool:?} is no name of a pool");
            }
        }
        if let Some(trial) = &file.trial {
            anyhow::ensure!((1..=365).contains(&trial.days), "a trial lasts 1 to 365 days");
        }
        Ok(file)
    }
}

/// Whether this can be a plan's or a pool's name.
pub(super) fn is_name(text: &str) -> bool {
    (1..=50).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_example_of_the_documentation_is_a_file() {
        let documented = include_str!("../../../docs/plans.md");
        let (_, rest) = documented.split_once("```json\n").unwrap();
        let (example, _) = rest.split_once("```").unwrap();
        let file = PlanFile::read(example).unwrap();
        assert!(file.plans.len() >= 2 && file.trial.is_some());
    }

    #[rstest]
    #[case::two(r#"{"default": "a", "plans": [{"name": "a", "title": "A"}, {"name": "a", "title": "B"}]}"#)]
    #[case::name(r#"{"default": "a", "plans": [{"name": "A b", "title": "A"}]}"#)]
    #[case::title(r#"{"default": "a", "plans": [{"name": "a", "title": " "}]}"#)]
    #[case::limit(r#"{"default": "a", "plans": [{"name": "a", "title": "A", "limits": {"moons": 1}}]}"#)]
    #[case::negative(r#"{"default": "a", "plans": [{"name": "a", "title": "A", "limits": {"sessions": -1}}]}"#)]
    #[case::feature(r#"{"default": "a", "plans": [{"name": "a", "title": "A", "features": ["magic"]}]}"#)]
    #[case::misspelt(r#"{"default": "a", "plans": [{"name": "a", "title": "A", "limit": {}}]}"#)]
    #[case::trial(r#"{"default": "a", "trial": {"plan": "a", "days": 0}, "plans": []}"#)]
    fn a_file_with_a_mistake_is_refused_whole(#[case] text: &str) {
        assert!(PlanFile::read(text).is_err());
    }
}
