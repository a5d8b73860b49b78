//! The Noise certificate chain: a root of the simulator's own, one intermediate, one leaf for the server's static key.
//!
//! The layout and the checks that clients make are those of `HandshakeUtils::verify_server_cert` in wacore-noise 0.7.0:
//! intermediate issued by serial 0 (the root) and signed by the root's key with XEdDSA; the leaf's issuer serial is the
//! intermediate's serial, its key is the server's static key, and it is signed by the intermediate. whatsapp-rust pins
//! WhatsApp's root as a constant, so it must be built to skip the signatures; a client that can be given another root
//! (Baileys) verifies the whole chain.

use wacore_libsignal::protocol::{CurveError, KeyPair};
use waproto::buffa::{Message as _, MessageField};
use waproto::whatsapp::{CertChain, cert_chain::NoiseCertificate, cert_chain::noise_certificate::Details};

const INTERMEDIATE_SERIAL: u32 = 1;
const LEAF_SERIAL: u32 = 2;
/// Clients refuse to resume with a chain outside its validity; a year each way outlives any run.
const VALIDITY_SECONDS: u64 = 365 * 24 * 3600;

/// The server's static Noise key with the chain that vouches for it.
pub(crate) struct CertificateAuthority {
    root_public: [u8; 32],
    server_static: KeyPair,
    chain: Vec<u8>,
}

impl CertificateAuthority {
    /// Makes a fresh root, intermediate and server key, valid for a year around `now` (unix seconds).
    pub(crate) fn generate(now: u64) -> Result<Self, CurveError> {
        let mut rng = rand::rng();
        let root = KeyPair::generate(&mut rng);
        let intermediate = KeyPair::generate(&mut rng);
        let server_static = KeyPair::generate(&mut rng);
        let issue = |serial, issuer_serial, key: &KeyPair, signer: &KeyPair| -> Result<NoiseCertificate, CurveError> {
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
        };
        let chain = CertChain {
            intermediate: MessageField::some(issue(INTERMEDIATE_SERIAL, 0, &intermediate, &root)?),
            leaf: MessageField::some(issue(LEAF_SERIAL, INTERMEDIATE_SERIAL, &server_static, &intermediate)?),
        }
        .encode_to_vec();
        let mut root_public = [0; 32];
        root_public.copy_from_slice(root.public_key.public_key_bytes());
        Ok(Self { root_public, server_static, chain })
    }

    /// The root's public key, for clients that can be told whom to trust.
    pub(crate) fn root_public(&self) -> &[u8; 32] {
        &self.root_public
    }

    pub(crate) fn server_static(&self) -> &KeyPair {
        &self.server_static
    }

    /// The encoded `CertChain` that goes, encrypted, into every server hello.
    pub(crate) fn chain(&self) -> &[u8] {
        &self.chain
    }
}
