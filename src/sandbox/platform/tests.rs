use super::*;
use crate::sandbox::options::TokenAlphabet;

const MINUTE: Result<Duration, Refusal> = Ok(Duration::from_secs(60));

fn hostile() -> (Options, Platform) {
    let options = Options { token_alphabet: TokenAlphabet::Hostile, ..Options::default() };
    let platform = Platform::new(&options);
    (options, platform)
}

fn ask() -> Result<SessionAsk, Refusal> {
    Ok(SessionAsk { user: "ann".into(), workflow: "w".into(), locale: None })
}

#[test]
fn a_token_takes_the_key_verbatim() {
    let (options, mut platform) = hostile();
    let now = Instant::now();
    for wrong in ["", "sandbox-ke", "sandbox-key ", "Sandbox-key", "ApiKey sandbox-key"] {
        assert_eq!(platform.issue(&options, wrong.as_bytes(), MINUTE, now), Err(WRONG_KEY));
    }
    assert!(platform.issue(&options, b"sandbox-key", MINUTE, now).is_ok());
    assert_eq!(platform.recorder.counts.tokens_issued, 1);
}

#[test]
fn a_session_takes_a_token_verbatim() {
    let (options, mut platform) = hostile();
    let now = Instant::now();
    let token = platform.issue(&options, b"sandbox-key", MINUTE, now).unwrap();
    let mut open = |token: &[u8], ask| platform.open(&options, token, ask, None, now);
    assert_eq!(open(b"sandbox-key", ask()), Err(NOT_LIVE));
    assert_eq!(open(b"\xff", ask()), Err(NOT_LIVE));
    assert_eq!(open(b"tr-unknown", Err(USED)), Err(NOT_LIVE));
    assert_eq!(open(token.as_bytes(), Err(OTHER_REQUEST)), Err(OTHER_REQUEST));
    assert!(open(token.as_bytes(), ask()).is_ok());
    assert_eq!(open(token.as_bytes(), ask()), Err(USED));
    assert_eq!(platform.recorder.counts.sessions_made, 1);
}

#[test]
fn a_new_key_ends_what_the_old_one_made() {
    let (options, mut platform) = hostile();
    let now = Instant::now();
    let token = platform.issue(&options, b"sandbox-key", MINUTE, now).unwrap();
    platform.set_api_key("other".to_owned());
    assert_eq!(platform.issue(&options, b"sandbox-key", MINUTE, now), Err(WRONG_KEY));
    let opened = platform.open(&options, token.as_bytes(), ask(), None, now);
    assert_eq!(opened, Err(NOT_LIVE));
    assert!(platform.issue(&options, b"other", MINUTE, now).is_ok());
}

#[test]
fn a_seed_repeats_itself() {
    let options = Options { seed: Some(7), ..Options::default() };
    let issue =
        || Platform::new(&options).issue(&options, b"sandbox-key", MINUTE, Instant::now()).unwrap();
    assert_eq!(issue(), issue());
}
