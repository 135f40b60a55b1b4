mod storm;

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    IDLE,
    breaker::Cause,
    state::{CallResult, Caller, Change, Decision, State},
};
use crate::session::Call::{self, Session, Token};

/// A gate and a clock.
struct Scene {
    state: State,
    now: Instant,
}

impl Scene {
    fn new() -> Self {
        Self { state: State::default(), now: Instant::now() }
    }

    fn later(&mut self, millis: u64) -> &mut Self {
        self.now += Duration::from_millis(millis);
        self
    }

    fn decide(&self, caller: Caller, call: Call) -> Decision {
        self.state.decide(caller, call, self.now)
    }

    /// Enters if it may. Whether it did.
    fn enters(&mut self, caller: Caller, call: Call) -> bool {
        let decision = self.decide(caller, call);
        let goes = matches!(decision, Decision::Go | Decision::Probe);
        if goes {
            self.state.enter(caller, decision, self.now);
        }
        goes
    }

    fn report(&mut self, caller: Caller, call: Call, met: CallResult) -> Option<Change> {
        self.state.report(caller, call, met, self.now)
    }

    /// One whole call, which must be let through.
    fn call(&mut self, caller: Caller, call: Call, met: CallResult) -> Option<Change> {
        assert!(self.enters(caller, call), "{caller} is held at {:?}", self.decide(caller, call));
        self.report(caller, call, met)
    }

    /// Fails for so many callers, one after the other, until that shuts the gate.
    fn shut(&mut self, call: Call) {
        let changes: Vec<_> = (1..=5).map(|n| self.call(n, call, CallResult::Failure)).collect();
        assert_eq!(changes[..4], [None; 4]);
        assert_eq!(changes[4], Some(Change::OpenBreaker(Cause::Down(call))));
    }
}

#[test]
fn failures_in_a_row_over_several_requests_shut_it() {
    let mut gate = Scene::new();
    for caller in [1, 2, 1, 2, 1, 2, 1, 2] {
        assert_eq!(gate.call(caller, Token, CallResult::Failure), None, "of two requests alone");
    }
    assert_eq!(
        gate.call(3, Token, CallResult::Failure),
        Some(Change::OpenBreaker(Cause::Down(Token)))
    );
    assert!(!gate.enters(4, Token) && !gate.enters(4, Session));
}

#[test]
fn a_good_answer_begins_a_new_row() {
    let mut gate = Scene::new();
    for caller in 1..=4 {
        gate.call(caller, Session, CallResult::Failure);
    }
    // That tokens are given says nothing about sessions.
    gate.call(5, Token, CallResult::Success);
    assert_eq!(
        gate.call(5, Session, CallResult::Failure),
        Some(Change::OpenBreaker(Cause::Down(Session)))
    );

    let mut gate = Scene::new();
    for caller in 1..=4 {
        gate.call(caller, Token, CallResult::Failure);
    }
    gate.call(5, Session, CallResult::Success);
    assert_eq!(gate.call(5, Token, CallResult::Failure), None);
}

#[test]
fn failures_far_apart_are_no_row() {
    let mut gate = Scene::new();
    for caller in 1..=20 {
        assert_eq!(gate.later(61_000).call(caller, Token, CallResult::Failure), None);
    }
}

#[test]
fn one_at_a_time_finds_out_and_all_follow_a_good_answer() {
    let mut gate = Scene::new();
    gate.shut(Token);
    assert!(matches!(gate.decide(1, Token), Decision::WaitUntil(_)));
    gate.later(1_000);
    assert_eq!(gate.decide(1, Token), Decision::Probe);
    assert!(gate.enters(1, Token));
    assert!(!gate.enters(2, Token), "one is at it");
    assert_eq!(gate.report(1, Token, CallResult::Failure), None);
    gate.later(3_000);
    assert!(gate.enters(2, Token));
    assert_eq!(gate.report(2, Token, CallResult::Success), Some(Change::Opened));
    assert!(gate.enters(3, Token));
}

#[test]
fn who_probes_goes_on_with_its_next_call() {
    let mut gate = Scene::new();
    gate.shut(Session);
    gate.later(1_000);
    assert_eq!(gate.call(1, Token, CallResult::Success), None, "sessions are what is missing");
    assert!(!gate.enters(2, Token));
    assert_eq!(gate.call(1, Session, CallResult::Success), Some(Change::Opened));
}

#[test]
fn who_probed_in_vain_lets_others_go_first() {
    let mut gate = Scene::new();
    gate.shut(Token);
    gate.later(750);
    gate.call(1, Token, CallResult::Failure);
    let Decision::WaitUntil(others) = gate.decide(2, Token) else { panic!("too early") };
    let Decision::WaitUntil(own) = gate.decide(1, Token) else { panic!("too early") };
    assert!(own > others);
}

#[test]
fn a_probe_that_gives_up_makes_room() {
    let mut gate = Scene::new();
    gate.shut(Token);
    gate.later(750);
    assert!(gate.enters(1, Token));
    gate.state.abandoned();
    assert!(gate.state.forget(1));
    assert!(!gate.state.forget(1));
    assert!(gate.later(3_000).enters(2, Token));
}

