//! Encrypts the values in Redis with AES-256-GCM, bound to the key they are stored under.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretBox};
use tokio::time::Instant;

use super::{error::CacheError, value};
use crate::{
    config::Watched,
    session::{Lifetimes, Session, Token},
};

/// First byte of a sealed value. A plain value is a JSON object and starts with `{`.
const SEALED_V1: u8 = 1;

/// Seals and opens values. Without keys, values pass unchanged.
///
/// Public for `benches/micro.rs`.
pub struct Seal {
    source: Watched<Keys>,
    /// The keys, and the setting that they were made from.
    keys: Mutex<(Arc<Keys>, Arc<[LessSafeKey]>)>,
    /// When the file was last read because of a value that no key opens.
    looked_at: Mutex<Option<Instant>>,
}

/// The setting: the first key seals, every key opens.
type Keys = Vec<SecretBox<[u8; 32]>>;

/// How often values that no key opens may cause the file to be read.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl Seal {
    /// The first key seals; every key opens, so that keys can be rotated.
    pub fn new(source: impl Into<Watched<Vec<SecretBox<[u8; 32]>>>>) -> Self {
        let source = source.into();
        let current = source.current();
        let keys = Mutex::new((Arc::clone(&current), prepare(&current)));
        Self { source, keys, looked_at: Mutex::default() }
    }

    /// The keys as the file has them now, or had them at most 10 s ago.
    fn keys(&self) -> Arc<[LessSafeKey]> {
        let current = self.source.current();
        let mut keys = self.keys.lock();
        if !Arc::ptr_eq(&keys.0, &current) {
            *keys = (Arc::clone(&current), prepare(&current));
        }
        Arc::clone(&keys.1)
    }

    /// Reads the key file again if the value is sealed with a key that is not known: another replica may have
    /// read the file earlier. Returns whether the value can be opened now.
    pub(super) async fn learn_key_of(&self, name: &str, stored: &[u8]) -> bool {
        let is_unknown = stored.first() == Some(&SEALED_V1) && self.open(name, stored).is_none();
        if !is_unknown || self.source.path().is_none() {
            return false;
        }
        {
            let mut looked_at = self.looked_at.lock();
            if looked_at.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
                return false;
            }
            *looked_at = Some(Instant::now());
        }
        self.source.look().await;
        self.open(name, stored).is_some()
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
        let keys = self.keys();
        let Some(key) = keys.first() else { return Ok(value) };
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
        let keys = self.keys();
        if keys.is_empty() {
            // A sealed or damaged value is no JSON, and is rejected when it is read.
            return Some(stored.to_vec());
        }
        let rest = stored.strip_prefix(&[SEALED_V1])?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        keys.iter().find_map(|key| {
            let mut value = sealed.to_vec();
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let length =
                key.open_in_place(nonce, Aad::from(name.as_bytes()), &mut value).ok()?.len();
            value.truncate(length);
            Some(value)
        })
    }
}

fn prepare(keys: &Keys) -> Arc<[LessSafeKey]> {
    let key = |key: &SecretBox<[u8; 32]>| {
        // Fails only for a key of another length, which the type rules out.
        UnboundKey::new(&AES_256_GCM, key.expose_secret()).ok().map(LessSafeKey::new)
    };
    keys.iter().filter_map(key).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seal(keys: &[u8]) -> Seal {
        let keys: Vec<_> = keys.iter().map(|byte| SecretBox::new(Box::new([*byte; 32]))).collect();
        Seal::new(keys)
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

    #[tokio::test]
    async fn unknown_key_is_looked_for_in_the_file() {
        let path = std::env::temp_dir().join(format!("handoff-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, "1").unwrap();
        let parse = |text: &str| {
            let bytes = text.split(',').map(|byte| byte.parse::<u8>().unwrap());
            Ok(bytes.map(|byte| SecretBox::new(Box::new([byte; 32]))).collect())
        };
        let reader = Seal::new(Watched::of_file(path.clone(), parse));
        let sealed = seal(&[2]).seal("k", b"{}".to_vec()).unwrap();
        std::fs::write(&path, "1,2").unwrap();
        assert_eq!(reader.open("k", &sealed), None);
        assert!(reader.learn_key_of("k", &sealed).await);
        assert_eq!(reader.open("k", &sealed).unwrap(), b"{}");
        // Not for what is no sealed value, nor twice within a second.
        std::fs::write(&path, "1,2,3").unwrap();
        assert!(!reader.learn_key_of("k", b"{}").await);
        let sealed = seal(&[3]).seal("k", b"{}".to_vec()).unwrap();
        assert!(!reader.learn_key_of("k", &sealed).await);
        std::fs::remove_file(path).unwrap();
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
