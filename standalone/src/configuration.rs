//! What all programs together can be told: `docs/configuration.md` and `.env.example`, made from the declarations.

use control_plane::config::Config;
use data_plane::config::{SandboxSettings, Settings};
use shared::config::{Chapter, Group, LogConfig};

use crate::embedded::Own;

/// The settings of each program; those of several stand once.
#[must_use]
pub fn chapters() -> Vec<Chapter> {
    let own = |groups: &[Group]| -> Vec<Group> {
        groups.iter().copied().filter(|group| group.title() != LogConfig::GROUP.title()).collect()
    };
    vec![
        Chapter {
            program: "control-plane",
            about: "What tenants and operators decide and pay for.",
            groups: own(Config::GROUPS),
        },
        Chapter {
            program: "data-plane",
            about: "A worker, which holds WhatsApp connections.",
            groups: vec![Settings::GROUP, SandboxSettings::GROUP],
        },
        Chapter { program: "Both", about: "The same in each program.", groups: vec![LogConfig::GROUP] },
        Chapter { program: "standalone", about: "Both planes in one process.", groups: vec![Own::GROUP] },
    ]
}

/// `docs/configuration.md`.
#[must_use]
pub fn markdown() -> String {
    shared::config::markdown(&chapters())
}

/// `.env.example`.
#[must_use]
pub fn env_example() -> String {
    shared::config::env_example(&chapters())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use shared::config::Values;

    use super::*;
    use crate::embedded;

    fn checked_in(path: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        fs::read_to_string(root.join(path)).unwrap_or_default()
    }

    #[test]
    fn the_checked_in_documents_are_current() {
        assert!(
            checked_in("docs/configuration.md") == markdown(),
            "docs/configuration.md has drifted: run `make openapi`"
        );
        assert!(checked_in(".env.example") == env_example(), ".env.example has drifted: run `make openapi`");
    }

    #[test]
    fn no_setting_of_one_program_is_taken_for_a_slip_in_another_s() {
        let chapters = chapters();
        let all: Vec<_> =
            chapters.iter().flat_map(|chapter| &chapter.groups).flat_map(|group| group.settings).collect();
        let programs =
            [Config::GROUPS, data_plane::config::GROUPS, data_plane::config::SANDBOX_GROUPS, &embedded::groups()];
        for setting in &all {
            assert!(!setting.about.trim().is_empty() && !setting.expected.is_empty(), "{}", setting.name);
            for groups in programs {
                let environment = [(setting.name.to_owned(), "x".to_owned())];
                Values::layered(environment, groups).unwrap();
            }
        }
    }

    #[test]
    fn the_example_s_values_are_the_defaults() {
        let lines = env_example();
        let settings = lines.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
        let needed = [
            ("DATABASE_URL", "sqlite://a.db"),
            ("MASTER_KEY", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="),
            ("WORKER_JOIN_TOKEN", "sixteen-or-more-characters"),
        ];
        let given = settings.chain(needed).map(|(name, text)| (name.to_owned(), text.to_owned()));
        let groups: Vec<Group> = chapters().into_iter().flat_map(|chapter| chapter.groups).collect();
        let values = Values::layered(given, &groups).unwrap();
        Config::read(&values).unwrap();
        LogConfig::read(&values).unwrap();
    }
}