#[test]
fn a_probe_that_is_not_answered_does_not_keep_the_next_back() {
    let mut gate = Scene::new();
    gate.shut(Token);
    assert!(gate.later(750).enters(1, Token));
    assert!(gate.later(3_000).enters(2, Token));
    assert_eq!(gate.report(1, Token, CallResult::Success), Some(Change::Opened));
}

#[test]
fn probes_are_at_most_three_seconds_apart() {
    let mut gate = Scene::new();
    gate.shut(Token);
    let mut probes = 0;
    for step in 0..6_000 {
        let caller = 1 + step % 4;
        if gate.enters(caller, Token) {
            gate.report(caller, Token, CallResult::Failure);
            probes += 1;
        }
        gate.later(10);
    }
    assert!((20..=23).contains(&probes), "{probes} in a minute");
}

#[test]
fn one_request_alone_does_not_keep_it_shut() {
    let mut gate = Scene::new();
    gate.shut(Session);
    assert_eq!(gate.later(1_000).call(1, Session, CallResult::Failure), None);
    assert_eq!(gate.later(3_100).call(1, Session, CallResult::Failure), None);
    assert_eq!(gate.later(3_100).call(1, Session, CallResult::Failure), Some(Change::Doubted));
    // Now it spends its own budget.
    assert_eq!(gate.call(1, Session, CallResult::Failure), None);
}

#[test]
fn without_requests_a_token_shows_enough() {
    let mut gate = Scene::new();
    gate.shut(Session);
    for _ in 0..5 {
        assert_eq!(gate.later(3_100).call(IDLE, Token, CallResult::Failure), None);
    }
    assert_eq!(gate.later(3_100).call(IDLE, Token, CallResult::Success), Some(Change::Opened));
}

#[test]
fn a_refused_token_shuts_it_at_once_and_only_a_later_token_opens_it() {
    let mut gate = Scene::new();
    assert!(gate.enters(1, Token) && gate.enters(2, Token));
    assert_eq!(
        gate.report(1, Token, CallResult::Refusal),
        Some(Change::OpenBreaker(Cause::Refused))
    );
    assert_eq!(gate.report(2, Token, CallResult::Success), None, "it was under way before");
    assert!(!gate.enters(3, Token));
    // Who has a token goes on.
    assert_eq!(gate.call(2, Session, CallResult::Success), None);
    for _ in 0..10 {
        assert_eq!(gate.later(31_000).call(1, Token, CallResult::Refusal), None, "told once");
    }
    assert_eq!(gate.later(31_000).call(1, Token, CallResult::Success), Some(Change::Opened));
}

