//! Searches an error and the errors that caused it.

use std::{error::Error, io, iter::successors, sync::Arc};

/// The type in which the redis crate keeps an error's source.
pub(crate) type SharedError = Arc<dyn Error + Send + Sync>;

/// The error, the error that caused it, and so on.
pub(crate) fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |error| cause(*error))
}

fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    // `source` of these two types skips the error that they wrap and returns its source.
    if let Some(shared) = error.downcast_ref::<SharedError>() {
        return Some(&**shared);
    }
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// The first error of this type in the chain.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// Whether the name of a host could not be resolved.
pub(crate) fn is_unknown_host(error: &io::Error) -> bool {
    // `ErrorKind` has no variant for it.
    error.kind().to_string() == "uncategorized error"
}
