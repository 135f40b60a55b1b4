//! Metrics of the process, read from `/proc` at each scrape; missing where there is no `/proc`.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Clock ticks per second in `/proc` (`USER_HZ`): 100 on x86_64 and aarch64.
const USER_HZ: f64 = 100.0;

#[derive(Debug)]
pub(super) struct ProcessCollector;

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
        // The second field, the program's name in parentheses, may contain spaces and parentheses.
        let fields: Vec<_> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        // proc_pid_stat(5): `utime`, `stime` and `starttime`.
        let [user, system, started] = [ticks(14)?, ticks(15)?, ticks(22)?];
        let booted = value_in("/proc/stat", "btime ")?;
        Some(Self {
            cpu_seconds: (user + system) / USER_HZ,
            start_time: booted as f64 + started / USER_HZ,
            resident_bytes: value_in("/proc/self/status", "VmRSS:")? * 1024,
            open_fds: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        })
    }
}

/// Returns the number in the first line of `file` that starts with `prefix`.
fn value_in(file: &str, prefix: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(prefix))?;
    rest.split_whitespace().next()?.parse().ok()
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let Some(usage) = Usage::read() else { return Ok(()) };
        let cpu = ConstCounter::new(usage.cpu_seconds);
        let help = "CPU time spent in user and system mode.";
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
        gauge("process_resident_memory_bytes", "Resident memory.", resident)?;
        gauge("process_open_fds", "Open file descriptors.", usage.open_fds as f64)?;
        gauge(
            "process_start_time_seconds",
            "Start of the process, as a Unix timestamp.",
            usage.start_time,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn usage_of_this_process_is_plausible() {
        let usage = Usage::read().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - usage.start_time).abs() < 3_600.0, "{usage:?} at {now}");
        assert!((0.0..3_600.0).contains(&usage.cpu_seconds), "{usage:?}");
        assert!((1 << 20..1 << 34).contains(&usage.resident_bytes), "{usage:?}");
        assert!((3..10_000).contains(&usage.open_fds), "{usage:?}");
    }
}
