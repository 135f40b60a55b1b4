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

/// How many of a hundred callers may call at once.
fn start_all(gate: &mut TestGate, from: u64) -> Vec<u64> {
    (from..from + 100).filter(|caller| gate.try_start(*caller, Token)).collect()
}

#[test]
fn after_an_outage_calls_grow_only_with_what_is_answered() {
    let mut gate = TestGate::new();
    gate.open(Token);
    gate.later(1_000).call(1, Token, CallResult::Success);
    let mut in_flight = start_all(&mut gate, 100);
    assert_eq!(in_flight.len(), 2);
    for (round, expected) in [(2, 4), (3, 8), (4, 16), (5, 32)] {
        // Neither time nor silence allows more.
        gate.later(2_000);
        assert!(start_all(&mut gate, 1_000).is_empty());
        for caller in std::mem::take(&mut in_flight) {
            gate.report(caller, Token, CallResult::Success);
            in_flight.extend(start_all(&mut gate, 100 * round + in_flight.len() as u64 * 1_000));
        }
        assert_eq!(in_flight.len(), expected);
    }
    // A failure halves what the answers have allowed, and the next success goes on from there.
    let failed = in_flight.pop().unwrap();
    gate.report(failed, Token, CallResult::Failure);
    for caller in in_flight {
        gate.report(caller, Token, CallResult::Success);
    }
    let started = start_all(&mut gate, 9_000).len();
    assert!((40..=50).contains(&started), "{started}");
}

/// A gate in which an outage has just ended, with what was in flight then.
fn recovering_gate(hung: u64) -> TestGate {
    let mut gate = warm_gate();
    for caller in 0..hung {
        assert!(gate.try_start(1_000 + caller, Token));
    }
    for caller in 1..=5 {
        gate.call(caller, Token, CallResult::Failure);
    }
    assert!(gate.state.open_cause().is_some());
    gate.wait(1);
    gate.later(3_000);
    gate.call(1, Token, CallResult::Success);
    assert!(gate.state.open_cause().is_none());
    gate
}

#[test]
fn recovery_ends_although_another_workflow_fails_each_time() {
    let mut gate = recovering_gate(0);
    for round in 0..200 {
        let (good, bad) = (2_000 + round, of_workflow(2, round));
        assert!(gate.try_start(good, Session), "{round}");
        if gate.try_start(bad, Session) {
            gate.report(bad, Session, CallResult::Failure);
        }
        gate.report(good, Session, CallResult::Success);
    }
    let started = (10_000..10_100).filter(|caller| gate.try_start(*caller, Session)).count();
    assert_eq!(started, 100);
}

#[test]
fn calls_that_hang_since_the_outage_leave_the_window_to_others() {
    let mut gate = recovering_gate(7);
    for caller in 2_000..2_020 {
        assert!(gate.try_start(caller, Token), "{caller}");
        gate.report(caller, Token, CallResult::Success);
    }
}
