//! Values, one layer above the other.

use std::{
    collections::HashMap,
    ffi::OsString,
    fmt,
    fs::File,
    io::{self, Read as _},
};

use super::{ConfigError, Group, Origin, Read, families};

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Preset by the program that embeds another.
    Program,
    /// The file that `CONFIG_FILE` names.
    File,
    /// The environment.
    Environment,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Program => "the program",
            Self::File => "the file that CONFIG_FILE names",
            Self::Environment => "the environment",
        })
    }
}

/// What was set, by name. Can't be printed: some of it is secret.
#[derive(Default)]
pub struct Values(HashMap<String, (String, Source)>);

/// The setting that names the file.
const CONFIG_FILE: &str = "CONFIG_FILE";
/// The largest file that is read, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

impl Values {
    /// What is set in the environment and in the file that it names, for a program that knows these settings.
    ///
    /// # Errors
    /// [`ConfigError`] if the file can't be read, or for a name that isn't a setting.
    pub fn of_process(groups: &[Group]) -> Result<Self, ConfigError> {
        Self::layered(readable(std::env::vars_os(), groups)?, groups)
    }

    /// As [`of_process`](Self::of_process), of another environment.
    ///
    /// # Errors
    /// As there.
    pub fn layered(
        environment: impl IntoIterator<Item = (String, String)>,
        groups: &[Group],
    ) -> Result<Self, ConfigError> {
        let environment = Self::new(environment);
        // In one order, so that two mistakes are told one after the other and not by turns.
        let mut names: Vec<_> = environment.0.iter().filter(|(name, _)| !known(groups, name)).collect();
        names.sort_unstable();
        for (name, (text, _)) in names {
            if of_a_service(name, text) {
                continue;
            }
            let family = families::of_ours(groups, name).or_else(|| of_a_file(groups, name));
            let meant = almost(groups, name);
            if meant.is_some() || family.is_some() {
                return Err(ConfigError::Unknown { name: name.clone(), place: Source::Environment, meant, family });
            }
        }
        let mut values = match environment.text(CONFIG_FILE) {
            Some(path) => Self::of_file(path, groups)?,
            None => Self::default(),
        };
        values.0.extend(environment.0);
        Ok(values)
    }

    /// Those given, as if they stood in the environment.
    pub fn new(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(
            environment
                .into_iter()
                .filter(|(_, text)| !text.trim().is_empty())
                .map(|(name, text)| (name, (text.trim().to_owned(), Source::Environment)))
                .collect(),
        )
    }

    /// Puts presets of a program below everything that was set.
    #[must_use]
    pub fn with_presets(mut self, presets: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        for (name, text) in presets {
            self.0.entry(name.to_owned()).or_insert((text, Source::Program));
        }
        self
    }

    fn of_file(path: &str, groups: &[Group]) -> Result<Self, ConfigError> {
        let failed = |why: &str| ConfigError::File(format!("{path} {why}"));
        let unread = |error: io::Error| failed(&format!("can't be read ({})", error.kind()));
        let mut text = String::new();
        // What isn't a file on a disk says nothing true of its size.
        File::open(path).map_err(unread)?.take(LARGEST_FILE + 1).read_to_string(&mut text).map_err(unread)?;
        if text.len() as u64 > LARGEST_FILE {
            return Err(failed("is larger than a mebibyte"));
        }
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            // Its own words show the line, which may hold a secret.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            failed(&format!("is not TOML: see line {}", before.matches('\n').count() + 1))
        })?;
        let mut found = HashMap::new();
        flatten("", table, groups, &mut found)?;
        Ok(Self(found))
    }

    /// A setting's text and where it stands.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<(&str, Source)> {
        self.0.get(name).map(|(text, source)| (text.as_str(), *source))
    }

    /// A setting's text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.find(name).map(|(text, _)| text)
    }

    /// A setting, read; [`settings!`](crate::settings) calls this.
    ///
    /// # Errors
    /// [`ConfigError`] if it is missing or can't be read.
    pub fn get<T: Read>(
        &self,
        variable: &'static str,
        origin: Origin<T>,
        expected: &'static str,
        read: fn(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let unusable = ConfigError::Value { variable, expected };
        match (self.text(variable), origin) {
            (Some(text), _) | (None, Origin::Default(text)) => read(text).ok_or(unusable),
            (None, Origin::Required) => Err(unusable),
            (None, Origin::Optional) => T::unset().ok_or(unusable),
            (None, Origin::Derived(_, derive)) => derive(self),
        }
    }

    /// Stops where two settings are set that can't both be meant.
    ///
    /// # Errors
    /// [`ConfigError::Contradiction`] if `one` is set and `needs` isn't.
    pub fn needs(&self, one: &str, needs: &str) -> Result<(), ConfigError> {
        if self.text(one).is_some() && self.text(needs).is_none() {
            return Err(ConfigError::Contradiction(format!("{one} is set, which needs {needs}")));
        }
        Ok(())
    }
}

