mod breaker;
mod retry_after;
mod slow_start;
mod storm;
mod ticket;

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    decision::{CallResult, Caller, Cause, Change, Decision, IDLE_CALLER},
    state::GateState,
};
use crate::session::Call::{self, Session, Token};

/// The gate's rules with a clock that only the test moves.
struct TestGate {
    state: GateState,
    now: Instant,
}

impl TestGate {
    fn new() -> Self {
        Self { state: GateState::default(), now: Instant::now() }
    }

    fn later(&mut self, millis: u64) -> &mut Self {
        self.now += Duration::from_millis(millis);
        self
    }

    fn decide(&self, caller: Caller, call: Call) -> Decision {
        self.state.decide(caller, call, self.now)
    }

    /// Starts a call if the rules allow it. Returns whether they did.
    fn try_start(&mut self, caller: Caller, call: Call) -> bool {
        let decision = self.decide(caller, call);
        if decision.allows_call() {
            self.state.start_call(caller, decision, self.now);
        }
        decision.allows_call()
    }

    fn report(&mut self, caller: Caller, call: Call, result: CallResult) -> Option<Change> {
        self.state.report(caller, call, result, self.now)
    }

    /// Starts and reports a call, which the rules must allow.
    fn call(&mut self, caller: Caller, call: Call, result: CallResult) -> Option<Change> {
        let decision = self.decide(caller, call);
        assert!(self.try_start(caller, call), "{caller} must wait: {decision:?}");
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
        steps in prop::collection::vec((1u64..6, any::<bool>(), 0u8..6, 0u64..4_000), 0..200),
    ) {
        let mut gate = TestGate::new();
        let mut in_flight = vec![];
        for (caller, token, what, pause) in steps {
            gate.later(pause);
            let call = if token { Token } else { Session };
            match what {
                0 | 1 => if gate.try_start(caller, call) { in_flight.push((caller, call)) },
                5 => { gate.state.release_probe(caller); }
                _ => if let Some((caller, call)) = in_flight.pop() {
                    let result = match (what, call) {
                        (2, _) => CallResult::Success,
                        (3, Token) => CallResult::Refused,
                        (3, Session) => CallResult::RateLimited(Duration::from_secs(caller)),
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
