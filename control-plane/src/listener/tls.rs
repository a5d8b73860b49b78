//! TLS of a listener: its certificate, and whose clients may connect.
//!
//! The files are read at the start, on SIGHUP, and when one of them has changed. What can't be used then is told in the log,
//! and the old certificate stays. Connections that are open stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::config::{HttpConfig, InternalConfig};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(5);

/// The files of one listener, and what its settings are called.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    prefix: &'static str,
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Of the listener for tenants' programs, if it speaks TLS.
    #[must_use]
    pub fn public(http: &HttpConfig) -> Option<Self> {
        let (cert, key) = (http.tls_cert.clone()?, http.tls_key.clone()?);
        Some(Self { prefix: "", cert, key, client_ca: http.tls_client_ca.clone() })
    }

    /// Of the listener for workers, if it speaks TLS.
    #[must_use]
    pub fn internal(internal: &InternalConfig) -> Option<Self> {
        let (cert, key) = (internal.tls_cert.clone()?, internal.tls_key.clone()?);
        Some(Self { prefix: "INTERNAL_", cert, key, client_ca: internal.tls_client_ca.clone() })
    }

    /// The setting that says where.
    fn listener(&self) -> String {
        format!("{}LISTEN", self.prefix)
    }

    fn read(&self) -> anyhow::Result<ServerConfig> {
        let prefix = self.prefix;
        let certificates = |text: &[u8]| -> Option<Vec<CertificateDer<'static>>> {
            let found: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().ok()?;
            Some(found).filter(|found| !found.is_empty())
        };
        let chain = certificates(&self.text("TLS_CERT", &self.cert)?)
            .with_context(|| format!("{prefix}TLS_CERT must be the path of a certificate chain in PEM"))?;
        let key = PrivateKeyDer::from_pem_slice(&self.text("TLS_KEY", &self.key)?)
            .map_err(|_| anyhow::anyhow!("{prefix}TLS_KEY must be the path of a private key in PEM"))?;
        let builder = ServerConfig::builder();
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let unusable = || format!("{prefix}TLS_CLIENT_CA must be the path of CA certificates in PEM");
                let mut roots = RootCertStore::empty();
                for certificate in certificates(&self.text("TLS_CLIENT_CA", path)?).with_context(unusable)? {
                    roots.add(certificate).with_context(unusable)?;
                }
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().with_context(unusable)?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|_| anyhow::anyhow!("{prefix}TLS_KEY isn't the key of {prefix}TLS_CERT"))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// What a setting's file holds.
    fn text(&self, setting: &str, path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
        fs::read(path).map(Zeroizing::new).map_err(|error| {
            anyhow::anyhow!("{}{setting}: {} can't be read ({})", self.prefix, path.display(), error.kind())
        })
    }

    /// When each was last changed. A file that isn't there just now (it is being replaced) has no time.
    fn changed(&self) -> Vec<Option<SystemTime>> {
        [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .map(|path| fs::metadata(path).and_then(|file| file.modified()).ok())
            .collect()
    }
}

/// The TLS of one listener, as its files last said.
pub struct Tls {
    files: TlsFiles,
    seen: Mutex<Vec<Option<SystemTime>>>,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// With a sentence that names the setting, if one can't be used.
    pub fn load(files: TlsFiles) -> anyhow::Result<Self> {
        let seen = Mutex::new(files.changed());
        let config = RwLock::new(Arc::new(files.read()?));
        Ok(Self { files, seen, config })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Reads the files again if one has changed, or in any case.
    fn reload(&self, in_any_case: bool) {
        let changed = self.files.changed();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == changed && !in_any_case {
            return;
        }
        match self.files.read() {
            Ok(config) => {
                *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                *seen = changed;
                tracing::info!(listener = self.files.listener(), "the TLS certificate was read again");
            }
            // Half of a pair may be there already: it is tried again at the next look.
            Err(error) => {
                tracing::warn!(listener = self.files.listener(), error = %error, "the TLS certificate stays as it was");
            }
        }
    }

    /// Follows the files until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut hangups = signal(SignalKind::hangup()).ok();
        let mut looks = tokio::time::interval(LOOK);
        loop {
            let in_any_case = tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => false,
                Some(()) = async { hangups.as_mut()?.recv().await } => true,
            };
            self.reload(in_any_case);
        }
    }
}
