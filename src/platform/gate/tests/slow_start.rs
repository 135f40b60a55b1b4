//! Slow start: few calls in flight until the platform is seen to answer.

use super::*;

#[test]
fn slow_start_grows_with_each_success() {
    let mut gate = TestGate::new();
    let went = (1..=100).filter(|caller| gate.try_start(*caller, Token)).count();
    assert_eq!(went, 4);
    gate.report(1, Token, CallResult::Success);
    let went = (101..=200).filter(|caller| gate.try_start(*caller, Token)).count();
    assert_eq!(went, 3, "one in place of the first, and two more");
    for caller in 2..=4 {
        gate.report(caller, Token, CallResult::Success);
    }
    let went = (201..=300).filter(|caller| gate.try_start(*caller, Token)).count();
    assert_eq!(went, 100);
}

#[test]
fn silence_of_half_a_second_ends_slow_start() {
    let mut gate = TestGate::new();
    let went = (1..=100).filter(|caller| gate.try_start(*caller, Token)).count();
    assert_eq!(went, 4);
    assert!(!gate.later(400).try_start(5, Token));
    assert_eq!(gate.decide(5, Token), Decision::WaitUntil(gate.now + Duration::from_millis(100)));
    let went = (5..=100).filter(|caller| gate.later(100).try_start(*caller, Token)).count();
    assert_eq!(went, 96);
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
