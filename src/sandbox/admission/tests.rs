use rand::SeedableRng;

use super::*;
use crate::sandbox::faults::Fault;

const SECOND: Duration = Duration::from_secs(1);

fn decide(admission: &mut Admission, options: &Options, now: Instant) -> Treatment {
    admission.decide(Endpoint::Token, options, &mut StdRng::seed_from_u64(1), now)
}

fn limited(count: u32, per: Duration) -> Options {
    Options { rate_limit: Some(RateLimit { count, per }), ..Options::default() }
}

fn limit_reached(retry_after_s: u64) -> AdmissionAction {
    AdmissionAction::Answer(response(429, Some(retry_after_s)))
}

#[test]
fn a_call_is_served_by_default() {
    let decision = decide(&mut Admission::default(), &Options::default(), Instant::now());
    assert_eq!(decision, Treatment { latency: Duration::ZERO, action: AdmissionAction::Serve });
}

#[test]
fn the_rate_limit_says_when_to_retry() {
    let mut admission = Admission::default();
    let options = limited(2, 10 * SECOND);
    let start = Instant::now();
    let mut action = |at| decide(&mut admission, &options, start + at).action;
    assert_eq!(action(Duration::ZERO), AdmissionAction::Serve);
    assert_eq!(action(SECOND), AdmissionAction::Serve);
    assert_eq!(action(SECOND), limit_reached(9));
    assert_eq!(action(SECOND * 3 / 2), limit_reached(9));
    assert_eq!(action(SECOND * 10 - Duration::from_millis(1)), limit_reached(1));
    assert_eq!(action(SECOND * 10), AdmissionAction::Serve);
    assert_eq!(action(SECOND * 19), AdmissionAction::Serve);
    assert_eq!(action(SECOND * 19), limit_reached(1));
}

#[test]
fn calls_fail_at_the_failure_rate() {
    let mut admission = Admission::default();
    let mut rng = StdRng::seed_from_u64(1);
    let mut failures = |failure_rate| {
        let options = Options { failure_rate, ..Options::default() };
        let mut decide =
            || admission.decide(Endpoint::Session, &options, &mut rng, Instant::now()).action;
        (0..1000).filter(|_| decide() == AdmissionAction::Answer(response(503, None))).count()
    };
    assert_eq!(failures(0.0), 0);
    assert!((200..300).contains(&failures(0.25)));
    assert_eq!(failures(1.0), 1000);
}

#[test]
fn jitter_is_added_to_latency() {
    let options = Options { latency: SECOND, jitter: SECOND, ..Options::default() };
    let mut rng = StdRng::seed_from_u64(1);
    let mut admission = Admission::default();
    let latencies: Vec<_> = (0..100)
        .map(|_| admission.decide(Endpoint::Token, &options, &mut rng, Instant::now()).latency)
        .collect();
    assert!(latencies.iter().all(|latency| (SECOND..=2 * SECOND).contains(latency)));
    assert!(latencies.iter().any(|latency| *latency > SECOND * 3 / 2));
}

#[test]
fn a_fault_precedes_the_rate_limit_and_does_not_count_against_it() {
    let mut admission = Admission::default();
    let options = limited(1, SECOND);
    let now = Instant::now();
    admission.faults = Faults::token(Fault::close().after(SECOND).carried_out().times(1));
    assert_eq!(
        decide(&mut admission, &options, now),
        Treatment { latency: SECOND, action: AdmissionAction::ServeThenAnswer(Answer::Close) }
    );
    assert_eq!(decide(&mut admission, &options, now).action, AdmissionAction::Serve);
    assert_eq!(decide(&mut admission, &options, now).action, limit_reached(1));
}

#[test]
fn a_slow_call_is_still_served() {
    let mut admission = Admission { faults: Faults::token(Fault::slow(SECOND)), window: None };
    let decision = decide(&mut admission, &Options::default(), Instant::now());
    assert_eq!(decision, Treatment { latency: SECOND, action: AdmissionAction::Serve });
}
