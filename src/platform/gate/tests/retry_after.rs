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
    gate.state.start_call(3, Decision::Proceed, gate.now);
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
fn caller_deferred_twice_in_a_row_yields_to_others() {
    let mut gate = TestGate::new();
    let later = CallResult::RateLimited(Duration::from_secs(20));
    gate.call(1, Session, later);
    gate.later(20_000).call(1, Session, later);
    gate.later(20_000);
    assert!(!gate.try_start(1, Session), "the others go first");
    for caller in 2..100 {
        gate.call(caller, Session, CallResult::Success);
    }
    assert!(gate.later(2_000).try_start(1, Session));
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