#[test]
fn probes_of_a_wrong_key_come_ever_more_rarely() {
    let mut gate = Scene::new();
    gate.call(1, Token, CallResult::Refusal);
    let mut last = gate.now;
    let mut pauses = vec![];
    while pauses.len() < 8 {
        if gate.enters(1 + pauses.len() as u64 % 2, Token) {
            gate.report(1 + pauses.len() as u64 % 2, Token, CallResult::Refusal);
            pauses.push((gate.now - last).as_secs());
            last = gate.now;
        }
        gate.later(100);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
}

#[test]
fn a_platform_that_is_back_but_refuses_us_is_another_matter() {
    let mut gate = Scene::new();
    gate.shut(Token);
    assert_eq!(
        gate.later(1_000).call(1, Token, CallResult::Refusal),
        Some(Change::OpenBreaker(Cause::Refused))
    );
}

#[test]
fn nobody_calls_before_the_time_the_platform_asked_for() {
    let mut gate = Scene::new();
    gate.call(1, Token, CallResult::Success);
    gate.call(1, Session, CallResult::Later(Duration::from_secs(20)));
    assert!(gate.state.asked_to_wait(gate.now) && gate.state.open_cause().is_none());
    for call in [Token, Session] {
        assert!(matches!(gate.decide(2, call), Decision::WaitUntil(_)));
    }
    // The longest wish counts.
    gate.state.enter(3, Decision::Go, gate.now);
    gate.report(3, Token, CallResult::Later(Duration::from_secs(1)));
    assert!(!gate.later(19_000).enters(2, Token));
    assert!(gate.later(1_000).enters(2, Token));
}

#[test]
fn a_platform_that_fails_and_names_a_time_is_down_all_the_same() {
    let mut gate = Scene::new();
    let mut calls = 0;
    for caller in (1..=500).cycle().take(6_000) {
        if gate.enters(caller, Token) {
            gate.report(caller, Token, CallResult::Away(Duration::from_secs(1)));
            calls += 1;
        }
        gate.later(10);
    }
    assert_eq!(gate.state.open_cause(), Some(Cause::Down(Token)));
    assert!(calls < 30, "{calls} in a minute");
    // One that works, and has enough, is not.
    let mut gate = Scene::new();
    for caller in 1..=20 {
        let pause = Duration::from_secs(1);
        assert_eq!(gate.later(1_000).call(caller, Token, CallResult::Later(pause)), None);
    }
}

#[test]
fn one_that_is_always_asked_to_call_later_does_not_hold_up_the_others() {
    let mut gate = Scene::new();
    let later = CallResult::Later(Duration::from_secs(20));
    gate.call(1, Session, later);
    gate.later(20_000).call(1, Session, later);
    gate.later(20_000);
    assert!(!gate.enters(1, Session), "others first");
    for caller in 2..100 {
        gate.call(caller, Session, CallResult::Success);
    }
    assert!(gate.later(2_000).enters(1, Session));
}

#[test]
fn a_refusing_platform_that_fails_is_looked_at_again_soon() {
    let mut gate = Scene::new();
    gate.call(1, Token, CallResult::Refusal);
    for _ in 0..6 {
        gate.later(31_000).call(1, Token, CallResult::Refusal);
    }
    gate.later(31_000).call(1, Token, CallResult::Failure);
    assert_eq!(gate.later(1_100).call(1, Token, CallResult::Success), Some(Change::Opened));
}

#[test]
fn the_first_failures_of_an_outage_may_be_the_beginning_of_a_pause() {
    let mut gate = Scene::new();
    let began = gate.now;
    gate.call(1, Session, CallResult::Failure);
    let moment = gate.state.outage_wait(Session, began);
    assert!(moment > Duration::ZERO, "others may be about to come");
    assert!(gate.later(1).enters(2, Session));
    assert!(gate.state.outage_wait(Session, began) > moment, "another call may fail, too");
    gate.later(1).report(2, Session, CallResult::Success);
    assert!(gate.enters(3, Session));
    assert_eq!(gate.state.outage_wait(Session, began), Duration::ZERO, "others are served");
    let began = gate.later(1).now;
    gate.report(3, Session, CallResult::Failure);
    gate.call(4, Session, CallResult::Failure);
    assert!(gate.state.outage_wait(Session, began) > moment, "others fail, too");
}

#[test]
fn few_call_before_anybody_has_been_answered() {
    let mut gate = Scene::new();
    let went = (1..=100).filter(|caller| gate.enters(*caller, Token)).count();
    assert_eq!(went, 4);
    gate.report(1, Token, CallResult::Success);
    let went = (101..=200).filter(|caller| gate.enters(*caller, Token)).count();
    assert_eq!(went, 3, "one in the place of the first, and two more");
    for caller in 2..=4 {
        gate.report(caller, Token, CallResult::Success);
    }
    let went = (201..=300).filter(|caller| gate.enters(*caller, Token)).count();
    assert_eq!(went, 100);
}

#[test]
fn a_platform_that_is_slow_to_answer_is_called_by_all() {
    let mut gate = Scene::new();
    let went = (1..=100).filter(|caller| gate.enters(*caller, Token)).count();
    assert_eq!(went, 4);
    assert!(!gate.later(400).enters(5, Token));
    assert_eq!(gate.decide(5, Token), Decision::WaitUntil(gate.now + Duration::from_millis(100)));
    let went = (5..=100).filter(|caller| gate.later(100).enters(*caller, Token)).count();
    assert_eq!(went, 96);
}

#[test]
fn an_outage_from_the_start_costs_as_many_calls_as_it_takes_to_notice() {
    let mut gate = Scene::new();
    let mut calls = 0;
    let mut under_way = vec![];
    for caller in 1..=500 {
        if gate.enters(caller, Token) {
            calls += 1;
            under_way.push(caller);
        }
        if caller % 7 == 0
            && let Some(first) = under_way.pop()
        {
            gate.report(first, Token, CallResult::Failure);
        }
    }
    assert!(gate.state.open_cause().is_some());
    assert_eq!(calls, 5);
}

proptest! {
    /// Whatever happens, nobody waits for ever: time alone, or the end of what is under way, lets
    /// somebody through.
    #[test]
    fn somebody_always_gets_through(
        steps in prop::collection::vec((1u64..6, any::<bool>(), 0u8..6, 0u64..4_000), 0..200),
    ) {
        let mut gate = Scene::new();
        let mut under_way = vec![];
        for (caller, token, what, pause) in steps {
            gate.later(pause);
            let call = if token { Token } else { Session };
            match what {
                0 | 1 => if gate.enters(caller, call) { under_way.push((caller, call)) },
                5 => { gate.state.forget(caller); }
                _ => if let Some((caller, call)) = under_way.pop() {
                    let met = match (what, call) {
                        (2, _) => CallResult::Success,
                        (3, Token) => CallResult::Refusal,
                        (3, Session) => CallResult::Later(Duration::from_secs(caller)),
                        _ => CallResult::Failure,
                    };
                    gate.report(caller, call, met);
                }
            }
        }
        for (caller, call) in under_way {
            gate.report(caller, call, CallResult::Failure);
        }
        gate.later(60_000);
        prop_assert!(gate.enters(9, Token));
    }
}
