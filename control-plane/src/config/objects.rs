//! Settings about object storage.

use secrecy::SecretString;
use url::Url;

use super::{ConfigError, Environment};

const EXPECTED: &str = "a URL such as file:///var/lib/switchboard/objects or s3://bucket/folder";

/// What of the environment an S3 store may be told by, under the names that its own tools know.
const S3_SETTINGS: [&str; 7] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT",
    "AWS_ALLOW_HTTP",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
];

/// Where files lie that are too large for the database.
#[derive(Debug, Clone)]
pub struct ObjectsConfig {
    /// `OBJECT_STORE_URL`: `file:///folder` or `s3://bucket/folder`, then with `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_REGION` and, for MinIO and its like, `AWS_ENDPOINT` (and `AWS_ALLOW_HTTP=true` if that has no TLS). Replicas need one
    /// that they share. Default: the folder `objects` where the process runs.
    pub url: Url,
    /// The settings of S3 that are there.
    pub s3: Vec<(&'static str, SecretString)>,
}

impl ObjectsConfig {
    pub(super) fn from_env(env: &Environment) -> Result<Self, ConfigError> {
        let unusable = || ConfigError { variable: "OBJECT_STORE_URL", expected: EXPECTED };
        let url: Url = match env.parsed("OBJECT_STORE_URL", EXPECTED)? {
            Some(url) => url,
            None => std::env::current_dir()
                .ok()
                .and_then(|folder| Url::from_directory_path(folder.join("objects")).ok())
                .ok_or_else(unusable)?,
        };
        let usable = match url.scheme() {
            "file" => url.to_file_path().is_ok(),
            "s3" => url.has_host(),
            _ => false,
        };
        if !usable {
            return Err(unusable());
        }
        let s3 = S3_SETTINGS.into_iter().filter_map(|name| Some((name, env.text(name)?.into()))).collect();
        Ok(Self { url, s3 })
    }
}
