use super::*;

fn second(n: u64) -> Instant {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_secs(n)
}

fn tokens_with(names: &[(&str, u64)]) -> Tokens {
    let mut tokens = Tokens::new();
    for (name, expires_at) in names {
        tokens.add(name, second(*expires_at), second(0));
    }
    tokens
}

fn session(id: &str, idempotency_key: Option<&str>) -> StoredSession {
    StoredSession {
        id: id.into(),
        user: "ann".into(),
        workflow: "onboarding".into(),
        locale: None,
        idempotency_key: idempotency_key.map(Into::into),
    }
}

#[test]
fn a_token_opens_one_session() {
    let mut tokens = tokens_with(&[("t", 60)]);
    let first = session("1", Some("k"));
    let opened = tokens.open("t", first.clone(), false, second(1));
    assert_eq!(opened, Ok(Opened::New(first)));
    let repeated = tokens.open("t", session("2", Some("k")), false, second(1));
    assert_eq!(repeated, Err(SessionError::Used));
}

#[test]
fn an_idempotency_key_is_honoured_when_enabled() {
    let mut tokens = tokens_with(&[("t", 60)]);
    let first = session("1", Some("k"));
    tokens.open("t", first.clone(), true, second(1)).unwrap();
    let mut open = |session| tokens.open("t", session, true, second(1));
    assert_eq!(open(session("2", Some("k"))), Ok(Opened::Repeated(first)));
    assert_eq!(open(session("2", Some("other"))), Err(SessionError::Used));
    assert_eq!(open(session("2", None)), Err(SessionError::Used));
    let other = StoredSession { user: "bob".into(), ..session("2", Some("k")) };
    assert_eq!(open(other), Err(SessionError::OtherRequest));
}

#[test]
fn a_missing_key_never_counts_as_repeated() {
    let mut tokens = tokens_with(&[("t", 60)]);
    tokens.open("t", session("1", None), true, second(1)).unwrap();
    let repeated = tokens.open("t", session("2", None), true, second(1));
    assert_eq!(repeated, Err(SessionError::Used));
}

#[test]
fn only_a_live_token_opens_a_session() {
    let mut tokens = tokens_with(&[("t", 60)]);
    let mut open = |token, now| tokens.open(token, session("1", None), false, now);
    assert_eq!(open("unknown", second(1)), Err(SessionError::NotLive));
    assert_eq!(open("t", second(60)), Err(SessionError::NotLive));
    assert!(open("t", second(59)).is_ok());
}

#[test]
fn a_link_opens_its_own_session_until_it_expires() {
    let mut tokens = tokens_with(&[("t", 60), ("u", 60)]);
    let first = session("1", None);
    tokens.open("t", first.clone(), false, second(1)).unwrap();
    assert_eq!(tokens.find("t", "1", second(59)), Ok((first, second(60))));
    assert_eq!(tokens.find("t", "2", second(59)), Err(LinkError::OtherSession));
    assert_eq!(tokens.find("u", "1", second(59)), Err(LinkError::OtherSession));
    assert_eq!(tokens.find("v", "1", second(59)), Err(LinkError::Unknown));
    assert_eq!(tokens.find("t", "1", second(60)), Err(LinkError::Expired));
}

#[test]
fn an_expired_token_is_dropped_after_ten_minutes() {
    let mut tokens = tokens_with(&[("t", 60)]);
    tokens.add("u", second(700), second(659));
    assert_eq!(tokens.find("t", "", second(659)), Err(LinkError::Expired));
    tokens.add("v", second(700), second(660));
    assert_eq!(tokens.find("t", "", second(660)), Err(LinkError::Unknown));
}

#[test]
fn a_full_store_drops_the_token_that_expires_first() {
    let mut tokens = tokens_with(&[("late", 60), ("soon", 30)]);
    tokens.max_tokens = 2;
    tokens.add("new", second(90), second(1));
    assert!(!tokens.is_live("soon", second(1)));
    assert!(tokens.is_live("late", second(1)) && tokens.is_live("new", second(1)));
    assert_eq!(tokens.by_expiry.len(), tokens.tokens.len());
}

#[test]
fn all_tokens_can_be_expired() {
    let mut tokens = tokens_with(&[("t", 60), ("u", 90)]);
    tokens.expire_all(second(1));
    assert!(!tokens.is_live("t", second(1)) && !tokens.is_live("u", second(1)));
    tokens.add("v", second(700), second(1) + EXPIRED_KEPT);
    assert_eq!(tokens.by_expiry.len(), 1);
}
