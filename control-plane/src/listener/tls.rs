//! TLS of a listener: its certificate, and whose clients may connect.
//!
//! The files are read at the start, on SIGHUP, and when one of them has changed. What can't be used then is told in the log,
//! and the old certificate stays; so it does if the new one has expired or doesn't hold yet. At the start such a one is served, with a
//! warning: there is no better. Connections that are open stay as they are.

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
        CertificateError, Error, RootCertStore, ServerConfig,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
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

    /// What the files say, and what is wrong with the certificate's time.
    fn read(&self) -> anyhow::Result<(ServerConfig, Option<&'static str>)> {
        let prefix = self.prefix;
        let certificates = |text: &[u8]| -> Option<Vec<CertificateDer<'static>>> {
            let found: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().ok()?;
            Some(found).filter(|found| !found.is_empty())
        };
        let chain = certificates(&self.text("TLS_CERT", &self.cert)?)
            .with_context(|| format!("{prefix}TLS_CERT must be the path of a certificate chain in PEM"))?;
        let key = PrivateKeyDer::from_pem_slice(&self.text("TLS_KEY", &self.key)?)
            .map_err(|_| anyhow::anyhow!("{prefix}TLS_KEY must be the path of a private key in PEM"))?;
        let out_of_time = chain.first().and_then(out_of_time);
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
        Ok((config, out_of_time))
    }

    /// What a setting's file holds.
    fn text(&self, setting: &str, path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
        fs::read(path).map(Zeroizing::new).map_err(|error| {
            anyhow::anyhow!("{}{setting}: {} can't be read ({})", self.prefix, path.display(), error.kind())
        })
    }

    /// When each was last changed. A file that isn't there just now (it is being replaced) has no time.
    fn changed(&self) -> Times {
        [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .map(|path| fs::metadata(path).and_then(|file| file.modified()).ok())
            .collect()
    }
}

/// What is wrong with the time of a certificate. All else is for those to judge who connect.
fn out_of_time(certificate: &CertificateDer<'static>) -> Option<&'static str> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).ok()?;
    let verifier = WebPkiServerVerifier::builder(Arc::new(roots)).build().ok()?;
    let name = ServerName::try_from("localhost").ok()?;
    // Its time is looked at before its name and who signed it.
    match verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now()) {
        Err(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            Some("it has expired")
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. })) => {
            Some("it doesn't hold yet")
        }
        _ => None,
    }
}

/// When the files were last changed.
type Times = Vec<Option<SystemTime>>;

/// What was made of the files.
struct Seen {
    taken: Times,
    /// When it was last told that they can't be used: once for each change.
    told: Option<Times>,
}

/// The TLS of one listener, as its files last said.
pub struct Tls {
    files: TlsFiles,
    seen: Mutex<Seen>,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// With a sentence that names the setting, if one can't be used.
    pub fn load(files: TlsFiles) -> anyhow::Result<Self> {
        let taken = files.changed();
        let (config, out_of_time) = files.read()?;
        if let Some(error) = out_of_time {
            tracing::warn!(listener = files.listener(), error, "clients will refuse the TLS certificate");
        }
        let seen = Mutex::new(Seen { taken, told: None });
        Ok(Self { files, seen, config: RwLock::new(Arc::new(config)) })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Reads the files again if one has changed, or in any case.
    fn reload(&self, in_any_case: bool) {
        let changed = self.files.changed();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.taken == changed && !in_any_case {
            return;
        }
        let read = self.files.read().and_then(|(config, out_of_time)| match out_of_time {
            Some(error) => Err(anyhow::anyhow!("{error}")),
            None => Ok(config),
        });
        match read {
            Ok(config) => {
                *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                *seen = Seen { taken: changed, told: None };
                tracing::info!(listener = self.files.listener(), "the TLS certificate was read again");
            }
            // Half of a pair may be there already: it is tried again at the next look.
            Err(error) => {
                if seen.told.as_ref() != Some(&changed) || in_any_case {
                    let listener = self.files.listener();
                    tracing::warn!(listener, error = %error, "the TLS certificate stays as it was");
                }
                seen.told = Some(changed);
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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    /// Puts a certificate there that holds in these years, and its key.
    fn put(files: &TlsFiles, from: i32, until: i32) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_certificate_that_does_not_hold_now_takes_no_other_s_place() {
        shared::tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let files = TlsFiles { prefix: "", cert: file("cert.pem"), key: file("key.pem"), client_ca: None };
        put(&files, 2000, 2001);
        assert_eq!(files.read().unwrap().1, Some("it has expired"));
        let tls = Tls::load(files.clone()).expect("at the start there is no better one");
        let served = || Arc::clone(&tls.config.read().unwrap());
        let reloaded = |from, until| {
            let before = served();
            put(&files, from, until);
            tls.reload(true);
            !Arc::ptr_eq(&before, &served())
        };
        assert!(reloaded(2000, 4000), "one that holds is taken");
        assert!(!reloaded(2000, 2001), "one that has expired");
        assert!(!reloaded(3999, 4000), "one of a time to come");
        assert_eq!(files.read().unwrap().1, Some("it doesn't hold yet"));
        assert!(reloaded(2000, 4000));
    }
}
