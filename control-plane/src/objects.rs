//! Files that are too large for the database: in a local folder, or in S3 and its like. One URL chooses.
//!
//! **Owns** no table: whoever stores a file keeps its name in a row of its own, and deletes the file before the row.
//!
//! **Invariants.** A file appears whole or not at all. Every call has a deadline. Names are ours, never a caller's.

use std::{io, path::Path as FilePath, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::BoxStream};
use object_store::{
    BackoffConfig, ObjectStore, ObjectStoreExt, ObjectStoreScheme, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    buffered::BufWriter,
    local::LocalFileSystem,
    path::Path,
};
use secrecy::ExposeSecret;
use tokio::io::AsyncWriteExt;

use crate::config::ObjectsConfig;

/// How long storing a file may take.
const STORE_DEADLINE: Duration = Duration::from_secs(3600);
/// How long the store may take to begin answering, or to delete a file.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// How often a call of S3 is tried. What fails then is a job's to try again, which tells why.
const RETRIES: RetryConfig = RetryConfig {
    backoff: BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2. },
    max_retries: 4,
    retry_timeout: Duration::from_secs(30),
};

/// The store said no. Its words can hold names of buckets and keys of access, so only a word of ours is kept.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// There is no such file.
    #[error("the file is not there")]
    Missing,
    /// The store can't be reached, or took too long.
    #[error("the object store doesn't answer, or fails")]
    Unavailable,
    /// The store knows us, or doesn't, and says no.
    #[error("the object store refuses our credentials")]
    Refused,
    /// What the files are to lie in isn't there.
    #[error("the bucket of OBJECT_STORE_URL is not there")]
    NoBucket,
    /// The file at hand can't be read.
    #[error("a file can't be read")]
    File(#[from] io::Error),
    /// The settings don't fit together.
    #[error("OBJECT_STORE_URL can't be used with the settings of its store")]
    Settings,
}

impl From<object_store::Error> for ObjectError {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::Missing,
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => Self::Refused,
            _ => Self::Unavailable,
        }
    }
}

impl ObjectError {
    /// Why a file could not be stored. There is nothing there that could be missing but what it is to lie in.
    fn of_storing(error: io::Error) -> Self {
        match error.downcast::<object_store::Error>().map(Self::from) {
            Ok(Self::Missing) => Self::NoBucket,
            Ok(error) => error,
            Err(error) => Self::File(error),
        }
    }
}

/// A file that is being read.
pub struct Reading {
    /// How long it is, in bytes.
    pub bytes: u64,
    /// What it holds.
    pub content: BoxStream<'static, Result<bytes::Bytes, ObjectError>>,
}

/// The store.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    folder: Path,
}

