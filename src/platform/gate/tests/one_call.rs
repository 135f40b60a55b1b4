//! Refusals of the one-call flow.

use super::*;
use crate::session::Call::Deeplink;

/// What a refused call came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The request is at fault.
    Rejected,
    /// The pause goes on, or begins.
    Paused(Option<Change>),
}

const OPENED: Outcome = Outcome::Paused(Some(Change::Opened(Cause::Refused(Deeplink))));
const PAUSED: Outcome = Outcome::Paused(None);

impl TestGate {
    /// A call that is refused. The rules must allow it.
    fn refused(&mut self, caller: Caller, refusal: Refusal) -> Outcome {
        assert!(self.try_start(caller, Deeplink), "{caller:?} must wait");
        self.report_refused(caller, refusal)
    }

    fn report_refused(&mut self, caller: Caller, refusal: Refusal) -> Outcome {
        if self.state.refusals.blame(caller, refusal, self.now) {
            let change = self.report(caller, Deeplink, CallResult::Rejected);
            // The platform answers, so that it is not down.
            assert!(matches!(change, None | Some(Change::Closed)), "{change:?}");
            self.state.release_probe(caller);
            return Outcome::Rejected;
        }
        Outcome::Paused(self.report(caller, Deeplink, CallResult::Refused(refusal)))
    }

    fn good(&mut self, caller: Caller) -> Option<Change> {
        self.call(caller, Deeplink, CallResult::Success)
    }
}

#[test]
fn setting_that_is_refused_pauses_until_a_probe_is_answered_well() {
    let mut gate = TestGate::new();
    assert_eq!(gate.good(of_workflow(1, 1)), None);
    assert_eq!(gate.refused(of_workflow(1, 2), Refusal::Setting), OPENED);
    assert!(!gate.try_start(of_workflow(2, 1), Deeplink), "no other workflow fares better");
    for _ in 0..5 {
        assert_eq!(gate.later(31_000).refused(of_workflow(1, 2), Refusal::Setting), PAUSED);
    }
    assert_eq!(gate.later(31_000).good(of_workflow(1, 2)), Some(Change::Closed));
}

#[test]
fn wrong_url_pauses_and_any_good_answer_ends_the_first_such_pause() {
    let mut gate = TestGate::new();
    let late = of_workflow(3, 1);
    assert!(gate.try_start(late, Deeplink));
    assert_eq!(gate.refused(of_workflow(1, 1), Refusal::Missing), OPENED);
    for n in 1..9 {
        let prober = of_workflow(1, 1 + n);
        assert_eq!(gate.later(31_000).refused(prober, Refusal::Missing), PAUSED);
    }
    assert_eq!(gate.report(late, Deeplink, CallResult::Success), Some(Change::Closed));
    assert_eq!(gate.refused(of_workflow(1, 1), Refusal::Missing), Outcome::Rejected);
}

#[test]
fn unknown_workflow_pauses_nobody_once_a_good_answer_was_seen() {
    let mut gate = TestGate::new();
    assert_eq!(gate.good(of_workflow(1, 1)), None);
    for n in 0..100 {
        let refused = gate.later(10).refused(of_workflow(2, n % 7), Refusal::Missing);
        assert_eq!(refused, Outcome::Rejected);
    }
    assert_eq!(gate.state.open_cause(), None);
}

#[test]
fn five_missing_in_a_row_of_workflows_that_worked_pause_again() {
    let mut gate = TestGate::new();
    for workflow in 1..=3 {
        assert_eq!(gate.good(of_workflow(workflow, 1)), None);
    }
    for n in 0..4 {
        let refused = gate.refused(of_workflow(1 + n % 3, n), Refusal::Missing);
        assert_eq!(refused, Outcome::Rejected);
    }
    assert_eq!(gate.good(of_workflow(1, 9)), None, "it ends the row");
    for n in 0..4 {
        let refused = gate.refused(of_workflow(1 + n % 3, n), Refusal::Missing);
        assert_eq!(refused, Outcome::Rejected);
        let unknown = gate.refused(of_workflow(7, n), Refusal::Missing);
        assert_eq!(unknown, Outcome::Rejected, "it neither counts nor ends the row");
    }
    assert_eq!(gate.refused(of_workflow(1, 5), Refusal::Missing), OPENED);
    assert_eq!(gate.later(1_100).refused(of_workflow(1, 6), Refusal::Missing), PAUSED);
    assert_eq!(gate.later(2_100).refused(of_workflow(7, 6), Refusal::Missing), PAUSED);
    assert_eq!(gate.later(4_100).good(of_workflow(2, 1)), Some(Change::Closed));
    assert_eq!(gate.refused(of_workflow(1, 5), Refusal::Missing), Outcome::Rejected);
}

