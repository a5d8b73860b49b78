//! Settings about object storage.

use secrecy::SecretString;
use shared::config::Origin;
use url::Url;

use super::{ConfigError, Values};

const EXPECTED: &str = "a URL such as file:///var/lib/switchboard/objects or s3://bucket/folder";
const ON_OFF: &str = "true or false";

shared::settings! {
    /// Object storage
    ///
    /// Where files lie that are too large for the database, such as exports. The settings with `AWS_` are for `s3://`.
    pub struct ObjectsConfig {
        /// `file:///folder` or `s3://bucket/folder`. Replicas need one that they share.
        OBJECT_STORE_URL url: Url = Origin::Derived("the folder `objects` where the process runs", here), EXPECTED, usable;
        /// Who calls S3.
        AWS_ACCESS_KEY_ID access_key_id: Option<SecretString> = Origin::Optional, "an access key";
        /// Its secret.
        AWS_SECRET_ACCESS_KEY secret_access_key: Option<SecretString> = Origin::Optional, "the access key's secret";
        /// For credentials that last for a while only.
        AWS_SESSION_TOKEN session_token: Option<SecretString> = Origin::Optional, "a session token";
        /// Where the bucket is.
        AWS_REGION region: Option<String> = Origin::Optional, "a region such as eu-central-1";
        /// The server, for MinIO and its like.
        AWS_ENDPOINT endpoint: Option<Url> = Origin::Optional, "a URL such as https://minio.example.com";
        /// Whether that server may be called without TLS.
        AWS_ALLOW_HTTP allow_http: bool = Origin::Default("false"), ON_OFF, flag;
        /// Whether the bucket is part of the server's name.
        AWS_VIRTUAL_HOSTED_STYLE_REQUEST virtual_hosted: bool = Origin::Default("false"), ON_OFF, flag;
    }
}

fn here(_: &Values) -> Result<Url, ConfigError> {
    std::env::current_dir()
        .ok()
        .and_then(|folder| Url::from_directory_path(folder.join("objects")).ok())
        .ok_or(ConfigError::Value { variable: "OBJECT_STORE_URL", expected: EXPECTED })
}

fn usable(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| match url.scheme() {
        "file" => url.to_file_path().is_ok(),
        "s3" => url.has_host(),
        _ => false,
    })
}

/// What contradicts each other.
pub(super) fn check(config: &ObjectsConfig) -> Result<(), ConfigError> {
    if config.endpoint.as_ref().is_some_and(|url| url.scheme() == "http") && !config.allow_http {
        return Err(ConfigError::Contradiction(
            "AWS_ENDPOINT begins with http://, which needs AWS_ALLOW_HTTP=true: nothing could be stored there".into(),
        ));
    }
    Ok(())
}

fn flag(text: &str) -> Option<bool> {
    text.parse().ok()
}
