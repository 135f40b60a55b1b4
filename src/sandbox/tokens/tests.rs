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
        times_out_at: None,
        end: None,
    }
}

#[test]
fn a_token_opens_one_session() {
    let mut tokens = tokens_with(&[("t", 60)]);
    let first = session("1", Some("k"));
    let token = tokens.live("t", second(1)).unwrap();
    assert_eq!(token.open(first.clone(), false), Ok(Opened::New(&first)));
    assert_eq!(token.open(session("2", Some("k")), false), Err(USED));
}

#[test]
fn an_idempotency_key_is_honoured_when_enabled() {
    let mut tokens = tokens_with(&[("t", 60)]);
    let first = session("1", Some("k"));
    let token = tokens.live("t", second(1)).unwrap();
    token.open(first.clone(), true).unwrap();
    assert_eq!(token.open(session("2", Some("k")), true), Ok(Opened::Repeated(&first)));
    assert_eq!(token.open(session("2", Some("other")), true), Err(USED));
    assert_eq!(token.open(session("2", None), true), Err(USED));
    let other = StoredSession { user: "bob".into(), ..session("2", Some("k")) };
    assert_eq!(token.open(other, true), Err(OTHER_REQUEST));
}

#[test]
fn a_missing_key_never_counts_as_repeated() {
    let mut tokens = tokens_with(&[("t", 60)]);
    let token = tokens.live("t", second(1)).unwrap();
    token.open(session("1", None), true).unwrap();
    assert_eq!(token.open(session("2", None), true), Err(USED));
}

#[test]
fn only_a_live_token_opens_a_session() {
    let mut tokens = tokens_with(&[("t", 60)]);
    let mut refusal = |token, now| tokens.live(token, now).err();
    assert_eq!(refusal("unknown", second(1)), Some(NOT_LIVE));
    assert_eq!(refusal("t", second(60)), Some(NOT_LIVE));
    assert_eq!(refusal("t", second(59)), None);
}

#[test]
fn a_link_opens_its_own_session_until_it_expires() {
    let mut tokens = tokens_with(&[("t", 60), ("u", 60)]);
    let first = session("1", None);
    tokens.live("t", second(1)).unwrap().open(first.clone(), false).unwrap();
    assert_eq!(tokens.find("t", "1", second(59)), Ok((first, second(60))));
    assert_eq!(tokens.find("t", "2", second(59)), Err(LinkError::OtherSession));
    assert_eq!(tokens.find("u", "1", second(59)), Err(LinkError::OtherSession));
    assert_eq!(tokens.find("v", "1", second(59)), Err(LinkError::Unknown));
    assert_eq!(tokens.find("t", "1", second(60)), Err(LinkError::Expired));
}

#[test]
fn a_link_says_how_its_session_ended() {
    let mut tokens = tokens_with(&[("t", 60), ("u", 60)]);
    tokens.live("t", second(1)).unwrap().open(session("1", None), false).unwrap();
    let timed = StoredSession { times_out_at: Some(second(30)), ..session("2", None) };
    tokens.live("u", second(1)).unwrap().open(timed.clone(), false).unwrap();
    assert_eq!(tokens.find("u", "2", second(29)), Ok((timed, second(30))));
    let timed_out = Err(LinkError::Ended(SessionEnd::TimedOut));
    assert_eq!(tokens.find("u", "2", second(30)), timed_out);
    assert_eq!(tokens.find("u", "2", second(60)), Err(LinkError::Expired));

    tokens.index_session("1", "t");
    assert_eq!(tokens.session("1").unwrap().status(), 0);
    let wrong = tokens.end_session("t", "2", SessionEnd::Finished, second(2));
    assert_eq!(wrong, Err(LinkError::OtherSession));
    assert!(tokens.end_session("t", "1", SessionEnd::Finished, second(2)).is_ok());
    let ended = LinkError::Ended(SessionEnd::Finished);
    assert_eq!(tokens.end_session("t", "1", SessionEnd::Closed, second(3)), Err(ended));
    assert_eq!(tokens.find("t", "1", second(99)), Err(ended));
    assert_eq!(tokens.session("1").unwrap().status(), 2);
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
    assert!(tokens.live("soon", second(1)).is_err());
    assert!(tokens.live("late", second(1)).is_ok() && tokens.live("new", second(1)).is_ok());
    assert_eq!(tokens.by_expiry.len(), tokens.tokens.len());

    tokens.live("late", second(1)).unwrap().open(session("1", Some("k")), false).unwrap();
    tokens.index_session("1", "late");
    tokens.index_key("k", "late");
    assert!(tokens.deeplink_of("k").is_some());
    tokens.add("newer", second(90), second(1));
    assert!(tokens.session("1").is_none() && tokens.deeplink_of("k").is_none());
    assert!(tokens.by_session.is_empty() && tokens.by_key.is_empty());
}

#[test]
fn all_tokens_can_be_expired() {
    let mut tokens = tokens_with(&[("t", 60), ("u", 90)]);
    tokens.expire_all(second(1));
    assert!(tokens.live("t", second(1)).is_err() && tokens.live("u", second(1)).is_err());
    tokens.add("v", second(700), second(1) + EXPIRED_KEPT);
    assert_eq!(tokens.by_expiry.len(), 1);
}
