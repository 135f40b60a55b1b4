//! Names made of what nobody is to read from them.

use aws_lc_rs::digest::{Context, Digest, SHA256, digest};

/// A hash over two texts.
pub fn of_pair(first: &str, second: &str) -> Digest {
    let mut hash = Context::new(&SHA256);
    // The length keeps the border between the two from moving.
    hash.update(&(first.len() as u64).to_be_bytes());
    hash.update(first.as_bytes());
    hash.update(second.as_bytes());
    hash.finish()
}

/// A hash over a text.
pub fn of(text: &str) -> Digest {
    digest(&SHA256, text.as_bytes())
}

/// Half of a hash, as 32 hex digits: enough to tell apart all that is ever compared.
pub fn hex(hash: &Digest) -> String {
    // SHA-256 has twice as many bytes.
    let half: [u8; 16] = std::array::from_fn(|at| hash.as_ref()[at]);
    format!("{:032x}", u128::from_be_bytes(half))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_texts_cannot_run_into_each_other() {
        let hash = |first, second| hex(&of_pair(first, second));
        assert_ne!(hash("ab", "c"), hash("a", "bc"));
        assert_ne!(hash("a", "b"), hash("b", "a"));
        assert_eq!(hash("a", "b"), hash("a", "b"));
    }

    #[test]
    fn a_hash_reads_as_anybodys_would() {
        assert_eq!(hex(&of("abc")), "ba7816bf8f01cfea414140de5dae2223");
    }
}
