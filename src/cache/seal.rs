//! Sealing what Redis holds: AES-256-GCM, bound to the key it is stored under.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use secrecy::{ExposeSecret, SecretBox};

/// First byte of a sealed value. No plain one begins with it, since those are JSON objects.
const SEALED_V1: u8 = 1;

/// Seals and opens values; without keys it hands them through.
pub(super) struct Seal {
    keys: Vec<LessSafeKey>,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seal({} keys)", self.keys.len())
    }
}

/// The value could not be sealed.
#[derive(Debug)]
pub(super) struct SealFailed;

impl Seal {
    /// The first key seals, all open.
    pub(super) fn new(keys: &[SecretBox<[u8; 32]>]) -> Self {
        let key = |key: &SecretBox<[u8; 32]>| {
            // Fails for a key of another length only, and these have the length by type.
            UnboundKey::new(&AES_256_GCM, key.expose_secret()).ok().map(LessSafeKey::new)
        };
        Self { keys: keys.iter().filter_map(key).collect() }
    }

    pub(super) fn seal(&self, name: &str, mut value: Vec<u8>) -> Result<Vec<u8>, SealFailed> {
        let Some(key) = self.keys.first() else { return Ok(value) };
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SealFailed)?;
        let unique = Nonce::assume_unique_for_key(nonce);
        let aad = Aad::from(name.as_bytes());
        key.seal_in_place_append_tag(unique, aad, &mut value).map_err(|_| SealFailed)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + value.len());
        sealed.push(SEALED_V1);
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut value);
        Ok(sealed)
    }

    /// The value, or `None` where it cannot be read: it then counts as absent.
    pub(super) fn open(&self, name: &str, stored: &[u8]) -> Option<Vec<u8>> {
        if self.keys.is_empty() {
            // A value that was sealed, or is damaged, fails to read as JSON further on.
            return Some(stored.to_vec());
        }
        let rest = stored.strip_prefix(&[SEALED_V1])?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        self.keys.iter().find_map(|key| {
            let mut value = sealed.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let length =
                key.open_in_place(nonce, Aad::from(name.as_bytes()), &mut value).ok()?.len();
            value.truncate(length);
            Some(value)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seal(keys: &[u8]) -> Seal {
        let keys: Vec<_> = keys.iter().map(|byte| SecretBox::new(Box::new([*byte; 32]))).collect();
        Seal::new(&keys)
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let old = seal(&[1]).seal("k", b"{}".to_vec()).unwrap();
        let new = seal(&[2, 1]).seal("k", b"{}".to_vec()).unwrap();
        assert_eq!(seal(&[2, 1]).open("k", &old).unwrap(), b"{}");
        assert_eq!(seal(&[2]).open("k", &new).unwrap(), b"{}");
        assert_eq!(seal(&[2]).open("k", &old), None);
        assert_eq!(seal(&[1]).open("k", &new), None);
    }

    #[test]
    fn a_value_opens_under_its_own_name_alone() {
        let sealed = seal(&[1]).seal("ann", b"{}".to_vec()).unwrap();
        assert_eq!(seal(&[1]).open("bob", &sealed), None);
    }

    #[test]
    fn a_plain_value_is_absent_once_there_is_a_key() {
        assert_eq!(seal(&[1]).open("k", b"{}"), None);
        assert_eq!(seal(&[1]).open("k", b""), None);
        assert_eq!(seal(&[]).open("k", b"{}").unwrap(), b"{}");
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_what_is_changed_does_not(
            value: Vec<u8>, name: String, at: prop::sample::Index, bit in 0u8..8,
        ) {
            let seal = seal(&[7]);
            let mut sealed = seal.seal(&name, value.clone()).unwrap();
            prop_assert_eq!(seal.open(&name, &sealed), Some(value));
            let at = at.index(sealed.len());
            sealed[at] ^= 1u8 << bit;
            prop_assert_eq!(seal.open(&name, &sealed), None);
        }
    }
}
