use super::*;
use crate::sandbox::{
    options::TokenAlphabet,
    tokens::{OTHER_REQUEST, USED},
};

const MINUTE: Result<Duration, Refusal> = Ok(Duration::from_secs(60));

fn hostile() -> (Options, Backend) {
    let options = Options { token_alphabet: TokenAlphabet::Hostile, ..Options::default() };
    let backend = Backend::new(&options);
    (options, backend)
}

fn request() -> Result<SessionRequest, Refusal> {
    Ok(SessionRequest { user: "ann".into(), workflow: "w".into(), locale: None })
}

#[test]
fn a_token_requires_the_exact_key() {
    let (options, mut backend) = hostile();
    let now = Instant::now();
    for wrong in ["", "sandbox-ke", "sandbox-key ", "Sandbox-key", "ApiKey sandbox-key"] {
        assert_eq!(backend.issue_token(&options, wrong.as_bytes(), MINUTE, now), Err(WRONG_KEY));
    }
    assert!(backend.issue_token(&options, b"sandbox-key", MINUTE, now).is_ok());
    assert_eq!(backend.recorder.counts.tokens_issued, 1);
}

#[test]
fn a_session_requires_the_exact_token() {
    let (options, mut backend) = hostile();
    let now = Instant::now();
    let token = backend.issue_token(&options, b"sandbox-key", MINUTE, now).unwrap();
    let mut open =
        |token: &[u8], request| backend.make_session(&options, token, request, None, now).cloned();
    assert_eq!(open(b"sandbox-key", request()), Err(NOT_LIVE));
    assert_eq!(open(b"\xff", request()), Err(NOT_LIVE));
    assert_eq!(open(b"tr-unknown", Err(USED)), Err(NOT_LIVE));
    assert_eq!(open(token.as_bytes(), Err(OTHER_REQUEST)), Err(OTHER_REQUEST));
    assert!(open(token.as_bytes(), request()).is_ok());
    assert_eq!(open(token.as_bytes(), request()), Err(USED));
    assert_eq!(backend.recorder.counts.sessions_made, 1);
}

#[test]
fn a_seed_makes_tokens_reproducible() {
    let options = Options { seed: Some(7), ..Options::default() };
    let issue = || {
        Backend::new(&options)
            .issue_token(&options, b"sandbox-key", MINUTE, Instant::now())
            .unwrap()
    };
    assert_eq!(issue(), issue());
}
