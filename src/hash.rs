//! Hashes that stand in for user ids, request ids and tokens.

use aws_lc_rs::digest::{Context, Digest, SHA256, digest};

pub(crate) fn of_pair(first: &str, second: &str) -> Digest {
    let mut hash = Context::new(&SHA256);
    // The length fixes the border: ("ab", "c") and ("a", "bc") must differ.
    hash.update(&(first.len() as u64).to_be_bytes());
    hash.update(first.as_bytes());
    hash.update(second.as_bytes());
    hash.finish()
}

pub(crate) fn of(text: &str) -> Digest {
    digest(&SHA256, text.as_bytes())
}

/// The first half of a hash as 32 hex digits: 128 bits are enough to avoid collisions.
pub(crate) fn hex(hash: &Digest) -> String {
    // SHA-256 has 32 bytes, so the index stays in range.
    let half: [u8; 16] = std::array::from_fn(|at| hash.as_ref()[at]);
    format!("{:032x}", u128::from_be_bytes(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_the_border_between_two_texts_changes_the_hash() {
        let hash = |first, second| hex(&of_pair(first, second));
        assert_ne!(hash("ab", "c"), hash("a", "bc"));
        assert_ne!(hash("a", "b"), hash("b", "a"));
        assert_eq!(hash("a", "b"), hash("a", "b"));
    }

    #[test]
    fn hex_is_the_first_half_of_sha_256() {
        assert_eq!(hex(&of("abc")), "ba7816bf8f01cfea414140de5dae2223");
    }
}
