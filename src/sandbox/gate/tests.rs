use rand::SeedableRng;

use super::*;
use crate::sandbox::faults::Fault;

const SECOND: Duration = Duration::from_secs(1);

fn rule(gate: &mut Gate, options: &Options, now: Instant) -> Ruling {
    gate.rule(Call::Token, options, &mut StdRng::seed_from_u64(1), now)
}

fn limited(count: u32, per: Duration) -> Options {
    Options { rate_limit: Some(RateLimit { count, per }), ..Options::default() }
}

fn refused(retry_after: u64) -> Course {
    Course::Instead(response(429, Some(retry_after)))
}

#[test]
fn a_call_is_let_through() {
    let ruling = rule(&mut Gate::default(), &Options::default(), Instant::now());
    assert_eq!(ruling, Ruling { latency: Duration::ZERO, course: Course::Work });
}

#[test]
fn the_rate_limit_says_when_to_come_back() {
    let mut gate = Gate::default();
    let options = limited(2, 10 * SECOND);
    let start = Instant::now();
    let mut course = |at| rule(&mut gate, &options, start + at).course;
    assert_eq!(course(Duration::ZERO), Course::Work);
    assert_eq!(course(SECOND), Course::Work);
    assert_eq!(course(SECOND), refused(9));
    assert_eq!(course(SECOND * 3 / 2), refused(9));
    assert_eq!(course(SECOND * 10 - Duration::from_millis(1)), refused(1));
    assert_eq!(course(SECOND * 10), Course::Work);
    assert_eq!(course(SECOND * 19), Course::Work);
    assert_eq!(course(SECOND * 19), refused(1));
}

#[test]
fn failures_come_as_often_as_asked() {
    let mut gate = Gate::default();
    let mut rng = StdRng::seed_from_u64(1);
    let mut failures = |failure_rate| {
        let options = Options { failure_rate, ..Options::default() };
        let mut rule = || gate.rule(Call::Session, &options, &mut rng, Instant::now());
        (0..1000).filter(|_| rule().course == Course::Instead(response(503, None))).count()
    };
    assert_eq!(failures(0.0), 0);
    assert!((200..300).contains(&failures(0.25)));
    assert_eq!(failures(1.0), 1000);
}

#[test]
fn jitter_is_added_to_latency() {
    let options = Options { latency: SECOND, jitter: SECOND, ..Options::default() };
    let mut rng = StdRng::seed_from_u64(1);
    let mut gate = Gate::default();
    let latencies: Vec<_> = (0..100)
        .map(|_| gate.rule(Call::Token, &options, &mut rng, Instant::now()).latency)
        .collect();
    assert!(latencies.iter().all(|latency| (SECOND..=2 * SECOND).contains(latency)));
    assert!(latencies.iter().any(|latency| *latency > SECOND * 3 / 2));
}

#[test]
fn a_fault_goes_before_the_limit_and_spends_none_of_it() {
    let mut gate = Gate::default();
    let options = limited(1, SECOND);
    let now = Instant::now();
    gate.faults = Faults::token(Fault::close().after(SECOND).carried_out().times(1));
    assert_eq!(
        rule(&mut gate, &options, now),
        Ruling { latency: SECOND, course: Course::WorkThen(Answer::Close) }
    );
    assert_eq!(rule(&mut gate, &options, now).course, Course::Work);
    assert_eq!(rule(&mut gate, &options, now).course, refused(1));
}

#[test]
fn a_slow_call_still_answers() {
    let mut gate = Gate { faults: Faults::token(Fault::slow(SECOND)), window: None };
    let ruling = rule(&mut gate, &Options::default(), Instant::now());
    assert_eq!(ruling, Ruling { latency: SECOND, course: Course::Work });
}
