//! The operator's file of plans, which is also the body that publishes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use serde::Deserialize;
use utoipa::{
    ToSchema,
    openapi::{
        Object, ObjectBuilder, Type,
        schema::{AdditionalProperties, SchemaType},
    },
};
use validator::{Validate, ValidationError};

use super::terms::{Feature, Limit, Terms, listed};
use crate::extract::{field_errors, says_something};

/// The most plans of a file.
const MOST_PLANS: usize = 200;

/// All plans of an installation, as JSON; see `docs/plans.md`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
#[validate(schema(function = "names_are_unique"))]
pub struct PlanFile {
    /// The plan of tenants who were given none: one of these plans, or one that is there.
    #[validate(custom(function = "name"))]
    #[schema(example = "free", max_length = 50, pattern = "^[a-z0-9-]{1,50}$")]
    pub default: String,
    /// What a new tenant may try; null or absent: nothing.
    #[serde(default)]
    #[validate(nested)]
    pub trial: Option<TrialOffer>,
    /// The plans, each named once. A plan that isn't among them stays as it is.
    #[validate(nested)]
    #[schema(max_items = 200)]
    pub plans: Vec<PlanSpec>,
}

/// What a new tenant may try.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrialOffer {
    /// Which plan.
    #[validate(custom(function = "name"))]
    #[schema(example = "business", max_length = 50, pattern = "^[a-z0-9-]{1,50}$")]
    pub plan: String,
    /// For how many days: 1 to 365.
    #[validate(range(min = 1, max = 365))]
    #[schema(minimum = 1, maximum = 365, example = 14)]
    pub days: u32,
}

/// A plan, as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanSpec {
    /// What it is called in commands and answers: 1 to 50 characters of `a-z`, `0-9` and `-`.
    #[validate(custom(function = "name"))]
    #[schema(example = "business", max_length = 50, pattern = "^[a-z0-9-]{1,50}$")]
    pub name: String,
    /// As people read it.
    #[validate(length(min = 1, max = 100), custom(function = says_something))]
    #[schema(example = "Business", min_length = 1, max_length = 100)]
    pub title: String,
    /// What may be done.
    #[serde(default)]
    #[schema(value_type = Vec<Feature>)]
    pub features: BTreeSet<Feature>,
    /// How much; what isn't named has no limit.
    #[serde(default)]
    #[schema(schema_with = limits_schema)]
    pub limits: BTreeMap<Limit, u32>,
    /// The pool of the workers that its sessions run on; null or absent: those without a pool.
    #[serde(default)]
    #[validate(custom(function = "name"))]
    #[schema(example = "acme", max_length = 50, pattern = "^[a-z0-9-]{1,50}$")]
    pub pool: Option<String>,
    /// Whether it is shown to those who don't have it.
    #[serde(default = "listed")]
    #[schema(default = true)]
    pub listed: bool,
}

fn limits_schema() -> Object {
    by_limit(Type::Integer.into(), "How much, by limit; what isn't named has no limit.")
}

/// A number for each limit, and nothing else.
pub(super) fn by_limit(number: SchemaType, description: &str) -> Object {
    let number = ObjectBuilder::new().schema_type(number).minimum(Some(0)).maximum(Some(u32::MAX)).build();
    let object = ObjectBuilder::new().description(Some(description));
    let object = object.additional_properties(Some(AdditionalProperties::FreeForm(false)));
    Limit::ALL.iter().fold(object, |object, limit| object.property(limit.as_str(), number.clone())).build()
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
        file.validate().map_err(|errors| {
            let told: Vec<_> =
                field_errors(&errors).iter().map(|error| format!("{}: {}", error.pointer, error.detail)).collect();
            anyhow::anyhow!("the file can't be right: {}", told.join("; "))
        })?;
        Ok(file)
    }
}

fn names_are_unique(file: &PlanFile) -> Result<(), ValidationError> {
    if file.plans.len() > MOST_PLANS {
        return Err(ValidationError::new("length").with_message(format!("at most {MOST_PLANS} plans").into()));
    }
    let mut names = BTreeSet::new();
    match file.plans.iter().find(|plan| !names.insert(&plan.name)) {
        None => Ok(()),
        Some(_) => Err(ValidationError::new("twice").with_message("a plan is there twice".into())),
    }
}

/// Refuses what can't be a plan's or a pool's name.
pub(super) fn name(text: &str) -> Result<(), ValidationError> {
    if is_name(text) {
        return Ok(());
    }
    Err(ValidationError::new("name").with_message("must be 1 to 50 characters of a-z, 0-9 and -".into()))
}

/// Whether this can be a plan's or a pool's name.
pub(super) fn is_name(text: &str) -> bool {
    (1..=50).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// A plan's name, as it stands in a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanName(String);

impl PlanName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// It isn't a name.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("1 to 50 characters of a-z, 0-9 and -")]
pub struct NoName;

impl FromStr for PlanName {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        if is_name(text) { Ok(Self(text.to_owned())) } else { Err(NoName) }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_mistake_is_told_by_where_it_is() {
        let wrong = r#"{"default": "a", "plans": [{"name": "a", "title": "A"}, {"name": "B", "title": ""}]}"#;
        let told = PlanFile::read(wrong).unwrap_err().to_string();
        assert!(told.contains("/plans/1/name: ") && told.contains("/plans/1/title: "), "{told}");
    }

    #[test]
    fn the_pattern_says_what_the_check_does() {
        let document = serde_json::to_value(crate::app::document()).unwrap();
        let documented = &document["components"]["schemas"]["PlanSpec"]["properties"]["name"]["pattern"];
        let pattern = regex::Regex::new(documented.as_str().unwrap()).unwrap();
        for text in ["", "a", "A", "a-1", "é", "a\n", "a b", &"a".repeat(50), &"a".repeat(51)] {
            assert_eq!(pattern.is_match(text), is_name(text), "{text:?}");
        }
    }

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
    #[case::default(r#"{"default": "No name", "plans": []}"#)]
    #[case::pool(r#"{"default": "a", "plans": [{"name": "a", "title": "A", "pool": ""}]}"#)]
    fn a_file_with_a_mistake_is_refused_whole(#[case] text: &str) {
        assert!(PlanFile::read(text).is_err());
    }
}
