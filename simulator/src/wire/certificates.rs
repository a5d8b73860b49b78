//! The Noise certificate chain: a root of the simulator's own, one intermediate, one leaf for the server's static key.
//!
//! The layout and the checks that clients make are those of `HandshakeUtils::verify_server_cert` in wacore-noise 0.7.0:
//! intermediate issued by serial 0 (the root) and signed by the root's key with XEdDSA; the leaf's issuer serial is the
//! intermediate's serial, its key is the server's static key, and it is signed by the intermediate. whatsapp-rust pins
//! WhatsApp's root as a constant, so it must be built to skip the signatures; a client that can be given another root
//! (Baileys) verifies the whole chain.

use std::sync::{Arc, PoisonError, RwLock};

use wacore_libsignal::protocol::{CurveError, KeyPair};
use waproto::buffa::{Message as _, MessageField};
use waproto::whatsapp::{CertChain, cert_chain::NoiseCertificate, cert_chain::noise_certificate::Details};

const INTERMEDIATE_SERIAL: u32 = 1;
const LEAF_SERIAL: u32 = 2;
/// Clients refuse to resume with a chain outside its validity; a year each way outlives any run.
const VALIDITY_SECONDS: u64 = 365 * 24 * 3600;

/// How many former static keys are recognised, so that clients that resume with one are led to the new one.
const FORMER_KEYS: usize = 8;

/// The root, and the server's static Noise key with the chain that vouches for it.
pub(crate) struct CertificateAuthority {
    root_public: [u8; 32],
    intermediate: KeyPair,
    intermediate_certificate: NoiseCertificate,
    identity: RwLock<Arc<ServerIdentity>>,
}

/// The server's static key, the chain that vouches for it, and the keys it had before.
pub(crate) struct ServerIdentity {
    server_static: KeyPair,
    chain: Vec<u8>,
    former: Vec<KeyPair>,
}

impl CertificateAuthority {
    /// Makes a fresh root, intermediate and server key, valid for a year around `now` (unix seconds).
    pub(crate) fn generate(now: u64) -> Result<Self, CurveError> {
        let mut rng = rand::rng();
        let root = KeyPair::generate(&mut rng);
        let intermediate = KeyPair::generate(&mut rng);
        let intermediate_certificate = issue(now, INTERMEDIATE_SERIAL, 0, &intermediate, &root)?;
        let identity = ServerIdentity::new(now, &intermediate, &intermediate_certificate, Vec::new())?;
        let mut root_public = [0; 32];
        root_public.copy_from_slice(root.public_key.public_key_bytes());
        Ok(Self { root_public, intermediate, intermediate_certificate, identity: RwLock::new(Arc::new(identity)) })
    }

    /// Gives the server another static key.
    pub(crate) fn rotate(&self) -> Result<(), CurveError> {
        let mut held = self.identity.write().unwrap_or_else(PoisonError::into_inner);
        let mut former = held.former.clone();
        former.insert(0, held.server_static.clone());
        former.truncate(FORMER_KEYS);
        let (signer, certificate) = (&self.intermediate, &self.intermediate_certificate);
        *held = Arc::new(ServerIdentity::new(crate::unix_seconds(), signer, certificate, former)?);
        Ok(())
    }

    /// The root's public key, for clients that can be told whom to trust.
    pub(crate) fn root_public(&self) -> &[u8; 32] {
        &self.root_public
    }

    /// What the server shows now.
    pub(crate) fn identity(&self) -> Arc<ServerIdentity> {
        Arc::clone(&self.identity.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ServerIdentity {
    fn new(
        now: u64,
        signer: &KeyPair,
        intermediate: &NoiseCertificate,
        former: Vec<KeyPair>,
    ) -> Result<Self, CurveError> {
        let server_static = KeyPair::generate(&mut rand::rng());
        let leaf = issue(now, LEAF_SERIAL, INTERMEDIATE_SERIAL, &server_static, signer)?;
        let chain =
            CertChain { intermediate: MessageField::some(intermediate.clone()), leaf: MessageField::some(leaf) }
                .encode_to_vec();
        Ok(Self { server_static, chain, former })
    }

    pub(crate) fn server_static(&self) -> &KeyPair {
        &self.server_static
    }

    /// The encoded `CertChain` that goes, encrypted, into every server hello.
    pub(crate) fn chain(&self) -> &[u8] {
        &self.chain
    }

    /// The keys that the server had before, the latest first.
    pub(crate) fn former(&self) -> &[KeyPair] {
        &self.former
    }
}

fn issue(
    now: u64,
    serial: u32,
    issuer_serial: u32,
    key: &KeyPair,
    signer: &KeyPair,
) -> Result<NoiseCertificate, CurveError> {
    let details = Details {
        serial: Some(serial),
        issuer_serial: Some(issuer_serial),
        key: Some(key.public_key.public_key_bytes().to_vec()),
        not_before: Some(now.saturating_sub(VALIDITY_SECONDS)),
        not_after: Some(now + VALIDITY_SECONDS),
    }
    .encode_to_vec();
    let signature = signer.calculate_signature(&details, &mut rand::rng())?;
    Ok(NoiseCertificate { details: Some(details), signature: Some(signature.to_vec()) })
}
