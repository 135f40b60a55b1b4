//! Slow start: few calls in flight until the platform is seen to answer.

use super::*;

#[test]
fn slow_start_grows_with_each_success() {
    let mut gate = TestGate::new();
    let started = (1..=100).filter(|caller| gate.try_start(*caller, Token)).count();
    assert_eq!(started, 4);
    gate.report(1, Token, CallResult::Success);
    let started = (101..=200).filter(|caller| gate.try_start(*caller, Token)).count();
    assert_eq!(started, 3, "one in place of the first, and two more");
    for caller in 2..=4 {
        gate.report(caller, Token, CallResult::Success);
    }
    let started = (201..=300).filter(|caller| gate.try_start(*caller, Token)).count();
    assert_eq!(started, 100);
}

#[test]
fn silence_of_half_a_second_ends_slow_start() {
    let mut gate = TestGate::new();
    let started = (1..=100).filter(|caller| gate.try_start(*caller, Token)).count();
    assert_eq!(started, 4);
    assert!(!gate.later(400).try_start(5, Token));
    assert_eq!(gate.decide(5, Token), Decision::WaitUntil(gate.now + Duration::from_millis(100)));
    let started = (5..=100).filter(|caller| gate.later(100).try_start(*caller, Token)).count();
    assert_eq!(started, 96);
}

#[test]
fn outage_from_the_start_costs_five_calls() {
    let mut gate = TestGate::new();
    let mut calls = 0;
    let mut in_flight = vec![];
    for caller in 1..=500 {
        if gate.try_start(caller, Token) {
            calls += 1;
            in_flight.push(caller);
        }
        if caller % 7 == 0
            && let Some(first) = in_flight.pop()
        {
            gate.report(first, Token, CallResult::Failure);
        }
    }
    assert!(gate.state.open_cause().is_some());
    assert_eq!(calls, 5);
}

/// A gate that has seen four successes, so that slow start has ended.
fn warm_gate() -> TestGate {
    let mut gate = TestGate::new();
    for caller in 1..=4 {
        gate.call(caller, Token, CallResult::Success);
    }
    gate
}

#[test]
fn slow_start_begins_again_after_idle_time() {
    let mut gate = warm_gate();
    gate.later(101);
    let started = (1..=100).filter(|caller| gate.try_start(*caller, Token)).count();
    assert_eq!(started, 4);
}

#[test]
fn time_with_a_call_in_flight_is_not_idle() {
    let mut gate = warm_gate();
    assert!(gate.try_start(1, Token));
    gate.later(200);
    let started = (2..=100).filter(|caller| gate.try_start(*caller, Token)).count();
    assert_eq!(started, 99);
}

#[test]
fn each_answer_begins_a_new_silence() {
    let mut gate = TestGate::new();
    for caller in 1..=4 {
        assert!(gate.try_start(caller, Token));
    }
    gate.later(400).report(1, Token, CallResult::Success);
    let started = (5..=100).filter(|caller| gate.try_start(*caller, Token)).count();
    assert_eq!(started, 3);
    assert_eq!(gate.decide(101, Token), Decision::WaitUntil(gate.now + Duration::from_millis(500)));
}
