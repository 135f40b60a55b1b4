//! One workflow, or one caller, that fails while the platform serves the others.

use super::*;

#[test]
fn failures_of_one_workflow_do_not_count_while_another_is_served() {
    let mut gate = TestGate::new();
    gate.call(of_workflow(1, 1), Session, CallResult::Success);
    for n in 0..1_000 {
        let scope = gate.scope(of_workflow(2, n), Session, CallResult::Failure);
        assert_eq!(scope, FailureScope::Request);
        if n % 10 == 0 {
            gate.call(of_workflow(1, n), Session, CallResult::Success);
        }
        gate.later(1_000);
    }
    assert_eq!(gate.state.open_cause(), None);
}

#[test]
fn answer_to_another_workflow_counts_for_a_minute() {
    let mut gate = TestGate::new();
    gate.call(of_workflow(1, 1), Session, CallResult::Success);
    gate.later(60_000);
    for n in 0..20 {
        assert_eq!(gate.call(of_workflow(2, n), Session, CallResult::Failure), None);
    }
    gate.later(1);
    let opened = (0..5).find_map(|n| gate.call(of_workflow(2, n), Session, CallResult::Failure));
    assert_eq!(opened, Some(Change::Opened(Cause::Down(Session))));
}

#[test]
fn answer_to_the_same_workflow_proves_nothing() {
    let mut gate = TestGate::new();
    gate.call(of_workflow(2, 99), Session, CallResult::Success);
    let opened = (0..5).find_map(|n| gate.call(of_workflow(2, n), Session, CallResult::Failure));
    assert_eq!(opened, Some(Change::Opened(Cause::Down(Session))));
}

#[test]
fn outage_of_several_workflows_opens_the_breaker_at_once() {
    let mut gate = TestGate::new();
    for workflow in 1..=3 {
        gate.call(of_workflow(workflow, 1), Session, CallResult::Success);
    }
    let mut failures = 0;
    let opened = (0..100).find_map(|n| {
        failures += 1;
        gate.call(of_workflow(1 + n % 3, n), Session, CallResult::Failure)
    });
    assert_eq!(opened, Some(Change::Opened(Cause::Down(Session))));
    // Three to disprove each workflow but the last, and then a streak.
    assert!(failures <= 14, "{failures}");
}

#[test]
fn two_workflows_that_stop_working_disprove_an_idle_third() {
    let mut gate = TestGate::new();
    for workflow in 1..=3 {
        gate.call(of_workflow(workflow, 1), Session, CallResult::Success);
    }
    gate.later(1_000);
    let opened =
        (0..10).find_map(|n| gate.call(of_workflow(1 + n % 2, n), Session, CallResult::Failure));
    assert_eq!(opened, Some(Change::Opened(Cause::Down(Session))));
}

#[test]
fn three_workflows_that_fail_in_a_row_disprove_all_others() {
    let mut gate = TestGate::new();
    for workflow in 1..=16 {
        gate.call(of_workflow(workflow, 1), Session, CallResult::Success);
    }
    gate.later(1_000);
    let changes: Vec<_> =
        (1..=5).map(|n| gate.call(of_workflow(n, 2), Session, CallResult::Failure)).collect();
    assert_eq!(changes[..4], [None; 4]);
    assert_eq!(changes[4], Some(Change::Opened(Cause::Down(Session))));

    // With a session in between, they are not in a row.
    let mut gate = TestGate::new();
    for n in 0..100 {
        gate.call(of_workflow(n % 16, n), Session, CallResult::Success);
        gate.later(10);
        for _ in 0..2 {
            let failing = of_workflow(1 + n % 2, 1_000 + n);
            assert_eq!(gate.call(failing, Session, CallResult::Failure), None);
        }
    }
}

#[test]
fn failures_of_a_caller_at_fault_disprove_no_workflow() {
    let mut gate = TestGate::new();
    let (good, bad) = (of_workflow(1, 1), of_workflow(1, 2));
    gate.call(bad, Session, CallResult::Failure);
    gate.later(1).call(good, Session, CallResult::Success);
    for n in 0..10 {
        gate.later(1).call(bad, Session, CallResult::Failure);
        let other = of_workflow(2, n);
        assert_eq!(gate.scope(other, Session, CallResult::Failure), FailureScope::Request);
    }
    assert_eq!(gate.state.open_cause(), None);
}

