//! The circuit breaker: opening, probing, closing.

use super::*;

#[test]
fn failures_in_a_row_of_several_requests_open_the_breaker() {
    let mut gate = TestGate::new();
    for caller in [1, 2, 1, 2, 1, 2, 1, 2] {
        assert_eq!(gate.call(caller, Token, CallResult::Failure), None, "only two requests");
    }
    assert_eq!(gate.call(3, Token, CallResult::Failure), Some(Change::Opened(Cause::Down(Token))));
    assert!(!gate.try_start(4, Token) && !gate.try_start(4, Session));
}

#[test]
fn timeouts_count_for_more_than_other_failures() {
    let mut gate = TestGate::new();
    for caller in 1..=3 {
        assert!(gate.try_start(caller, Session));
    }
    gate.later(6_000);
    assert_eq!(gate.report(1, Session, CallResult::Timeout), None);
    assert_eq!(gate.report(2, Session, CallResult::Timeout), None, "only two requests");
    assert_eq!(
        gate.report(3, Session, CallResult::Timeout),
        Some(Change::Opened(Cause::Down(Session)))
    );
}

#[test]
fn streak_ends_by_itself() {
    let mut gate = TestGate::new();
    gate.call(1, Token, CallResult::Failure);
    gate.later(59_000);
    assert_eq!((2..=20).filter(|caller| gate.try_start(*caller, Token)).count(), 4);
    let mut gate = TestGate::new();
    for caller in 1..=4 {
        gate.call(caller, Token, CallResult::Failure);
    }
    gate.later(66_000);
    let began = gate.now;
    assert_eq!((5..=20).filter(|caller| gate.try_start(*caller, Token)).count(), 4, "slow start");
    assert_eq!(gate.state.outage_wait(Token, began, gate.now), Duration::from_secs(1));
    gate.later(500);
    assert!(gate.try_start(21, Token), "the platform is slow, not failing");
}

#[test]
fn success_ends_a_streak() {
    let mut gate = TestGate::new();
    for caller in 1..=4 {
        gate.call(caller, Session, CallResult::Failure);
    }
    // A successful token call says nothing about session calls.
    gate.call(5, Token, CallResult::Success);
    assert_eq!(
        gate.call(5, Session, CallResult::Failure),
        Some(Change::Opened(Cause::Down(Session)))
    );

    let mut gate = TestGate::new();
    for caller in 1..=4 {
        gate.call(caller, Token, CallResult::Failure);
    }
    gate.call(5, Session, CallResult::Success);
    assert_eq!(gate.call(5, Token, CallResult::Failure), None);
}

#[test]
fn failures_far_apart_are_no_streak() {
    let mut gate = TestGate::new();
    for caller in 1..=20 {
        assert_eq!(gate.later(61_000).call(caller, Token, CallResult::Failure), None);
    }
}

#[test]
fn one_probe_at_a_time_and_its_success_closes_the_breaker() {
    let mut gate = TestGate::new();
    gate.open(Token);
    assert!(matches!(gate.decide(1, Token), Decision::WaitUntil(_)));
    gate.later(1_000);
    assert_eq!(gate.decide(1, Token), Decision::Probe);
    assert!(gate.try_start(1, Token));
    assert!(!gate.try_start(2, Token), "another caller probes");
    assert_eq!(gate.report(1, Token, CallResult::Failure), None);
    gate.later(3_000);
    assert!(gate.try_start(2, Token));
    assert_eq!(gate.report(2, Token, CallResult::Success), Some(Change::Closed));
    assert!(gate.try_start(3, Token));
}

#[test]
fn probing_caller_may_make_its_next_call() {
    let mut gate = TestGate::new();
    gate.open(Session);
    gate.later(1_000);
    assert_eq!(gate.call(1, Token, CallResult::Success), None, "session calls fail");
    assert!(!gate.try_start(2, Token));
    assert_eq!(gate.call(1, Session, CallResult::Success), Some(Change::Closed));
}

#[test]
fn caller_of_a_failed_probe_yields_to_others() {
    let mut gate = TestGate::new();
    gate.open(Token);
    gate.later(750);
    gate.call(1, Token, CallResult::Failure);
    let Decision::WaitUntil(others) = gate.decide(2, Token) else { panic!("too early") };
    let Decision::WaitUntil(own) = gate.decide(1, Token) else { panic!("too early") };
    assert!(own > others);
}

#[test]
fn cancelled_probe_lets_another_caller_probe() {
    let mut gate = TestGate::new();
    gate.open(Token);
    gate.later(750);
    assert!(gate.try_start(1, Token));
    gate.state.end_call();
    assert!(gate.state.release_probe(1.into()));
    assert!(!gate.state.release_probe(1.into()));
    assert!(gate.later(3_000).try_start(2, Token));
}

#[test]
fn unanswered_probe_does_not_delay_the_next() {
    let mut gate = TestGate::new();
    gate.open(Token);
    assert!(gate.later(750).try_start(1, Token));
    assert!(gate.later(3_000).try_start(2, Token));
    assert_eq!(gate.report(1, Token, CallResult::Success), Some(Change::Closed));
}

