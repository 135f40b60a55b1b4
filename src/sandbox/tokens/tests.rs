use super::*;

const KEY: u64 = 0;

fn second(n: u64) -> Instant {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_secs(n)
}

fn tokens_with(names: &[(&str, u64)]) -> Tokens {
    let mut tokens = Tokens::new();
    for (name, ends) in names {
        tokens.add(name, second(*ends), KEY, second(0));
    }
    tokens
}

fn session(id: &str, idempotency_key: Option<&str>) -> Session {
    Session {
        id: id.into(),
        user: "ann".into(),
        workflow: "onboarding".into(),
        locale: None,
        idempotency_key: idempotency_key.map(Into::into),
    }
}

#[test]
fn a_token_serves_one_session() {
    let mut tokens = tokens_with(&[("t", 60)]);
    let first = session("1", Some("k"));
    let opened = tokens.open("t", first.clone(), false, KEY, second(1));
    assert_eq!(opened, Ok(Opened::New(first)));
    let again = tokens.open("t", session("2", Some("k")), false, KEY, second(1));
    assert_eq!(again, Err(NoSession::Used));
}

#[test]
fn an_idempotency_key_is_honoured_when_asked() {
    let mut tokens = tokens_with(&[("t", 60)]);
    let first = session("1", Some("k"));
    tokens.open("t", first.clone(), true, KEY, second(1)).unwrap();
    let mut open = |session| tokens.open("t", session, true, KEY, second(1));
    assert_eq!(open(session("2", Some("k"))), Ok(Opened::Again(first)));
    assert_eq!(open(session("2", Some("other"))), Err(NoSession::Used));
    assert_eq!(open(session("2", None)), Err(NoSession::Used));
    let other = Session { user: "bob".into(), ..session("2", Some("k")) };
    assert_eq!(open(other), Err(NoSession::OtherRequest));
}

#[test]
fn no_key_at_all_is_no_repetition() {
    let mut tokens = tokens_with(&[("t", 60)]);
    tokens.open("t", session("1", None), true, KEY, second(1)).unwrap();
    let again = tokens.open("t", session("2", None), true, KEY, second(1));
    assert_eq!(again, Err(NoSession::Used));
}

#[test]
fn only_a_live_token_of_the_present_key_serves() {
    let mut tokens = tokens_with(&[("t", 60)]);
    let mut open = |token, key, now| tokens.open(token, session("1", None), false, key, now);
    assert_eq!(open("unknown", KEY, second(1)), Err(NoSession::NotLive));
    assert_eq!(open("t", KEY, second(60)), Err(NoSession::NotLive));
    assert_eq!(open("t", KEY + 1, second(1)), Err(NoSession::NotLive));
    assert!(open("t", KEY, second(59)).is_ok());
}

#[test]
fn a_link_opens_its_own_session_until_it_ends() {
    let mut tokens = tokens_with(&[("t", 60), ("u", 60)]);
    let first = session("1", None);
    tokens.open("t", first.clone(), false, KEY, second(1)).unwrap();
    assert_eq!(tokens.look("t", "1", second(59)), Ok((first, second(60))));
    assert_eq!(tokens.look("t", "2", second(59)), Err(BadLink::OtherSession));
    assert_eq!(tokens.look("u", "1", second(59)), Err(BadLink::OtherSession));
    assert_eq!(tokens.look("v", "1", second(59)), Err(BadLink::Unknown));
    assert_eq!(tokens.look("t", "1", second(60)), Err(BadLink::Ended));
}

#[test]
fn an_ended_token_is_forgotten_after_a_while() {
    let mut tokens = tokens_with(&[("t", 60)]);
    tokens.add("u", second(700), KEY, second(659));
    assert_eq!(tokens.look("t", "", second(659)), Err(BadLink::Ended));
    tokens.add("v", second(700), KEY, second(660));
    assert_eq!(tokens.look("t", "", second(660)), Err(BadLink::Unknown));
}

#[test]
fn when_full_the_token_that_ends_soonest_goes() {
    let mut tokens = tokens_with(&[("late", 60), ("soon", 30)]);
    tokens.most = 2;
    tokens.add("new", second(90), KEY, second(1));
    assert!(!tokens.is_live("soon", KEY, second(1)));
    assert!(tokens.is_live("late", KEY, second(1)) && tokens.is_live("new", KEY, second(1)));
    assert_eq!(tokens.by_end.len(), tokens.tokens.len());
}

#[test]
fn all_tokens_can_be_ended() {
    let mut tokens = tokens_with(&[("t", 60), ("u", 90)]);
    tokens.end_all(second(1));
    assert!(!tokens.is_live("t", KEY, second(1)) && !tokens.is_live("u", KEY, second(1)));
    tokens.add("v", second(700), KEY, second(1) + REMEMBERED);
    assert_eq!(tokens.by_end.len(), 1);
}
