//! Encrypts the values in Redis with AES-256-GCM, bound to the key they are stored under.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use secrecy::{ExposeSecret, SecretBox};

use super::{error::CacheError, value};
use crate::session::{Lifetimes, Session, Token};

/// First byte of a sealed value. A plain value is a JSON object and starts with `{`.
const SEALED_V1: u8 = 1;

/// Seals and opens values. Without keys, values pass unchanged.
///
/// Public for `benches/micro.rs`.
pub struct Seal {
    keys: Vec<LessSafeKey>,
}

impl Seal {
    /// The first key seals; every key opens, so that keys can be rotated.
    pub fn new(keys: &[SecretBox<[u8; 32]>]) -> Self {
        let key = |key: &SecretBox<[u8; 32]>| {
            // Fails only for a key of another length, which the type rules out.
            UnboundKey::new(&AES_256_GCM, key.expose_secret()).ok().map(LessSafeKey::new)
        };
        Self { keys: keys.iter().filter_map(key).collect() }
    }

    /// The session as stored under `name`.
    ///
    /// # Errors
    /// The encryption failed.
    pub fn seal_session(&self, name: &str, session: &Session) -> Result<Vec<u8>, CacheError> {
        self.seal(name, value::write_session(session))
    }

    /// The session that was stored under `name`.
    pub fn open_session(
        &self,
        name: &str,
        stored: &[u8],
        lifetimes: &Lifetimes,
    ) -> Option<Session> {
        value::read_session(&self.open(name, stored)?, lifetimes)
    }

    pub(super) fn seal_token(&self, name: &str, token: &Token) -> Result<Vec<u8>, CacheError> {
        self.seal(name, value::write_token(token))
    }

    pub(super) fn open_token(&self, name: &str, stored: &[u8]) -> Option<Token> {
        value::read_token(&self.open(name, stored)?)
    }

    fn seal(&self, name: &str, mut value: Vec<u8>) -> Result<Vec<u8>, CacheError> {
        let failed = |_| CacheError::Failed("sealing failed".to_owned());
        let Some(key) = self.keys.first() else { return Ok(value) };
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(failed)?;
        let unique = Nonce::assume_unique_for_key(nonce);
        let aad = Aad::from(name.as_bytes());
        key.seal_in_place_append_tag(unique, aad, &mut value).map_err(failed)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + value.len());
        sealed.push(SEALED_V1);
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut value);
        Ok(sealed)
    }

    /// `None` if the value cannot be opened; it then counts as missing.
    fn open(&self, name: &str, stored: &[u8]) -> Option<Vec<u8>> {
        if self.keys.is_empty() {
            // A sealed or damaged value is no JSON, and is rejected when it is read.
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
    fn first_key_seals_and_every_key_opens() {
        let old = seal(&[1]).seal("k", b"{}".to_vec()).unwrap();
        let new = seal(&[2, 1]).seal("k", b"{}".to_vec()).unwrap();
        assert_eq!(seal(&[2, 1]).open("k", &old).unwrap(), b"{}");
        assert_eq!(seal(&[2]).open("k", &new).unwrap(), b"{}");
        assert_eq!(seal(&[2]).open("k", &old), None);
        assert_eq!(seal(&[1]).open("k", &new), None);
    }

    #[test]
    fn sealed_value_opens_only_under_its_own_name() {
        let sealed = seal(&[1]).seal("ann", b"{}".to_vec()).unwrap();
        assert_eq!(seal(&[1]).open("bob", &sealed), None);
    }

    #[test]
    fn plain_value_is_missing_once_a_key_is_set() {
        assert_eq!(seal(&[1]).open("k", b"{}"), None);
        assert_eq!(seal(&[1]).open("k", b""), None);
        assert_eq!(seal(&[]).open("k", b"{}").unwrap(), b"{}");
    }

    proptest! {
        #[test]
        fn sealed_value_opens_unless_any_bit_changes(
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
