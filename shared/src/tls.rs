//! One TLS provider for the process.
//!
//! Two are linked (ring by the WhatsApp transport and the database driver, aws-lc-rs by everything else), and rustls
//! panics if nobody chooses.

/// Chooses aws-lc-rs. The first thing in every `main` and in every test that opens a connection; doing it again is
/// harmless.
pub fn install_provider() {
    // An error only says that a provider was installed before, which is what we want.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}