/// The variables that are text. What is set to something else is no setting that isn't set: it is a mistake.
fn readable(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    groups: &[Group],
) -> Result<Vec<(String, String)>, ConfigError> {
    let named = environment.into_iter().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    named
        .filter_map(|(name, value)| match value.into_string() {
            Ok(text) => Some(Ok((name, text))),
            Err(_) if known(groups, &name) => {
                Some(Err(ConfigError::Contradiction(format!("{name} is set to something that is no text in UTF-8"))))
            }
            Err(_) => None,
        })
        .collect()
}

pub(super) fn known(groups: &[Group], name: &str) -> bool {
    name == CONFIG_FILE || groups.iter().flat_map(|group| group.settings).any(|setting| setting.name == name)
}

/// Whether Kubernetes or Docker may have put it there, for a service or container beside ours that is named `worker`, say:
/// `WORKER_SERVICE_HOST`, `WORKER_PORT=tcp://10.0.0.1:80`, `WORKER_PORT_80_TCP`; `WORKER_NAME=/ours/worker` and `WORKER_ENV_…` of a link.
fn of_a_service(name: &str, text: &str) -> bool {
    let link = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    ["_PORT_", "_SERVICE_", "_ENV_"].iter().any(|part| name.contains(part))
        || (name.ends_with("_PORT") && link)
        || (name.ends_with("_NAME") && text.starts_with('/'))
}

/// What to do instead of `DATABASE_URL_FILE`, which other programs read a secret from.
fn of_a_file(groups: &[Group], name: &str) -> Option<String> {
    let setting = name.strip_suffix("_FILE").filter(|setting| known(groups, setting))?;
    Some(format!("{setting} can stand in the file that {CONFIG_FILE} names"))
}

/// The setting whose name this is, but for a slip. Short names have too many neighbours.
fn almost(groups: &[Group], name: &str) -> Option<&'static str> {
    groups.iter().flat_map(|group| group.settings).map(|setting| setting.name).find(|setting| {
        let slips = match setting.len() {
            0..8 => 0,
            8..10 => 1,
            _ => 2,
        };
        strsim::osa_distance(setting, name) <= slips
    })
}

