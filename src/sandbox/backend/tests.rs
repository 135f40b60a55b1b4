use super::*;
use crate::sandbox::{options::TokenAlphabet, tokens::USED};

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
        |token: &[u8], request| backend.make_session(&options, token, request, None, now);
    assert_eq!(open(b"sandbox-key", request()), Err(NOT_LIVE));
    assert_eq!(open(b"\xff", request()), Err(NOT_LIVE));
    assert_eq!(open(b"tr-unknown", Err(USED)), Err(NOT_LIVE));
    assert_eq!(open(token.as_bytes(), Err(OTHER_REQUEST)), Err(OTHER_REQUEST));
    assert!(open(token.as_bytes(), request()).is_ok());
    assert_eq!(open(token.as_bytes(), request()), Err(USED));
    assert_eq!(backend.recorder.counts.sessions_made, 1);
}

#[test]
fn a_deeplink_call_is_repeated_by_its_key_when_enabled() {
    let now = Instant::now();
    for honour_idempotency_key in [false, true] {
        let options = Options { honour_idempotency_key, ..Options::default() };
        let mut backend = Backend::new(&options);
        let mut call = |authorization: &[u8], key, user: &str| {
            let request = SessionRequest { user: user.into(), ..request().unwrap() };
            let request = Ok((request, Duration::from_secs(60)));
            backend.make_deeplink(&options, authorization, request, key, now)
        };
        assert_eq!(call(b"tr-x", Some("k"), "ann"), Err(WRONG_KEY));
        let first = call(b"sandbox-key", Some("k"), "ann").unwrap();
        assert_eq!(first.2, now + Duration::from_secs(60));
        let again = call(b"sandbox-key", Some("k"), "ann").unwrap();
        assert_eq!(first == again, honour_idempotency_key);
        assert_ne!(call(b"sandbox-key", Some("l"), "ann").unwrap().1.id, first.1.id);
        assert_ne!(call(b"sandbox-key", None, "ann").unwrap().1.id, first.1.id);
        let other = call(b"sandbox-key", Some("k"), "bob").err();
        assert_eq!(other, honour_idempotency_key.then_some(OTHER_REQUEST));
    }
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
