//! What a service has cost its host: CPU time and memory of its processes, as /proc tells them.
//!
//! Read over SSH by a few lines of shell, so that it is the same on every provider. It does not sample: two calls
//! and a subtraction give what was used in between.

use rhai::{Dynamic, EvalAltResult, NativeCallContext};
use serde::Serialize;

use super::{Host, run, service};
use crate::{
    Error, Kind,
    error::Context as _,
    ssh::{Command, Session, quote},
};

type Raw<T> = Result<T, Box<EvalAltResult>>;

/// Prints, for the process in `$1` and all that descend from it, its `stat`, its largest and its own part of memory;
/// first the length of a clock tick. The memory of another user's process (a service under systemd) needs sudo.
/// Thirty generations are more than any service has.
const SCRIPT: &str = r#"getconf CLK_TCK
todo=$1 all= left=30
while [ -n "$todo" ] && [ $left -gt 0 ]; do
    all="$all $todo" left=$((left - 1)) next=
    for pid in $todo; do next="$next $(cat /proc/$pid/task/*/children 2>/dev/null)"; done
    todo=$(echo $next)
done
for pid in $all; do
    cat /proc/$pid/stat 2>/dev/null || continue
    grep VmHWM: /proc/$pid/status
    maps=/proc/$pid/smaps_rollup
    { cat $maps || sudo -n cat $maps; } 2>/dev/null | grep ^Pss:
done
true"#;

/// What a service's processes have used since they began.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
struct Usage {
    processes: u32,
    /// Of its processes, and of their children that have ended.
    user_s: f64,
    system_s: f64,
    cpu_s: f64,
    /// The largest resident memory that each has had, added up; pages that they share count in each.
    rss_bytes_peak: u64,
    /// Resident now, shared pages divided by the number that share them; `None` when that may not be read.
    pss_bytes: Option<u64>,
}

pub(super) fn usage(context: &NativeCallContext<'_>, host: &Host, service: &str) -> Raw<Dynamic> {
    let run = run(context)?;
    let usage = if run.lab.is_planning() {
        Usage::default()
    } else {
        run.wait(async {
            let session = run.sessions.get(&host.0).await?;
            read(&session, host, service).await
        })?
    };
    rhai::serde::to_dynamic(usage)
}

async fn read(session: &Session, host: &Host, service: &str) -> Result<Usage, Error> {
    let what = format!("usage of service {service} on {}", host.0.name);
    let pid = service::pid(session, service).await?.ok_or_else(|| {
        Error::host(format!("{what}: it is not running"))
            .with_hint(format!("labhost logs {} {service} shows what it printed.", host.0.name))
    })?;
    let line = format!("sh -c {} usage {pid}", quote(SCRIPT));
    let output = session.run(&Command { line, check: true, ..Command::default() }).await?;
    parse(&String::from_utf8_lossy(&output.stdout)).context(Kind::Host, || what)
}

/// Reads what [`SCRIPT`] prints.
fn parse(text: &str) -> Result<Usage, &'static str> {
    let mut lines = text.lines();
    let ticks: f64 = lines.next().and_then(|line| line.trim().parse().ok()).ok_or("no clock tick")?;
    let (mut usage, mut user, mut system, mut pss, mut pss_known) = (Usage::default(), 0, 0, 0, 0);
    for line in lines {
        if let Some(bytes) = kilobytes(line, "VmHWM:") {
            usage.rss_bytes_peak += bytes;
        } else if let Some(bytes) = kilobytes(line, "Pss:") {
            pss += bytes;
            pss_known += 1;
        } else {
            let times = times(line).ok_or("a line that is no process")?;
            usage.processes += 1;
            user += times[0] + times[2];
            system += times[1] + times[3];
        }
    }
    if usage.processes == 0 {
        return Err("its process has ended");
    }
    (usage.user_s, usage.system_s) = (user as f64 / ticks, system as f64 / ticks);
    usage.cpu_s = (user + system) as f64 / ticks;
    usage.pss_bytes = (pss_known == usage.processes).then_some(pss);
    Ok(usage)
}

/// `VmHWM:     2048 kB` in bytes.
fn kilobytes(line: &str, key: &str) -> Option<u64> {
    let number = line.strip_prefix(key)?.split_whitespace().next()?;
    Some(number.parse::<u64>().ok()? << 10)
}

/// utime, stime, cutime and cstime in ticks: fields 14 to 17 of proc_pid_stat(5). The name before them is in brackets
/// and may hold anything.
fn times(line: &str) -> Option<[u64; 4]> {
    let fields: Vec<_> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let times: Vec<u64> = fields.get(11..15)?.iter().map_while(|field| field.parse().ok()).collect();
    times.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str =
        "(a) b) S 1 7 7 0 -1 4194304 96 0 0 0 250 50 10 5 20 0 1 0 12345 5000000 800 18446744073709551615";

    #[test]
    fn processes_are_added_up() {
        let text = format!(
            "100\n7 {STAT}\nVmHWM:\t    2048 kB\nPss:    1000 kB\n8 {STAT}\nVmHWM: 1024 kB\nPss: 24 kB\n"
        );
        let usage = parse(&text).unwrap();
        assert_eq!((usage.processes, usage.user_s, usage.system_s, usage.cpu_s), (2, 5.2, 1.1, 6.3));
        assert_eq!((usage.rss_bytes_peak, usage.pss_bytes), (3 << 20, Some(1 << 20)));
    }

    #[test]
    fn memory_that_may_not_be_read_is_not_made_up() {
        let text = format!("100\n7 {STAT}\nVmHWM: 2048 kB\nPss: 9 kB\n8 {STAT}\nVmHWM: 2048 kB\n");
        assert_eq!(parse(&text).unwrap().pss_bytes, None);
    }

    #[test]
    fn what_is_no_process_is_refused() {
        for text in ["", "x\n", "100\n", "100\nSegmentation fault\n", "100\n7 (a) S 1 2\n"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