impl Objects {
    /// Of the settings. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// [`ObjectError::Settings`].
    pub fn new(config: &ObjectsConfig) -> Result<Self, ObjectError> {
        let (scheme, folder) = ObjectStoreScheme::parse(&config.url).map_err(|_| ObjectError::Settings)?;
        let store: Arc<dyn ObjectStore> = match scheme {
            ObjectStoreScheme::Local => Arc::new(LocalFileSystem::new()),
            ObjectStoreScheme::AmazonS3 => {
                let mut builder = AmazonS3Builder::new().with_url(config.url.as_str());
                let secrets = [
                    (AmazonS3ConfigKey::AccessKeyId, &config.access_key_id),
                    (AmazonS3ConfigKey::SecretAccessKey, &config.secret_access_key),
                    (AmazonS3ConfigKey::Token, &config.session_token),
                ];
                for (key, value) in secrets {
                    if let Some(value) = value {
                        builder = builder.with_config(key, value.expose_secret());
                    }
                }
                if let Some(region) = &config.region {
                    builder = builder.with_region(region);
                }
                if let Some(endpoint) = &config.endpoint {
                    builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
                }
                builder =
                    builder.with_allow_http(config.allow_http).with_virtual_hosted_style_request(config.virtual_hosted);
                builder = builder.with_retry(RETRIES);
                Arc::new(builder.build().map_err(|_| ObjectError::Settings)?)
            }
            _ => return Err(ObjectError::Settings),
        };
        Ok(Self { store, folder })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.folder.clone(), |path, part| path.join(part))
    }

    /// Stores a file under a name, in place of one that is there, and says how long it is.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub async fn store(&self, name: &str, file: std::fs::File) -> Result<u64, ObjectError> {
        let copy = async {
            let mut from = tokio::fs::File::from_std(file);
            let mut to = BufWriter::new(Arc::clone(&self.store), self.path(name));
            match tokio::io::copy(&mut from, &mut to).await {
                Ok(bytes) => {
                    to.shutdown().await.map_err(ObjectError::of_storing)?;
                    Ok(bytes)
                }
                Err(error) => {
                    // What was begun is thrown away; if that fails too, the store does so in time.
                    if to.abort().await.is_err() {
                        tracing::warn!("the parts of a file that could not be stored were not thrown away");
                    }
                    Err(ObjectError::of_storing(error))
                }
            }
        };
        tokio::time::timeout(STORE_DEADLINE, copy).await.map_err(|_| ObjectError::Unavailable)?
    }

    /// Begins to read a file.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub async fn read(&self, name: &str) -> Result<Reading, ObjectError> {
        let path = self.path(name);
        let got = tokio::time::timeout(CALL_DEADLINE, self.store.get(&path)).await;
        let got = got.map_err(|_| ObjectError::Unavailable)??;
        let bytes = got.meta.size;
        Ok(Reading { bytes, content: got.into_stream().map(|part| part.map_err(ObjectError::from)).boxed() })
    }

    /// Deletes a file. One that isn't there is deleted already.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub async fn delete(&self, name: &str) -> Result<(), ObjectError> {
        let path = self.path(name);
        let done = tokio::time::timeout(CALL_DEADLINE, self.store.delete(&path)).await;
        match done.map_err(|_| ObjectError::Unavailable)?.map_err(ObjectError::from) {
            Ok(()) | Err(ObjectError::Missing) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A folder's URL, for tests and embedded defaults.
///
/// # Errors
/// [`ObjectError::Settings`] if the path isn't absolute.
pub fn folder_url(folder: &FilePath) -> Result<url::Url, ObjectError> {
    url::Url::from_directory_path(folder).map_err(|()| ObjectError::Settings)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;
    use crate::config::{ConfigError, Values};

    fn config(set: &[(&str, &str)]) -> Result<ObjectsConfig, ConfigError> {
        ObjectsConfig::read(&Values::new(set.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))))
    }

    fn in_folder(folder: &FilePath) -> Objects {
        let url = folder_url(folder).unwrap();
        Objects::new(&config(&[("OBJECT_STORE_URL", url.as_str())]).unwrap()).unwrap()
    }

    async fn content(reading: Reading) -> Vec<u8> {
        let parts: Vec<_> = reading.content.map(Result::unwrap).collect().await;
        parts.concat()
    }

    #[tokio::test]
    async fn a_file_is_stored_read_replaced_and_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let objects = in_folder(&folder.path().join("not there yet"));
        assert!(matches!(objects.read("exports/a.zip").await, Err(ObjectError::Missing)));
        // Longer than one part.
        for length in [30 << 20, 5] {
            let mut file = tempfile::tempfile().unwrap();
            let data: Vec<u8> = (0..length).map(|n: u32| (n % 251) as u8).collect();
            file.write_all(&data).unwrap();
            file.rewind().unwrap();
            assert_eq!(objects.store("exports/a.zip", file).await.unwrap(), u64::from(length));
            let reading = objects.read("exports/a.zip").await.unwrap();
            assert_eq!(reading.bytes, u64::from(length));
            assert!(content(reading).await == data);
        }
        for _ in 0..2 {
            objects.delete("exports/a.zip").await.unwrap();
        }
        assert!(matches!(objects.read("exports/a.zip").await, Err(ObjectError::Missing)));
    }

    #[tokio::test]
    async fn what_can_t_be_stored_says_why() {
        let blocked = tempfile::NamedTempFile::new().unwrap();
        let objects = in_folder(&blocked.path().join("below a file"));
        let told = objects.store("a.zip", tempfile::tempfile().unwrap()).await.unwrap_err();
        assert!(matches!(told, ObjectError::Unavailable), "{told}");
    }

    #[test]
    fn settings_that_make_no_store_are_refused_without_their_values() {
        for url in ["http://example.com/", "ftp://x/y", "memory:///"] {
            let error = config(&[("OBJECT_STORE_URL", url)]).unwrap_err().to_string();
            assert!(error.contains("OBJECT_STORE_URL") && !error.contains(url), "{error}");
        }
        let s3 = [
            ("OBJECT_STORE_URL", "s3://bucket/folder"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ENDPOINT", "http://127.0.0.1:9000"),
        ];
        let objects = Objects::new(&config(&s3).unwrap()).unwrap();
        assert_eq!(objects.path("exports/ten/exp.zip").as_ref(), "folder/exports/ten/exp.zip");
    }
}
