//! Generates tokens and session ids.

use rand::{
    RngExt,
    distr::{Alphanumeric, SampleString},
    rngs::StdRng,
    seq::SliceRandom,
};

use super::options::TokenAlphabet;

/// Pieces that encoding mistakes break. Each hostile token contains all of them.
///
/// They contain no control characters, and a token neither starts nor ends with one of them, so
/// that every token is a valid header value.
const HOSTILE: [&str; 20] = [
    " ",
    "  ",
    "+",
    "/",
    "=",
    "&",
    "%",
    "?",
    "#",
    "\"",
    "'",
    "%20",
    "%2B",
    "&sessionId=",
    "<b>",
    "\\",
    "é",
    "e\u{301}",
    "日本",
    "🙂",
];

/// Generates a token, with at least 190 random bits.
pub(super) fn token(alphabet: TokenAlphabet, rng: &mut StdRng) -> String {
    let mut token = "tr-".to_owned();
    match alphabet {
        TokenAlphabet::Plain => Alphanumeric.append_string(rng, &mut token, 40),
        TokenAlphabet::Hostile => {
            let mut pieces = HOSTILE;
            pieces.shuffle(rng);
            for piece in pieces {
                Alphanumeric.append_string(rng, &mut token, 2);
                token.push_str(piece);
            }
            Alphanumeric.append_string(rng, &mut token, 2);
        }
    }
    token
}

/// Generates a session id of 24 hexadecimal digits.
pub(super) fn session_id(rng: &mut StdRng) -> String {
    let id: u128 = rng.random();
    format!("{:024x}", id >> 32)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use rand::SeedableRng;

    use super::*;

    fn tokens(alphabet: TokenAlphabet) -> Vec<String> {
        let mut rng = StdRng::seed_from_u64(1);
        (0..200).map(|_| token(alphabet, &mut rng)).collect()
    }

    #[test]
    fn every_token_is_a_header_value_without_outer_spaces() {
        for alphabet in [TokenAlphabet::Plain, TokenAlphabet::Hostile] {
            for token in tokens(alphabet) {
                assert!(HeaderValue::from_bytes(token.as_bytes()).is_ok(), "{token:?}");
                assert!(!token.chars().any(char::is_control), "{token:?}");
                assert_eq!(token.trim(), token);
            }
        }
    }

    #[test]
    fn plain_tokens_are_letters_and_digits() {
        for token in tokens(TokenAlphabet::Plain) {
            let rest = token.strip_prefix("tr-").unwrap();
            assert!(rest.len() == 40 && rest.bytes().all(|b| b.is_ascii_alphanumeric()), "{token}");
        }
    }

    #[test]
    fn hostile_tokens_contain_every_piece() {
        for token in tokens(TokenAlphabet::Hostile) {
            for piece in HOSTILE {
                assert!(token.contains(piece), "{token:?} lacks {piece:?}");
            }
        }
    }

    #[test]
    fn tokens_are_distinct() {
        let mut tokens = tokens(TokenAlphabet::Hostile);
        tokens.sort();
        tokens.dedup();
        assert_eq!(tokens.len(), 200);
    }

    #[test]
    fn a_session_id_is_24_hexadecimal_digits() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..100 {
            let id = session_id(&mut rng);
            assert!(id.len() == 24 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
        }
    }
}