#[test]
fn time_out_while_another_workflow_is_served_waits_briefly_to_see_whether_this_is_an_outage() {
    let mut gate = TestGate::new();
    for workflow in 1..=3 {
        gate.call(of_workflow(workflow, 1), Session, CallResult::Success);
    }
    let began = gate.later(1_000).now;
    for n in 2..=3 {
        assert!(gate.try_start(of_workflow(n, 2), Session));
    }
    gate.later(6_000);
    let report = |gate: &mut TestGate, n| {
        gate.state.report(of_workflow(n, 2), Session, CallResult::Timeout, false, gate.now).1
    };
    assert_eq!(report(&mut gate, 2), FailureScope::Undecided);
    let wait = |gate: &TestGate| gate.state.outage_wait(Session, began, gate.now);
    assert_eq!(wait(&gate), Duration::from_secs(1), "another call is in flight");
    gate.call(of_workflow(1, 2), Session, CallResult::Success);
    assert_eq!(wait(&gate), Duration::ZERO, "a session was made since");
}

#[test]
fn token_calls_and_lost_connections_depend_on_no_workflow() {
    for (call, result) in [(Token, CallResult::Failure), (Session, CallResult::Unreachable)] {
        let mut gate = TestGate::new();
        gate.call(of_workflow(1, 1), Session, CallResult::Success);
        let opened = (0..5).find_map(|n| gate.call(of_workflow(2, n), call, result));
        assert_eq!(opened, Some(Change::Opened(Cause::Down(call))), "{call:?}");
    }
}

#[test]
fn callers_that_fail_again_while_others_are_served_do_not_count() {
    let mut gate = TestGate::new();
    for round in 0..50 {
        for caller in 1..=4 {
            let scope = gate.scope(caller, Session, CallResult::Failure);
            let first = round == 0;
            assert_eq!(scope == FailureScope::Undecided, first, "{round}");
        }
        gate.later(10).call(9, Session, CallResult::Success);
    }
    // Without an answer in between, they count: the platform has gone down.
    for caller in 1..=4 {
        gate.call(caller, Session, CallResult::Failure);
    }
    let opened = (1..=9).find_map(|n| gate.call(n, Session, CallResult::Failure));
    assert_eq!(opened, Some(Change::Opened(Cause::Down(Session))));
}

#[test]
fn first_closed_connection_of_a_caller_does_not_count() {
    let mut gate = TestGate::new();
    for caller in 1..=100 {
        assert_eq!(gate.call(caller, Session, CallResult::Closed), None);
        gate.call(caller, Session, CallResult::Success);
    }
    // A platform that closes every connection is down.
    for caller in 1..=5 {
        assert_eq!(gate.call(caller, Token, CallResult::Closed), None);
    }
    let opened = (1..=5).find_map(|n| gate.call(n, Token, CallResult::Closed));
    assert_eq!(opened, Some(Change::Opened(Cause::Down(Token))));
}

proptest! {
    /// While one workflow is served at least every minute, failures of others never open the breaker.
    #[test]
    fn one_good_workflow_keeps_the_breaker_closed(
        steps in prop::collection::vec((2u64..6, 0u64..50, 0u64..5_000, any::<bool>()), 0..300),
    ) {
        let mut gate = TestGate::new();
        gate.call(of_workflow(1, 1), Session, CallResult::Success);
        let mut served = gate.now;
        for (workflow, caller, pause, timeout) in steps {
            gate.later(pause);
            if gate.now - served > Duration::from_secs(55) {
                gate.call(of_workflow(1, 1), Session, CallResult::Success);
                served = gate.now;
            }
            let result = if timeout { CallResult::Timeout } else { CallResult::Failure };
            let scope = gate.scope(of_workflow(workflow, caller), Session, result);
            // One that times out waits a moment, since it may be among the first of an outage.
            let may_wait = timeout && scope == FailureScope::Undecided;
            prop_assert!(may_wait || scope == FailureScope::Request, "{:?}", scope);
            prop_assert_eq!(gate.state.open_cause(), None);
        }
    }
}
