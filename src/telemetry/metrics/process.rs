//! What the system says of this process, read when it is asked for. Linux tells it in `/proc`; where
//! there is none, these metrics are missing.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Clock ticks a second in `/proc`: fixed by Linux for all that read it, on every architecture we
/// build for.
const TICKS: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Process;

/// What it is found to be.
#[derive(Debug)]
struct Usage {
    cpu_seconds: f64,
    start_time: f64,
    resident_bytes: u64,
    open_fds: u64,
}

impl Usage {
    fn read() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field, a name in parentheses, may hold anything.
        let fields: Vec<_> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        let (user, system, started) = (ticks(14)?, ticks(15)?, ticks(22)?);
        let booted = value_in("/proc/stat", "btime ")?;
        Some(Self {
            cpu_seconds: (user + system) / TICKS,
            start_time: booted as f64 + started / TICKS,
            resident_bytes: value_in("/proc/self/status", "VmRSS:")? * 1024,
            open_fds: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        })
    }
}

/// The number after this beginning of a line.
fn value_in(file: &str, beginning: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(beginning))?;
    rest.split_whitespace().next()?.parse().ok()
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let Some(usage) = Usage::read() else { return Ok(()) };
        let cpu = ConstCounter::new(usage.cpu_seconds);
        let help = "Processor time spent, by the program and by the system for it.";
        cpu.encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            help,
            None,
            MetricType::Counter,
        )?)?;
        let mut gauge = |name, help, value: f64| {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(encoder)
        };
        let resident = usage.resident_bytes as f64;
        gauge("process_resident_memory_bytes", "Memory in use.", resident)?;
        gauge("process_open_fds", "Open files and sockets.", usage.open_fds as f64)?;
        gauge(
            "process_start_time_seconds",
            "When the process was started, as a Unix time.",
            usage.start_time,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn this_process_is_found_to_be_what_it_is() {
        let usage = Usage::read().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - usage.start_time).abs() < 3_600.0, "{usage:?} at {now}");
        assert!((0.0..3_600.0).contains(&usage.cpu_seconds), "{usage:?}");
        assert!((1 << 20..1 << 34).contains(&usage.resident_bytes), "{usage:?}");
        assert!((3..10_000).contains(&usage.open_fds), "{usage:?}");
    }
}
