//! A session call that was lost and sent again at once.

use super::error::CallError;

/// What became of a session call that was lost and sent again.
///
/// The lost call may have reached the platform, which may refuse another with the same token or key. That says
/// nothing about the request, and neither does one that did not get there: the loss is what happened.
pub(super) fn result_of_repeat<T>(
    lost: Result<T, CallError>,
    again: Result<T, CallError>,
) -> Result<T, CallError> {
    let may_have_arrived = |result: &Result<T, CallError>| {
        result.as_ref().is_err_and(CallError::may_have_reached_platform)
    };
    if again.is_ok() || may_have_arrived(&again) || !may_have_arrived(&lost) { again } else { lost }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{platform::error::TransientCause, session::Call};

    #[test]
    fn repeat_that_did_not_arrive_does_not_hide_that_the_first_call_may_have() {
        let closed = |sent| transient(TransientCause::Closed { sent });
        let timeout = |sent| transient(TransientCause::Timeout { sent });
        let unreachable = || transient(TransientCause::Connection);
        let conflict = || Err(CallError::Rejected(reqwest::StatusCode::CONFLICT));
        for (lost, again, expected) in [
            (closed(true), Ok(()), Ok(())),
            (closed(true), timeout(true), timeout(true)),
            (closed(true), closed(true), closed(true)),
            (closed(true), unreachable(), closed(true)),
            (closed(true), timeout(false), closed(true)),
            (closed(true), conflict(), closed(true)),
            (closed(true), Err(CallError::Unauthorized), closed(true)),
            // The platform has seen one call only, so that its answer counts.
            (closed(false), conflict(), conflict()),
            (closed(false), unreachable(), unreachable()),
        ] {
            assert_eq!(result_of_repeat(lost, again), expected);
        }
    }

    fn transient(cause: TransientCause) -> Result<(), CallError> {
        Err(CallError::Transient { call: Call::Session, cause })
    }
}
