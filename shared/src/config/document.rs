//! Settings as `docs/configuration.md` and `.env.example` show them.

use super::{Group, families, setting::Shown};

/// Settings of one program.
pub struct Chapter {
    /// The program's name.
    pub program: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Its settings.
    pub groups: Vec<Group>,
}

const INTRODUCTION: &str = "\
<!-- Made by `standalone configuration-doc` from the settings' declarations. Don't edit. -->

# Configuration

Every setting, with its default. Values come from, the later above the earlier:

1. the default;
2. the file that `CONFIG_FILE` names, in TOML. A setting has its name there, in small letters if one likes, and may be split \
into tables at any `_`: `rate_limit_auth = \"off\"` is the same as `[rate_limit]` with `auth = \"off\"`. Lists are lists;
3. the environment. Lists have commas. An empty value counts as unset.

A program does not start, and says why in one sentence, if a setting is missing or can't be read, if settings contradict each \
other, if the file holds a name that isn't a setting of this program (so each program has a file of its own), or if a variable of the environment is almost the name of one, or begins as \
settings of this program do that nobody else sets: {families}. Values are never shown: a secret may stand in the wrong place. Times have a unit: `500ms`, `30s`, `5m`, `1h`.
";

/// `docs/configuration.md`.
#[must_use]
pub fn markdown(chapters: &[Chapter]) -> String {
    let families: Vec<_> = families::prefixes().map(|prefix| format!("`{prefix}`")).collect();
    let mut text = INTRODUCTION.replace("{families}", &families.join(", "));
    for chapter in chapters {
        text.push_str(&format!("\n## {}\n\n{}\n", chapter.program, chapter.about));
        for group in &chapter.groups {
            text.push_str(&format!("\n### {}\n\n", group.title()));
            if !group.text().is_empty() {
                text.push_str(&format!("{}\n\n", group.text()));
            }
            text.push_str("| setting | default | meaning |\n|---|---|---|\n");
            for setting in group.settings {
                let default = match setting.default {
                    Shown::Required => "**must be set**".to_owned(),
                    Shown::Unset => "–".to_owned(),
                    Shown::Text("") => "(empty)".to_owned(),
                    Shown::Text(text) => format!("`{text}`"),
                    Shown::Words(words) => words.to_owned(),
                };
                let secret = if setting.secret { " Secret." } else { "" };
                let about = format!("{}{secret} ({})", sentence(setting.about), setting.expected).replace('|', "\\|");
                text.push_str(&format!("| `{}` | {} | {about} |\n", setting.name, default.replace('|', "\\|")));
            }
        }
    }
    text
}

/// `.env.example`.
#[must_use]
pub fn env_example(chapters: &[Chapter]) -> String {
    let mut text = String::from(
        "# Every setting of the programs. Made by `standalone env-example`; docs/configuration.md explains more.\n\
         # An empty value counts as unset. `standalone` (make run) needs none of them.\n\n\
         # A file in TOML with settings; the environment stands above it.\nCONFIG_FILE=\n",
    );
    for chapter in chapters {
        text.push_str(&format!("\n# ── {} {}\n", chapter.program, "─".repeat(100 - chapter.program.len())));
        for setting in chapter.groups.iter().flat_map(|group| group.settings) {
            if text.contains(&format!("\n{}=", setting.name)) {
                // Of two programs.
                continue;
            }
            for line in wrapped(&sentence(setting.about)) {
                text.push_str(&format!("# {line}\n"));
            }
            match setting.default {
                Shown::Required => text.push_str(&format!("# Must be set: {}.\n", setting.expected)),
                Shown::Words(words) => text.push_str(&format!("# Default: {words}.\n")),
                Shown::Unset | Shown::Text(_) => {}
            }
            let value = if let Shown::Text(text) = setting.default { text } else { "" };
            text.push_str(&format!("{}={value}\n", setting.name));
        }
    }
    text
}

/// What a declaration says, on one line.
fn sentence(about: &str) -> String {
    about.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + word.len() < 118 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