#[test]
fn forbidden_workflow_is_at_fault_once_another_is_answered_well_in_the_pause() {
    let mut gate = TestGate::new();
    let (forbidden, other) = (of_workflow(1, 1), of_workflow(2, 1));
    assert_eq!(gate.good(other), None);
    assert!(gate.try_start(other, Deeplink));
    assert_eq!(gate.refused(forbidden, Refusal::Forbidden), OPENED);
    let began_before = gate.report(other, Deeplink, CallResult::Success);
    assert_eq!(began_before, None, "it began before the refusal");
    gate.wait(other);
    assert!(!gate.try_start(forbidden, Deeplink), "others probe first");
    gate.later(250).stop_waiting(other);
    assert_eq!(gate.good(other), Some(Change::Closed), "other workflows probe soon");
    for n in 1..4 {
        let refused = gate.later(20_000).refused(of_workflow(1, n), Refusal::Forbidden);
        assert_eq!(refused, Outcome::Rejected);
        assert_eq!(gate.good(other), None);
    }
    // Nothing has shown for a minute that the key is accepted.
    assert_eq!(gate.later(61_000).refused(forbidden, Refusal::Forbidden), OPENED);
    assert_eq!(gate.later(1_100).good(forbidden), Some(Change::Closed));
    assert_eq!(gate.refused(forbidden, Refusal::Forbidden), OPENED, "it worked in the meantime");
}

#[test]
fn rejected_request_does_not_end_a_pause_for_refusals() {
    let mut gate = TestGate::new();
    assert_eq!(gate.refused(of_workflow(1, 1), Refusal::Setting), OPENED);
    assert_eq!(gate.later(1_100).call(2, Deeplink, CallResult::Rejected), None);
    assert_eq!(gate.state.open_cause(), Some(Cause::Refused(Deeplink)));
}

#[test]
fn outage_of_the_one_call_is_probed_by_other_workflows_first() {
    let mut gate = TestGate::new();
    gate.open(Deeplink);
    gate.wait(of_workflow(2, 1));
    assert!(!gate.later(250).try_start(1, Deeplink));
    gate.stop_waiting(of_workflow(2, 1));
    assert_eq!(gate.good(of_workflow(2, 1)), Some(Change::Closed));
}

#[test]
fn pause_without_a_held_request_is_half_open_at_the_next_interval() {
    for refusal in [Refusal::Setting, Refusal::Forbidden] {
        let mut gate = TestGate::new();
        let caller = of_workflow(1, 1);
        assert_eq!(gate.refused(caller, refusal), OPENED);
        gate.wait(caller);
        gate.later(31_000);
        assert_eq!(gate.state.half_open_if_due(gate.now), Err(Decision::Wait), "one is held");
        gate.stop_waiting(caller);
        let soon = gate.state.half_open_if_due(gate.now);
        assert!(
            matches!(soon, Err(Decision::WaitUntil(_))),
            "it may be back in a moment: {soon:?}"
        );
        gate.later(3_100);
        assert_eq!(gate.state.half_open_if_due(gate.now), Ok(Change::HalfOpenedForNext));
        assert_eq!(gate.state.open_cause(), None, "ready");
        assert_eq!(gate.state.half_open_if_due(gate.now), Err(Decision::Wait));
        // The next request is the probe, and the only one.
        assert!(gate.try_start(of_workflow(1, 2), Deeplink));
        assert!(!gate.try_start(of_workflow(2, 2), Deeplink));
        let reopened = gate.report_refused(of_workflow(1, 2), refusal);
        assert_eq!(reopened, Outcome::Paused(Some(Change::Reopened)));
        assert_eq!(gate.state.open_cause(), Some(Cause::Refused(Deeplink)));
        assert_eq!(gate.later(40_000).good(of_workflow(1, 3)), Some(Change::Closed));
    }
}

proptest! {
    /// No sequence of answers blocks the gate, and no request is at fault before the platform has answered well.
    #[test]
    fn no_sequence_of_refusals_blocks_the_gate(
        steps in prop::collection::vec((1u64..6, 0u8..9, 0u64..4_000), 0..200),
    ) {
        let mut gate = TestGate::new();
        let mut in_flight = vec![];
        let mut was_good = false;
        for (number, what, pause) in steps {
            gate.later(pause);
            let caller = of_workflow(number % 3, number);
            let refusal = [Refusal::Setting, Refusal::Forbidden, Refusal::Missing][number as usize % 3];
            match what {
                0..=2 => if gate.try_start(caller, Deeplink) { in_flight.push(caller) },
                3 => { let _ = gate.state.half_open_if_due(gate.now); }
                4 => gate.wait(caller),
                5 => gate.stop_waiting(caller),
                _ => if let Some(caller) = in_flight.pop() {
                    match what {
                        6 => {
                            gate.report(caller, Deeplink, CallResult::Success);
                            was_good = true;
                        }
                        7 => { gate.report(caller, Deeplink, CallResult::Failure); }
                        _ => {
                            let outcome = gate.report_refused(caller, refusal);
                            prop_assert!(was_good || outcome != Outcome::Rejected);
                        }
                    }
                }
            }
        }
        for caller in in_flight {
            gate.report_refused(caller, Refusal::Missing);
        }
        gate.later(60_000);
        prop_assert!(gate.try_start(of_workflow(9, 9), Deeplink));
    }
}