#[test]
fn probes_of_an_outage_are_at_most_three_seconds_apart() {
    let mut gate = TestGate::new();
    gate.open(Token);
    let mut probes = 0;
    for step in 0..6_000 {
        let caller = 1 + step % 4;
        if gate.try_start(caller, Token) {
            gate.report(caller, Token, CallResult::Failure);
            probes += 1;
        }
        gate.later(10);
    }
    assert!((23..=26).contains(&probes), "{probes} in a minute");
}

#[test]
fn one_failing_request_does_not_keep_the_breaker_open() {
    let mut gate = TestGate::new();
    gate.open(Session);
    assert_eq!(gate.later(1_000).call(1, Session, CallResult::Failure), None);
    assert_eq!(gate.later(3_100).call(1, Session, CallResult::Failure), None);
    assert_eq!(
        gate.later(3_100).call(1, Session, CallResult::Failure),
        Some(Change::ClosedForOthers)
    );
    // From here on, its failures count against its own budget.
    assert_eq!(gate.call(1, Session, CallResult::Failure), None);
}

#[test]
fn idle_token_call_ends_an_outage_of_token_calls() {
    let mut gate = TestGate::new();
    gate.open(Token);
    for _ in 0..5 {
        assert_eq!(gate.later(3_100).call(Caller::IDLE, Token, CallResult::Failure), None);
    }
    assert_eq!(
        gate.later(3_100).call(Caller::IDLE, Token, CallResult::Success),
        Some(Change::Closed)
    );
}

#[test]
fn refused_token_call_opens_the_breaker_until_a_later_token_call_succeeds() {
    let mut gate = TestGate::new();
    assert!(gate.try_start(1, Token) && gate.try_start(2, Token));
    assert_eq!(
        gate.report(1, Token, CallResult::Refused(Refusal::Setting)),
        Some(Change::Opened(Cause::Refused(Token)))
    );
    assert_eq!(gate.report(2, Token, CallResult::Success), None, "it began before the refusal");
    assert!(!gate.try_start(3, Token));
    // A caller that has a token may start its session.
    assert_eq!(gate.call(2, Session, CallResult::Success), None);
    for _ in 0..10 {
        assert_eq!(
            gate.later(31_000).call(1, Token, CallResult::Refused(Refusal::Setting)),
            None,
            "no new change"
        );
    }
    assert_eq!(gate.later(31_000).call(1, Token, CallResult::Success), Some(Change::Closed));
}

#[test]
fn probes_of_a_refused_key_slow_down() {
    let mut gate = TestGate::new();
    gate.call(1, Token, CallResult::Refused(Refusal::Setting));
    let mut last = gate.now;
    let mut pauses = vec![];
    while pauses.len() < 8 {
        if gate.try_start(1 + pauses.len() as u64 % 2, Token) {
            gate.report(1 + pauses.len() as u64 % 2, Token, CallResult::Refused(Refusal::Setting));
            pauses.push((gate.now - last).as_secs());
            last = gate.now;
        }
        gate.later(100);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
}

#[test]
fn refusal_after_an_outage_changes_the_cause() {
    let mut gate = TestGate::new();
    gate.open(Token);
    assert_eq!(
        gate.later(1_000).call(1, Token, CallResult::Refused(Refusal::Setting)),
        Some(Change::Opened(Cause::Refused(Token)))
    );
}

#[test]
fn failure_after_a_refusal_is_probed_again_soon() {
    let mut gate = TestGate::new();
    gate.call(1, Token, CallResult::Refused(Refusal::Setting));
    for _ in 0..6 {
        gate.later(31_000).call(1, Token, CallResult::Refused(Refusal::Setting));
    }
    gate.later(31_000).call(1, Token, CallResult::Failure);
    assert_eq!(gate.later(1_100).call(1, Token, CallResult::Success), Some(Change::Closed));
}

#[test]
fn first_failures_wait_to_see_whether_this_is_an_outage() {
    let mut gate = TestGate::new();
    let began = gate.now;
    gate.call(1, Session, CallResult::Failure);
    let short = gate.state.outage_wait(Session, began, gate.now);
    assert!(short > Duration::ZERO, "other calls may be about to start");
    assert!(gate.later(1).try_start(2, Session));
    assert!(gate.state.outage_wait(Session, began, gate.now) > short, "another call is in flight");
    gate.later(1).report(2, Session, CallResult::Success);
    assert!(gate.try_start(3, Session));
    assert_eq!(
        gate.state.outage_wait(Session, began, gate.now),
        Duration::ZERO,
        "a later call succeeded"
    );
    let began = gate.later(1).now;
    gate.report(3, Session, CallResult::Failure);
    gate.call(4, Session, CallResult::Failure);
    assert!(gate.state.outage_wait(Session, began, gate.now) > short, "other requests fail, too");
}
