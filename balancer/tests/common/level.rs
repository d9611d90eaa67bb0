//! What a balancer holds, as the kernel sees it.

use super::{Balancer, eventually};

/// Buffers that threads keep for reuse (4 MiB each) and what the allocator does not give back.
const RESIDENT_KB_SLACK: u64 = 12 << 10;

/// What a balancer held at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Level {
    descriptors: usize,
    resident_kb: u64,
}

impl Balancer {
    #[track_caller]
    pub fn level(&self) -> Level {
        let threads = self.status()["threads"].as_u64().expect("a number") as usize;
        // A driver and a spare descriptor for each thread, and the driver of the probes.
        eventually("every thread has what it needs", || self.anonymous_descriptors() > 2 * threads);
        Level { descriptors: self.descriptors(), resident_kb: self.resident_kb() }
    }

    /// Waits until nothing is in flight, and no more is held than at `level`. Connections kept for the next request
    /// are given up after four seconds, and sooner by what closes them.
    #[track_caller]
    pub fn returns_to(&self, level: &Level) {
        eventually("nothing is in flight", || self.in_flight() == 0);
        eventually("descriptors are back", || self.descriptors() <= level.descriptors);
        let resident_kb = self.resident_kb();
        assert!(resident_kb <= level.resident_kb + RESIDENT_KB_SLACK, "{resident_kb} KB, before {level:?}");
    }

    /// Requests in flight on all backends together.
    pub fn in_flight(&self) -> u64 {
        let status = self.status();
        let clusters = status["clusters"].as_object().expect("an object").values();
        let backends = clusters.flat_map(|cluster| cluster["backends"].as_array().expect("an array"));
        backends.map(|backend| backend["in_flight"].as_u64().expect("a number")).sum()
    }

    pub fn descriptors(&self) -> usize {
        self.descriptor_links().count()
    }

    fn anonymous_descriptors(&self) -> usize {
        self.descriptor_links()
            .filter(|link| {
                link.as_ref().is_some_and(|link| link.to_string_lossy().starts_with("anon_inode:"))
            })
            .count()
    }

    /// What descriptors lead to; `None` for one that was closed meanwhile.
    fn descriptor_links(&self) -> impl Iterator<Item = Option<std::path::PathBuf>> {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("its descriptors");
        folder.flatten().map(|entry| std::fs::read_link(entry.path()).ok())
    }

    pub fn resident_kb(&self) -> u64 {
        self.memory_kb("VmRSS:")
    }

    /// The most that was resident since the last call.
    pub fn resident_kb_max(&self) -> u64 {
        let most = self.memory_kb("VmHWM:");
        // 5 resets that mark (proc(5)).
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("reset");
        most
    }

    fn memory_kb(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        let line = status.lines().find(|line| line.starts_with(key)).expect("a size");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    }

    /// Time on a CPU so far, in hundredths of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("its times");
        // The name, in parentheses, may have spaces; user and system time are the 12th and 13th behind it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let number = |at: usize| fields[at].parse::<u64>().expect("a number");
        number(11) + number(12)
    }

    /// Sets the number below which all descriptors of the process must be; `None` for as many as there may be.
    pub fn limit_descriptors(&self, most: Option<u64>) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).expect("a pid");
        // The balancer has inherited the maximum of this process.
        let maximum = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let limit = rustix::process::Rlimit { current: most.or(maximum), maximum };
        rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, limit).expect("limited");
    }
}
