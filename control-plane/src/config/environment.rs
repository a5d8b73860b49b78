//! Environment variables, and the sentence for one that can't be used.

use std::{collections::HashMap, str::FromStr};

use secrecy::SecretString;

/// A setting that is missing or can't be read. Never holds the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} must be set to {expected}")]
pub struct ConfigError {
    /// The variable.
    pub variable: &'static str,
    /// What it must be.
    pub expected: &'static str,
}

/// The variables of a process. An empty one counts as unset. Can't be printed: some of them are secrets.
pub struct Environment(HashMap<String, String>);

impl Environment {
    /// Those of this process; one whose value isn't UTF-8 counts as unset.
    #[must_use]
    pub fn of_process() -> Self {
        Self::new(
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    /// Those given.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(variables.into_iter().filter(|(_, value)| !value.trim().is_empty()).collect())
    }

    /// A variable's text, without white space around it.
    #[must_use]
    pub fn text(&self, variable: &str) -> Option<&str> {
        self.0.get(variable).map(|value| value.trim())
    }

    /// A variable as something else.
    ///
    /// # Errors
    /// [`ConfigError`] if it is set and can't be read.
    pub fn parsed<T: FromStr>(&self, variable: &'static str, expected: &'static str) -> Result<Option<T>, ConfigError> {
        self.text(variable).map(|text| text.parse().map_err(|_| ConfigError { variable, expected })).transpose()
    }

    /// A list with commas.
    ///
    /// # Errors
    /// [`ConfigError`] if it is set and one item can't be read.
    pub fn list<T: FromStr>(
        &self,
        variable: &'static str,
        expected: &'static str,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        self.text(variable)
            .map(|text| {
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| item.parse().map_err(|_| ConfigError { variable, expected }))
                    .collect()
            })
            .transpose()
    }

    /// A variable that must be there and is a secret.
    ///
    /// # Errors
    /// [`ConfigError`] if it isn't set.
    pub fn secret(&self, variable: &'static str, expected: &'static str) -> Result<SecretString, ConfigError> {
        self.text(variable).map(SecretString::from).ok_or(ConfigError { variable, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(changes: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let mut variables = HashMap::from([
            ("DATABASE_URL", "sqlite://a.db"),
            ("MASTER_KEY", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="),
            ("WORKER_JOIN_TOKEN", "sixteen-or-more-characters"),
        ]);
        variables.extend(changes.iter().copied());
        Config::from_env(&Environment::new(variables.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned()))))
    }

    #[test]
    fn the_defaults_listen_on_loopback_only() {
        let config = read(&[]).unwrap();
        assert!(config.http.listen.ip().is_loopback());
        assert!(config.internal.listen.ip().is_loopback());
        assert!(config.outbound.allow_cidrs.is_empty());
    }

    #[test]
    fn an_empty_value_counts_as_unset() {
        assert_eq!(read(&[("LISTEN", " "), ("PORT", "9090")]).unwrap().http.listen.to_string(), "0.0.0.0:9090");
        assert_eq!(read(&[("MASTER_KEY", "")]).unwrap_err().variable, "MASTER_KEY");
    }

    #[test]
    fn with_mail_an_address_has_to_be_verified_first_unless_said_otherwise() {
        assert!(!read(&[]).unwrap().auth.verify_email_first);
        assert_eq!(read(&[("SMTP_URL", "smtp://localhost:25")]).unwrap_err().variable, "MAIL_FROM");
        let mail = [("SMTP_URL", "smtp://localhost:25"), ("MAIL_FROM", "a@example.com")];
        assert!(read(&mail).unwrap().auth.verify_email_first);
        let [url, from] = mail;
        assert!(!read(&[url, from, ("EMAIL_VERIFICATION", "optional")]).unwrap().auth.verify_email_first);
    }

    #[test]
    fn a_bad_value_is_told_by_its_variable_and_never_shown() {
        for (variable, value) in [
            ("LISTEN", "sentinel"),
            ("DATABASE_URL", "mysql://user:sentinel@host"),
            ("MASTER_KEY", "sentinel"),
            ("WORKER_JOIN_TOKEN", "sentinel"),
            ("WORKER_ENDPOINT_CIDRS", "10.0.0.0/8, sentinel"),
            ("OUTBOUND_ALLOW_PORTS", "80, sentinel"),
            ("BODY_LIMIT_BYTES", "-1"),
            ("DATABASE_POOL_SIZE", "1"),
            ("TRUSTED_PROXIES", "sentinel"),
            ("RATE_LIMIT_AUTH", "sentinel"),
            ("EMAIL_VERIFICATION", "sentinel"),
            ("SMTP_URL", "http://user:sentinel@host"),
            ("MAIL_FROM", "sentinel"),
            ("PUBLIC_URL", "ftp://sentinel"),
            ("RATE_LIMIT_KEY", "sentinel"),
            ("RATE_LIMIT_TENANT", "0:1"),
            ("RATE_LIMIT_ADDRESS", "1:2:sentinel"),
            ("REDIS_URL", "http://user:sentinel@host"),
        ] {
            let error = read(&[(variable, value)]).unwrap_err();
            assert_eq!(error.variable, variable);
            let told = format!("{error} {error:?}");
            assert!(told.contains(variable) && !told.contains("sentinel"), "{told}");
        }
    }
}