fn flatten(
    prefix: &str,
    table: toml::Table,
    groups: &[Group],
    found: &mut HashMap<String, (String, Source)>,
) -> Result<(), ConfigError> {
    for (key, value) in table {
        let name = format!("{prefix}{}", key.to_ascii_uppercase());
        if let toml::Value::Table(table) = value {
            flatten(&format!("{name}_"), table, groups, found)?;
            continue;
        }
        if !known(groups, &name) || name == CONFIG_FILE {
            let (meant, family) = (almost(groups, &name), families::of_ours(groups, &name));
            return Err(ConfigError::Unknown { name, place: Source::File, meant, family });
        }
        let text = scalar(&value).ok_or_else(|| {
            ConfigError::File(format!("{name} must be a text, a number, true, false, or a list of texts and numbers"))
        })?;
        if text.trim().is_empty() {
            continue;
        }
        if found.insert(name.clone(), (text.trim().to_owned(), Source::File)).is_some() {
            return Err(ConfigError::Contradiction(format!("{name} is set twice in the file that CONFIG_FILE names")));
        }
    }
    Ok(())
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(on) => Some(on.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<String>> =
                items.iter().map(|item| scalar(item).filter(|text| !item.is_array() && !text.contains(','))).collect();
            items.map(|items| items.join(","))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use secrecy::{ExposeSecret, SecretString};

    use super::*;

    crate::settings! {
        /// Title
        ///
        /// For tests.
        pub struct Sample {
            /// A list.
            SAMPLE_NETWORKS networks: Vec<u16> = Origin::Default("1,2"), "numbers";
            /// A secret.
            SAMPLE_SECRET secret: Option<SecretString> = Origin::Optional, "a secret";
            /// A time.
            SAMPLE_PATIENCE patience: Duration = Origin::Default("30s"), "a time from 1s",
                |text| Read::read(text).filter(|time| *time >= Duration::from_secs(1));
            /// Has a neighbour that Kubernetes makes.
            SAMPLE_POOL pool: Option<String> = Origin::Optional, "a name";
            /// Follows the list.
            SAMPLE_COUNT count: usize = Origin::Derived("how many", |values| Ok(Sample::read_list(values)?.len())), "a number";
        }
    }

    impl Sample {
        fn read_list(values: &Values) -> Result<Vec<u16>, ConfigError> {
            values.get("SAMPLE_NETWORKS", Origin::Default("1,2"), "numbers", Read::read)
        }
    }

    fn layered(file: &str, environment: &[(&str, &str)]) -> Result<Sample, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("switchboard.toml");
        fs::write(&path, file).unwrap();
        let own = [(CONFIG_FILE.to_owned(), path.display().to_string())];
        let given = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        Sample::read(&Values::layered(own.into_iter().chain(given), &[Sample::GROUP])?)
    }

    #[test]
    fn the_environment_stands_above_the_file_and_the_file_above_the_defaults() {
        let sample = layered("", &[]).unwrap();
        assert_eq!((sample.networks, sample.count, sample.patience), (vec![1, 2], 2, Duration::from_secs(30)));
        assert_eq!(sample.pool, None);
        let sample = layered("[sample]\nnetworks = [3, 4, 5]\nSECRET = 'x'\npatience = 90", &[]).unwrap();
        assert_eq!((sample.networks, sample.count, sample.patience), (vec![3, 4, 5], 3, Duration::from_secs(90)));
        assert_eq!(sample.secret.unwrap().expose_secret(), "x");
        let sample = layered("sample_networks = '3'", &[("SAMPLE_NETWORKS", "7,8"), ("SAMPLE_COUNT", " 9 ")]).unwrap();
        assert_eq!((sample.networks, sample.count), (vec![7, 8], 9));
    }

    #[test]
    fn presets_stand_below_what_was_set() {
        let values =
            Values::new([("A".to_owned(), "set".to_owned())]).with_presets([("A", "x".into()), ("B", "y".into())]);
        assert_eq!(values.find("A"), Some(("set", Source::Environment)));
        assert_eq!(values.find("B"), Some(("y", Source::Program)));
    }

    #[test]
    fn what_is_not_a_setting_stops_the_start() {
        let told = |file, environment: &[_]| layered(file, environment).unwrap_err().to_string();
        assert!(told("sample_netwroks = [1]", &[]).contains("did you mean SAMPLE_NETWORKS"));
        assert!(told("something = 1", &[]).starts_with("SOMETHING in the file"));
        assert!(told("", &[("SAMPLE_SECERT", "x")]).contains("did you mean SAMPLE_SECRET"));
        assert!(told("", &[("SAMPLE_POOL_FILE", "x")]).contains("SAMPLE_POOL can stand in the file"));
        assert!(told("sample_count = 1\n[sample]\ncount = 2", &[]).contains("set twice"));
        layered("", &[("SAMPLE", "x"), ("PATH", "x"), ("OTHER_SECRET", "x"), ("SAMPLE_PORT", "tcp://10.0.0.1:80")])
            .unwrap();
    }

    #[test]
    fn what_can_t_be_read_is_told_without_its_value() {
        for (file, environment) in [
            ("sample_networks = ['sentinel']", &[][..]),
            ("sample_networks = [['sentinel']]", &[]),
            ("sample_secret = sentinel", &[]),
            ("sample_secret = 1979-05-27", &[]),
            ("", &[("SAMPLE_PATIENCE", "10ms")]),
            ("", &[("SAMPLE_COUNT", "sentinel")]),
            ("", &[("CONFIG_FILE", "/nowhere.toml")]),
            // It has no size, and no end.
            ("", &[("CONFIG_FILE", "/dev/zero")]),
        ] {
            let error = layered(file, environment).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("sentinel"), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_setting_that_is_no_text_stops_the_start_with_its_name_and_others_don_t() {
        use std::os::unix::ffi::OsStringExt;
        let latin1 = || OsString::from_vec(b"sentinel\xe9".to_vec());
        let told = readable([("SAMPLE_POOL".into(), latin1())], &[Sample::GROUP]).unwrap_err().to_string();
        assert!(told.contains("SAMPLE_POOL") && !told.contains("sentinel"), "{told}");
        let others = [("SOMETHING_ELSE".into(), latin1()), ("SAMPLE_POOL".into(), "a".into()), (latin1(), "b".into())];
        assert_eq!(readable(others, &[Sample::GROUP]).unwrap(), [("SAMPLE_POOL".to_owned(), "a".to_owned())]);
    }
}
