//! Who probes during a pause, and what follows when no request is held.

use super::*;

/// Opens the breaker with session calls of one workflow's callers 1 to 5.
fn failing_workflow() -> TestGate {
    let mut gate = TestGate::new();
    gate.open(Session);
    gate
}

#[test]
fn other_workflows_probe_first_and_soon() {
    let mut gate = failing_workflow();
    let other = of_workflow(2, 1);
    for caller in [Caller::from(1), Caller::from(6), other] {
        gate.wait(caller);
    }
    gate.later(199);
    assert!(!gate.try_start(other, Session));
    gate.later(1);
    assert!(!gate.try_start(6, Session) && !gate.try_start(1, Session));
    gate.stop_waiting(other);
    assert_eq!(gate.call(other, Session, CallResult::Success), Some(Change::Closed));
}

#[test]
fn callers_that_have_not_failed_probe_before_those_that_have() {
    let mut gate = failing_workflow();
    gate.wait(1);
    gate.wait(6);
    gate.later(750);
    assert!(matches!(gate.decide(1, Session), Decision::WaitUntil(_)), "another goes first");
    assert_eq!(gate.decide(6, Session), Decision::Probe);
    // One that has gone does not hold up the others.
    gate.stop_waiting(6);
    assert_eq!(gate.decide(1, Session), Decision::Probe);
}

#[test]
fn caller_that_goes_first_but_does_not_call_delays_others_briefly() {
    let mut gate = failing_workflow();
    gate.wait(1);
    gate.wait(6);
    gate.later(850);
    assert_eq!(gate.decide(1, Session), Decision::Probe);
}

#[test]
fn oldest_makes_room_once_all_have_failed() {
    let mut gate = failing_workflow();
    gate.wait(1);
    gate.later(1).wait(2);
    gate.wait(6);
    assert!(!gate.state.make_room(1.into(), false), "caller 6 has not failed");
    gate.stop_waiting(6);
    assert!(!gate.state.make_room(2.into(), false), "caller 1 is older");
    assert!(gate.state.make_room(1.into(), false));
    gate.stop_waiting(1);
    assert!(!gate.state.make_room(2.into(), false), "one for each probe that fails");
    gate.later(750);
    assert!(gate.try_start(6, Session));
    assert!(!gate.state.make_room(2.into(), false), "a request probes");
    gate.report(6, Session, CallResult::Failure);
    assert!(gate.state.make_room(2.into(), false));
}

#[test]
fn request_that_had_its_turn_makes_room_unless_another_workflow_waits() {
    let mut gate = failing_workflow();
    let other = of_workflow(2, 1);
    assert!(gate.state.make_room(1.into(), true));
    assert!(gate.state.make_room(6.into(), true), "its workflow has failed");
    assert!(!gate.state.make_room(other, true), "it may end the pause");
    gate.wait(other);
    assert!(!gate.state.make_room(1.into(), true), "another has yet to probe");
    gate.stop_waiting(other);
    gate.later(750).call(other, Session, CallResult::Failure);
    assert!(gate.state.make_room(other, true));
    // Token calls are the same for all, so that room for others is of no use.
    let mut gate = TestGate::new();
    gate.open(Token);
    gate.wait(1);
    assert!(!gate.state.make_room(1.into(), true) && !gate.state.make_room(1.into(), false));
}

#[test]
fn probes_of_new_callers_slow_down_in_a_long_outage() {
    let mut gate = failing_workflow();
    let mut probes = 0;
    let mut caller = 6;
    for _ in 0..6_000 {
        if gate.try_start(caller, Session) {
            gate.report(caller, Session, CallResult::Failure);
            caller += 1;
            probes += 1;
        }
        gate.later(10);
    }
    assert!((20..=60).contains(&probes), "{probes} in a minute");
}

#[test]
fn idle_token_call_proves_nothing_while_a_request_is_held() {
    let mut gate = failing_workflow();
    for _ in 0..5 {
        gate.wait(1);
        assert!(!gate.later(3_100).try_start(Caller::IDLE, Token));
        gate.stop_waiting(1);
        // The request is out probing, or on its way to the end of the queue.
        assert!(!gate.later(2_900).try_start(Caller::IDLE, Token));
    }
    assert!(gate.try_start(1, Session));
    assert!(!gate.state.needs_idle_probe(), "a request probes");
    // One that returns while the token call is out is held, too.
    gate.report(1, Session, CallResult::Failure);
    assert!(gate.later(3_100).try_start(Caller::IDLE, Token));
    gate.wait(2);
    assert_eq!(gate.report(Caller::IDLE, Token, CallResult::Success), None);
}

#[test]
fn without_a_held_request_the_next_one_is_the_probe() {
    let mut gate = failing_workflow();
    gate.later(3_100);
    assert!(gate.state.needs_idle_probe());
    assert_eq!(gate.call(Caller::IDLE, Token, CallResult::Success), Some(Change::HalfOpened));
    assert_eq!(gate.state.open_cause(), None);
    assert!(!gate.state.needs_idle_probe());
    // It still allows one call at a time, and its failure spends no attempt.
    assert!(gate.try_start(6, Token));
    assert!(!gate.try_start(7, Token));
    assert_eq!(gate.report(6, Token, CallResult::Success), None);
    assert!(gate.try_start(6, Session));
    assert_eq!(gate.report(6, Session, CallResult::Failure), Some(Change::Reopened));
    assert_eq!(gate.state.open_cause(), Some(Cause::Down(Session)));

    gate.later(3_100);
    assert_eq!(gate.call(Caller::IDLE, Token, CallResult::Success), Some(Change::HalfOpened));
    assert_eq!(gate.scope(7, Session, CallResult::Failure), FailureScope::Pause);
    gate.later(3_100);
    assert_eq!(gate.call(Caller::IDLE, Token, CallResult::Success), Some(Change::HalfOpened));
    assert_eq!(gate.call(8, Session, CallResult::Success), Some(Change::Closed));
}
