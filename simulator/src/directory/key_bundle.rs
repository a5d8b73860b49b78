//! A companion's public keys: identity, signed pre-key and one-time pre-keys, each handed out at most once.

use std::collections::{HashSet, VecDeque};

use wacore_libsignal::protocol::{IdentityKey, PreKeyBundle, PublicKey, SignalProtocolError};

/// The most one-time keys kept for a device; clients upload 812 at a time.
const MAX_ONE_TIME_KEYS: usize = 10_000;

/// A signed pre-key.
#[derive(Clone)]
pub(crate) struct SignedKey {
    pub(crate) id: u32,
    pub(crate) public: [u8; 32],
    pub(crate) signature: [u8; 64],
}

/// The public keys of one device.
#[derive(Clone)]
pub(crate) struct KeyBundle {
    pub(crate) registration_id: u32,
    pub(crate) identity: [u8; 32],
    pub(crate) signed: SignedKey,
    one_time: VecDeque<(u32, [u8; 32])>,
    handed_out: HashSet<[u8; 32]>,
}

impl KeyBundle {
    /// A bundle without one-time keys. `None` if the signature is not the identity's.
    pub(crate) fn new(registration_id: u32, identity: [u8; 32], signed: SignedKey) -> Option<Self> {
        signature_holds(&identity, &signed).then(|| Self {
            registration_id,
            identity,
            signed,
            one_time: VecDeque::new(),
            handed_out: HashSet::new(),
        })
    }

    /// Replaces the signed pre-key. False if the signature is not the identity's.
    pub(crate) fn rotate(&mut self, signed: SignedKey) -> bool {
        let holds = signature_holds(&self.identity, &signed);
        if holds {
            self.signed = signed;
        }
        holds
    }

    /// Adds one-time keys. A key already handed out is not offered again; an id offered again gets the newer key.
    pub(crate) fn add_one_time(&mut self, keys: Vec<(u32, [u8; 32])>) {
        let ids: HashSet<u32> = keys.iter().map(|(id, _)| *id).collect();
        self.one_time.retain(|(id, _)| !ids.contains(id));
        for (id, public) in keys {
            if !self.handed_out.contains(&public) && self.one_time.len() < MAX_ONE_TIME_KEYS {
                self.one_time.push_back((id, public));
            }
        }
    }

    /// The one-time keys left.
    pub(crate) fn count(&self) -> usize {
        self.one_time.len()
    }

    /// The ids of the one-time keys left, in the order in which they will be handed out.
    pub(crate) fn one_time_ids(&self) -> impl Iterator<Item = u32> {
        self.one_time.iter().map(|(id, _)| *id)
    }

    /// Takes one one-time key; it will not be seen again.
    pub(crate) fn take_one_time(&mut self) -> Option<(u32, [u8; 32])> {
        loop {
            let key = self.one_time.pop_front()?;
            if self.handed_out.insert(key.1) {
                return Some(key);
            }
        }
    }

    /// SHA-1 over identity, signed pre-key, its signature and the one-time keys in order (`wacore::prekeys`).
    pub(crate) fn digest(&self) -> Vec<u8> {
        let one_time: Vec<&[u8]> = self.one_time.iter().map(|(_, public)| public.as_slice()).collect();
        wacore::prekeys::compute_key_bundle_digest(
            &self.identity,
            &self.signed.public,
            &self.signed.signature,
            &one_time,
        )
    }

    /// The bundle a sender starts a Signal session with; takes a one-time key if one is left.
    pub(crate) fn take_pre_key_bundle(&mut self, device: u16) -> Result<PreKeyBundle, SignalProtocolError> {
        let one_time = match self.take_one_time() {
            Some((id, public)) => Some((id.into(), PublicKey::from_djb_public_key_bytes(&public)?)),
            None => None,
        };
        PreKeyBundle::new(
            self.registration_id,
            u32::from(device).into(),
            one_time,
            self.signed.id.into(),
            PublicKey::from_djb_public_key_bytes(&self.signed.public)?,
            self.signed.signature.to_vec(),
            IdentityKey::new(PublicKey::from_djb_public_key_bytes(&self.identity)?),
        )
    }
}

/// Signed pre-keys are signed in their serialized form, with the key type byte in front.
fn signature_holds(identity: &[u8; 32], signed: &SignedKey) -> bool {
    let (Ok(identity), Ok(public)) =
        (PublicKey::from_djb_public_key_bytes(identity), PublicKey::from_djb_public_key_bytes(&signed.public))
    else {
        return false;
    };
    identity.verify_signature(&public.serialize(), &signed.signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wacore_libsignal::protocol::KeyPair;

    fn bundle() -> KeyBundle {
        let identity = KeyPair::generate(&mut rand::rng());
        let signed = KeyPair::generate(&mut rand::rng());
        let signature = identity.calculate_signature(&signed.public_key.serialize(), &mut rand::rng()).expect("sign");
        let public = |pair: &KeyPair| <[u8; 32]>::try_from(pair.public_key.public_key_bytes()).expect("32 bytes");
        let signed =
            SignedKey { id: 1, public: public(&signed), signature: signature[..].try_into().expect("64 bytes") };
        KeyBundle::new(7, public(&identity), signed).expect("valid bundle")
    }

    #[test]
    fn a_signed_pre_key_of_another_identity_is_refused() {
        let (ours, theirs) = (bundle(), bundle());
        assert!(KeyBundle::new(7, ours.identity, theirs.signed.clone()).is_none());
        let mut rotated = ours.clone();
        assert!(!rotated.rotate(theirs.signed));
        assert_eq!(rotated.signed.public, ours.signed.public);
    }

    proptest::proptest! {
        #[test]
        fn no_one_time_key_is_handed_out_twice(batches in proptest::collection::vec(proptest::collection::vec((0u32..50, 0u8..50), 0..30), 1..8), take in 0usize..20) {
            let mut bundle = bundle();
            let mut seen = HashSet::new();
            for batch in batches {
                bundle.add_one_time(batch.into_iter().map(|(id, seed)| (id, [seed; 32])).collect());
                for _ in 0..take {
                    let Some((_, public)) = bundle.take_one_time() else { break };
                    // Within a batch the same key may be offered under two ids; only the first may go out.
                    proptest::prop_assert!(seen.insert(public));
                }
            }
        }
    }
}
