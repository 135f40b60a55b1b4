//! `Retry-After`: pauses that the platform asks for.

use super::*;

#[test]
fn no_call_is_made_before_retry_after_passes() {
    let mut gate = TestGate::new();
    gate.call(1, Token, CallResult::Success);
    gate.call(1, Session, CallResult::RateLimited(Duration::from_secs(20)));
    assert!(gate.state.is_retry_after_running(gate.now) && gate.state.open_cause().is_none());
    for call in [Token, Session] {
        assert!(matches!(gate.decide(2, call), Decision::WaitUntil(_)));
    }
    // The longest one counts.
    gate.state.start_call(3.into(), Decision::Proceed, gate.now);
    gate.report(3, Token, CallResult::RateLimited(Duration::from_secs(1)));
    assert!(!gate.later(19_000).try_start(2, Token));
    assert!(gate.later(1_000).try_start(2, Token));
}

#[test]
fn failures_with_retry_after_open_the_breaker() {
    let mut gate = TestGate::new();
    let mut calls = 0;
    for caller in (1..=500).cycle().take(6_000) {
        if gate.try_start(caller, Token) {
            gate.report(caller, Token, CallResult::Unavailable(Duration::from_secs(1)));
            calls += 1;
        }
        gate.later(10);
    }
    assert_eq!(gate.state.open_cause(), Some(Cause::Down(Token)));
    assert!(calls < 30, "{calls} in a minute");
    // A platform that only limits the rate is not down.
    let mut gate = TestGate::new();
    for caller in 1..=20 {
        let pause = Duration::from_secs(1);
        assert_eq!(gate.later(1_000).call(caller, Token, CallResult::RateLimited(pause)), None);
    }
}

#[test]
fn deferred_caller_yields_to_others() {
    let mut gate = TestGate::new();
    let later = CallResult::RateLimited(Duration::from_secs(20));
    gate.call(1, Session, later);
    gate.later(5_000).wait(2);
    gate.later(15_000);
    assert!(!gate.try_start(1, Session), "another request waits: it goes first");
    gate.stop_waiting(2);
    assert!(gate.try_start(2, Session));
    assert!(!gate.try_start(1, Session), "its answer is due");
    gate.report(2, Session, CallResult::Success);
    assert!(gate.try_start(1, Session));
}

#[test]
fn yielding_ends_after_a_tenth_of_the_wait() {
    let mut gate = TestGate::new();
    gate.call(1, Session, CallResult::RateLimited(Duration::from_secs(20)));
    gate.later(20_000);
    assert!(gate.try_start(2, Session));
    assert!(!gate.later(1_900).try_start(1, Session));
    assert!(gate.later(100).try_start(1, Session));
}

#[test]
fn repeated_retry_after_holds_one_caller_while_others_are_served() {
    let mut gate = TestGate::new();
    let later = CallResult::RateLimited(Duration::from_secs(20));
    assert_eq!(gate.scope(1, Session, later), FailureScope::Pause, "the first holds all calls");
    assert!(!gate.try_start(2, Token));
    gate.later(20_000);
    gate.call(2, Token, CallResult::Success);
    gate.call(2, Session, CallResult::Success);
    for _ in 0..3 {
        assert_eq!(gate.scope(1, Session, later), FailureScope::Deferred);
        assert!(!gate.state.is_paused(Session, gate.now));
        assert!(!gate.try_start(1, Session));
        gate.later(1).call(3, Session, CallResult::Success);
        gate.later(20_000);
    }
    // Since then, nothing was served: the platform may be limiting everyone.
    gate.scope(1, Session, later);
    gate.later(20_000);
    assert_eq!(gate.scope(1, Session, later), FailureScope::Pause);
}

#[test]
fn unavailable_for_one_caller_alone_is_no_outage() {
    let mut gate = TestGate::new();
    let later = CallResult::Unavailable(Duration::from_secs(5));
    gate.scope(1, Session, later);
    for _ in 0..20 {
        gate.later(5_000).call(2, Session, CallResult::Success);
        assert_eq!(gate.scope(1, Session, later), FailureScope::Deferred);
    }
    assert_eq!(gate.state.open_cause(), None);
}

#[test]
fn rate_limited_probe_ends() {
    let mut gate = TestGate::new();
    gate.open(Token);
    gate.later(750).call(1, Token, CallResult::RateLimited(Duration::from_secs(1)));
    gate.later(1_000);
    assert!(!gate.state.is_retry_after_running(gate.now));
    assert!(matches!(gate.decide(1, Token), Decision::WaitUntil(_)), "the next probe is not due");
}
