//! Bucket bounds of the histograms.

/// Buckets in seconds, from a cache hit to a call that timed out.
pub(super) const DURATIONS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Buckets in seconds, from a reused link to a request that went through every retry queue.
pub(super) const END_TO_END: [f64; 15] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 1_800.0, 7_200.0, 21_600.0,
];
