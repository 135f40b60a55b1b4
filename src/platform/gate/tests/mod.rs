mod breaker;
mod fleet;
mod held;
mod one_call;
mod one_fails;
mod retry_after;
mod slow_start;
mod storm;
mod ticket;
mod worker_model;

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    decision::{CallResult, Caller, Cause, Change, Decision, FailureScope, Refusal},
    state::GateState,
};
use crate::session::Call::{self, Session, Token};

/// Callers of one workflow.
impl From<u64> for Caller {
    fn from(id: u64) -> Self {
        Self { id, workflow: 1 }
    }
}

/// A caller of another workflow.
fn of_workflow(workflow: u64, id: u64) -> Caller {
    Caller { id: 1_000 * workflow + id, workflow }
}

/// The gate's rules with a clock that only the test moves.
struct TestGate {
    state: GateState,
    now: Instant,
}

impl TestGate {
    fn new() -> Self {
        Self { state: GateState::new(64), now: Instant::now() }
    }

    fn wait(&mut self, caller: impl Into<Caller>) {
        self.state.start_waiting(caller.into(), self.now, self.now);
    }

    fn stop_waiting(&mut self, caller: impl Into<Caller>) {
        self.state.end_waiting(caller.into(), self.now);
    }

    fn later(&mut self, millis: u64) -> &mut Self {
        self.now += Duration::from_millis(millis);
        self
    }

    fn decide(&self, caller: impl Into<Caller>, call: Call) -> Decision {
        self.state.decide(caller.into(), call, self.now)
    }

    /// Starts a call if the rules allow it. Returns whether they did.
    fn try_start(&mut self, caller: impl Into<Caller>, call: Call) -> bool {
        let caller = caller.into();
        let decision = self.decide(caller, call);
        if decision.allows_call() {
            self.state.start_call(caller, decision, self.now);
        }
        decision.allows_call()
    }

    fn report(
        &mut self,
        caller: impl Into<Caller>,
        call: Call,
        result: CallResult,
    ) -> Option<Change> {
        let began_in_pause = self.state.is_paused(call, self.now);
        self.state.report(caller.into(), call, result, began_in_pause, self.now).0
    }

    /// Starts and reports a call, which the rules must allow, and returns what its failure says.
    fn scope(&mut self, caller: impl Into<Caller>, call: Call, result: CallResult) -> FailureScope {
        let caller = caller.into();
        let began_in_pause = self.state.is_paused(call, self.now);
        assert!(self.try_start(caller, call), "{caller:?} must wait");
        self.state.report(caller, call, result, began_in_pause, self.now).1
    }

    /// Starts and reports a call, which the rules must allow.
    fn call(
        &mut self,
        caller: impl Into<Caller>,
        call: Call,
        result: CallResult,
    ) -> Option<Change> {
        let caller = caller.into();
        let decision = self.decide(caller, call);
        assert!(self.try_start(caller, call), "{caller:?} must wait: {decision:?}");
        self.report(caller, call, result)
    }

    /// Opens the breaker with one failure each of five callers.
    fn open(&mut self, call: Call) {
        let changes: Vec<_> = (1..=5).map(|n| self.call(n, call, CallResult::Failure)).collect();
        assert_eq!(changes[..4], [None; 4]);
        assert_eq!(changes[4], Some(Change::Opened(Cause::Down(call))));
    }
}

proptest! {
    /// No sequence of calls blocks the gate: once the calls in flight end and a minute passes, a call
    /// may start.
    #[test]
    fn no_sequence_of_calls_blocks_the_gate(
        steps in prop::collection::vec((0u64..6, any::<bool>(), 0u8..8, 0u64..4_000), 0..200),
    ) {
        let mut gate = TestGate::new();
        let mut in_flight = vec![];
        for (number, token, what, pause) in steps {
            gate.later(pause);
            // The idle prober, or one of five callers of two workflows.
            let caller = match number {
                0 => Caller::IDLE,
                n => Caller { id: n, workflow: n % 2 },
            };
            let call = if token || number == 0 { Token } else { Session };
            match what {
                0 | 1 => if gate.try_start(caller, call) { in_flight.push((caller, call)) },
                5 => { gate.state.release_probe(caller); }
                6 => gate.wait(caller),
                7 => gate.stop_waiting(caller),
                _ => if let Some((caller, call)) = in_flight.pop() {
                    let result = match (what, call) {
                        (2, _) => CallResult::Success,
                        (3, Token) => CallResult::Refused(Refusal::Setting),
                        (3, Session) => CallResult::RateLimited(Duration::from_secs(number)),
                        _ => CallResult::Failure,
                    };
                    gate.report(caller, call, result);
                }
            }
        }
        for (caller, call) in in_flight {
            gate.report(caller, call, CallResult::Failure);
        }
        gate.later(60_000);
        prop_assert!(gate.try_start(9, Token));
    }
}
