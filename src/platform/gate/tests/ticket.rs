//! Tickets and permits of the gate itself, on tokio's paused clock.

use tokio::time::{advance, timeout};

use super::*;
use crate::{
    platform::{
        error::{CallError, TransientCause},
        gate::{FailedCall, FailureScope, Gate, Room},
    },
    telemetry::metrics::Metrics,
};

const REFUSED: CallError =
    CallError::Refused { call: Token, status: reqwest::StatusCode::UNAUTHORIZED };
const TIMEOUT: CallError =
    CallError::Transient { call: Session, cause: TransientCause::Timeout { sent: true } };

fn gate() -> Gate {
    Gate::new(None, 64, Metrics::new())
}

/// A gate whose breaker is open because a token call was refused.
async fn refused_gate() -> Gate {
    let gate = gate();
    let refused = gate.ticket("r-0", "w").acquire(Token).await.report::<()>(Err(REFUSED));
    assert_eq!(refused, Err(FailedCall { error: REFUSED, scope: FailureScope::Pause }));
    assert!(gate.is_breaker_open() && gate.is_paused());
    gate
}

#[tokio::test(start_paused = true)]
async fn dropped_ticket_ends_its_probe() {
    let gate = refused_gate().await;
    let mut ticket = gate.ticket("r-1", "w");
    assert!(ticket.acquire(Token).await.is_probe());
    drop(ticket);
    let mut again = gate.ticket("r-1", "w");
    let soon = timeout(Duration::from_secs(1), again.acquire(Token)).await;
    assert!(soon.is_err(), "the next probe is due after 2 s");
    assert!(again.acquire(Token).await.is_probe());
}

#[tokio::test(start_paused = true)]
async fn ticket_without_a_probe_does_not_end_that_of_its_caller() {
    let gate = refused_gate().await;
    // Of a request that follows another of the same user.
    let follower = gate.ticket("r-1", "w");
    let mut leader = gate.ticket("r-1", "w");
    let probe = leader.acquire(Token).await;
    drop(follower);
    probe.report(Ok(())).unwrap();
    assert!(!gate.is_breaker_open(), "the leader's call was the probe");
}

#[tokio::test(start_paused = true)]
async fn request_without_a_budget_is_not_copied_every_second_while_slots_are_free() {
    let gate = gate();
    for n in 0..5 {
        let mut ticket = gate.ticket(&format!("r-{n}"), "w");
        ticket.acquire(Session).await.report::<()>(Err(TIMEOUT)).unwrap_err();
    }
    assert!(gate.is_breaker_open());
    let room = |is_full: bool| {
        let place = gate.ticket("r-1", "w").place();
        place.until_room_is_needed(move || is_full, Duration::ZERO, Duration::ZERO)
    };
    assert_eq!(timeout(Duration::from_secs(1), room(true)).await, Ok(Room::Failed));
    assert!(timeout(Duration::from_millis(2_900), room(false)).await.is_err());
    assert_eq!(timeout(Duration::from_secs(5), room(false)).await, Ok(Room::Failed));
}

#[tokio::test(start_paused = true)]
async fn success_of_a_probe_wakes_waiting_requests() {
    let gate = refused_gate().await;
    let mut probing = gate.ticket("r-1", "w");
    let probe = probing.acquire(Token).await;
    let mut waiting = gate.ticket("r-2", "w");
    let mut waiting = std::pin::pin!(waiting.acquire(Token));
    assert!(timeout(Duration::from_millis(1), &mut waiting).await.is_err());
    probe.report(Ok(())).unwrap();
    assert!(!gate.is_breaker_open());
    assert!(timeout(Duration::from_millis(1), waiting).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn failure_counts_as_during_a_pause_if_one_began_or_ended_meanwhile() {
    // A pause begins while the call is in flight.
    let healthy = gate();
    let mut in_flight = healthy.ticket("r-1", "w");
    let in_flight = in_flight.acquire(Token).await;
    let mut other = healthy.ticket("r-2", "w");
    let _ = other.acquire(Token).await.report::<()>(Err(REFUSED));
    let failed = in_flight.report::<()>(Err(TIMEOUT)).unwrap_err();
    assert_eq!(failed.scope, FailureScope::Pause);

    // A pause ends while the call, a probe, is in flight.
    let refused = refused_gate().await;
    let mut slow = refused.ticket("r-1", "w");
    let slow = slow.acquire(Token).await;
    let mut fast = refused.ticket("r-2", "w");
    fast.acquire(Token).await.report(Ok(())).unwrap();
    assert!(!refused.is_paused());
    let failed = slow.report::<()>(Err(TIMEOUT)).unwrap_err();
    assert_eq!(failed.scope, FailureScope::Pause);

    // No pause at all, and a rejection, which is about the request.
    let healthy = gate();
    let failed = healthy.ticket("r-1", "w").acquire(Session).await.report::<()>(Err(TIMEOUT));
    assert_ne!(failed.unwrap_err().scope, FailureScope::Pause);
    let refused = refused_gate().await;
    let rejected = CallError::Rejected(reqwest::StatusCode::NOT_FOUND);
    let failed = refused.ticket("r-1", "w").acquire(Session).await.report::<()>(Err(rejected));
    assert_ne!(failed.unwrap_err().scope, FailureScope::Pause);
}

#[tokio::test(start_paused = true)]
async fn idle_probe_is_needed_only_while_no_request_waits() {
    let gate = refused_gate().await;
    let needed = async || timeout(Duration::ZERO, gate.until_probe_needed(true)).await.is_ok();
    assert!(needed().await);
    {
        let mut ticket = gate.ticket("r-1", "w");
        let mut waiting = std::pin::pin!(ticket.acquire(Token));
        assert!(timeout(Duration::from_millis(1), &mut waiting).await.is_err());
        assert!(!needed().await);
    }
    assert!(needed().await);
    advance(Duration::from_secs(1)).await;
    let mut idle = gate.idle_ticket().await;
    idle.acquire_idle_probe().await.unwrap().report(Ok(())).unwrap();
    assert!(!needed().await, "the breaker is closed");
}
