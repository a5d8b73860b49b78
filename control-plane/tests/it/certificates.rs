//! Certificates of a test's own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use reqwest::{Certificate, Identity};
use tempfile::TempDir;

use crate::harness::PATIENCE;

/// A CA and what it signs, in a folder.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn sign(&self, name: &str, serial: u64, usage: ExtendedKeyUsagePurpose) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        // Else it has its authority's name, and OpenSSL takes it for one that signed itself.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(serial.into());
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        // As a tool does that replaces a certificate: whole files.
        for (suffix, text) in [("crt", certificate.pem()), ("key", key.serialize_pem())] {
            let new = self.file(&format!("{name}.{suffix}.new"));
            fs::write(&new, text).unwrap();
            fs::rename(new, self.file(&format!("{name}.{suffix}"))).unwrap();
        }
    }

    pub fn client(&self, with_certificate: Option<&str>) -> reqwest::Client {
        let read = |path: &Path| fs::read(path).unwrap();
        let ca = Certificate::from_pem(&read(&self.file("ca.pem"))).unwrap();
        let mut builder = reqwest::Client::builder()
            .tls_certs_only([ca])
            .no_proxy()
            .timeout(PATIENCE)
            .pool_max_idle_per_host(0)
            .tls_info(true);
        if let Some(name) = with_certificate {
            let mut pem = read(&self.file(&format!("{name}.crt")));
            pem.extend(read(&self.file(&format!("{name}.key"))));
            builder = builder.identity(Identity::from_pem(&pem).unwrap());
        }
        builder.build().unwrap()
    }
}
