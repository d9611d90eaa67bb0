//! From request to response: health, the cluster's answer, counters and faults.
//!
//! | path | answer |
//! |---|---|
//! | `/` | 200, health |
//! | `/NAME`, `/NAME/...` | 200 after the work, for the worker's own cluster; the segment is compared byte by byte |
//! | `/admin/stats` | counters; open to everybody who reaches the port, for it can change nothing |
//! | `/admin/fault` | see `faults`; 404 unless the worker was started with a token and the call carries it |
//! | all others | 404 |
//!
//! A query string is ignored except by `/admin/fault`. All methods are answered alike; HEAD gets no body. Does not
//! decide how long a request takes, and does not decode percent signs, chunked bodies or `Expect`.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use may_minihttp::Response;
use serde_json::{Value, json};

use crate::{
    answer::Answer,
    args::Args,
    faults::Faults,
    machine::{Machine, process_cpu_time},
    request::{Ask, CLOSE},
};

const CONTENT_TYPE: &str = "content-type: application/json";

/// Request counters since the start.
#[derive(Debug, Default)]
struct Stats {
    /// Requests to the cluster, counted when they arrive, whatever the answer.
    requests: AtomicU64,
    /// Those of them answered with 500 or 503.
    errors: AtomicU64,
    /// Those of them not answered yet: queued, in service, delayed or stalled.
    open: AtomicU64,
}

/// Counts a request as open while it lives; also when its coroutine is unwound.
struct Open<'a>(&'a Stats);

impl Stats {
    fn receive(&self) -> Open<'_> {
        self.requests.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        Open(self)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct App {
    args: Args,
    slots: usize,
    machine: Machine,
    faults: Option<Faults>,
    stats: Stats,
    started: Instant,
    /// Bodies and the header field that never change; they live as long as the process.
    body: &'static str,
    health: &'static str,
    id_field: &'static str,
}

impl App {
    /// `slots` is how many requests the machine serves at once.
    pub(crate) fn new(args: Args, machine: Machine, slots: usize) -> Self {
        let (cluster, id) = (&args.cluster, &args.instance_id);
        Self {
            body: json!({ "cluster": cluster, "instance_id": id }).to_string().leak(),
            health: json!({ "status": "ok", "cluster": cluster, "instance_id": id }).to_string().leak(),
            id_field: format!("x-instance-id: {id}").leak(),
            faults: args.faults.clone().map(Faults::new),
            stats: Stats::default(),
            started: Instant::now(),
            slots,
            machine,
            args,
        }
    }

    /// The answer to a request whose body has been read; the calling coroutine waits for the work.
    pub(crate) fn answer(&self, ask: &Ask) -> Answer {
        match ask.path() {
            "/" => self.health(),
            "/admin/stats" => Answer::ok(self.stats().to_string()),
            "/admin/fault" => self.fault(ask),
            path if first_segment(path) == self.args.cluster => self.cluster(ask),
            _ => Answer::not_found(),
        }
    }

    /// Writes the answer to `ask`, without its body for HEAD.
    pub(crate) fn write(&self, answer: Answer, ask: &Ask, out: &mut Response) {
        out.status_code(answer.status.0, answer.status.1);
        out.header(CONTENT_TYPE).header(self.id_field);
        if let Some(field) = ask.connection_field() {
            out.header(field);
        }
        match answer.body {
            _ if ask.head => {}
            Cow::Borrowed(body) => out.body(body),
            Cow::Owned(body) => out.body_vec(body.into_bytes()),
        }
    }

    /// A whole answer as bytes, for a request after which nothing on its connection can be trusted.
    pub(crate) fn refusal(&self, answer: &Answer) -> String {
        let (code, reason) = answer.status;
        let (id, body) = (self.id_field, &answer.body);
        format!(
            "HTTP/1.1 {code} {reason}\r\n{CONTENT_TYPE}\r\n{id}\r\n{CLOSE}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn health(&self) -> Answer {
        if let Some(faults) = &self.faults {
            faults.wait_for_stall();
        }
        Answer::ok(self.health)
    }

    fn cluster(&self, ask: &Ask) -> Answer {
        let _open = self.stats.receive();
        let served = self.serve();
        if let Err(answer) = served {
            self.stats.errors.fetch_add(1, Relaxed);
            return answer;
        }
        match &ask.request_id {
            None => Answer::ok(self.body),
            Some(request_id) => Answer::ok(self.body_with(request_id)),
        }
    }

    fn body_with(&self, request_id: &str) -> String {
        let fields = self.body.trim_end_matches('}');
        format!("{fields},\"request_id\":{}}}", Value::from(request_id))
    }

    /// Does the work of one request, with the faults that are on.
    fn serve(&self) -> Result<(), Answer> {
        if let Some(faults) = &self.faults {
            faults.wait_for_stall();
            if faults.fails() {
                return Err(Answer::error(500, "Internal Server Error", "injected by /admin/fault"));
            }
        }
        let full = |_| Answer::error(503, "Service Unavailable", "too many requests wait already");
        self.machine.serve(self.args.work).map_err(full)?;
        let delay = self.faults.as_ref().map_or(Duration::ZERO, Faults::delay);
        if !delay.is_zero() {
            may::coroutine::sleep(delay);
        }
        Ok(())
    }

    fn fault(&self, ask: &Ask) -> Answer {
        let Some(faults) = self.faults.as_ref().filter(|faults| faults.allows(&ask.fault_token)) else {
            return Answer::not_found();
        };
        match faults.change(ask.query()) {
            Err(why) => Answer::error(400, "Bad Request", &why),
            Ok(settings) => {
                self.machine.set_factor(settings.speed);
                Answer::ok(settings.to_json().to_string())
            }
        }
    }

    fn stats(&self) -> Value {
        let load = self.machine.load();
        let kind = self.args.emulate;
        let speed = kind.map_or(1.0, |kind| kind.speed);
        let factor = self.faults.as_ref().map_or(1.0, |faults| faults.settings().speed);
        json!({
            "cluster": self.args.cluster,
            "instance_id": self.args.instance_id,
            "requests": self.stats.requests.load(Relaxed),
            "errors": self.stats.errors.load(Relaxed),
            "open": self.stats.open.load(Relaxed),
            "in_service": load.in_service,
            "queued": load.queued,
            "cpu_s": process_cpu_time().as_secs_f64(),
            "uptime_s": self.started.elapsed().as_secs_f64(),
            "type": kind.map(|kind| kind.name),
            "emulated": kind.is_some(),
            "slots": self.slots,
            "speed": speed * factor,
            "work_ms": self.args.work.as_secs_f64() * 1e3,
            "credits": self.machine.credits(),
            "faults": self.faults.as_ref().map(|faults| faults.settings().to_json()),
        })
    }
}

fn first_segment(path: &str) -> &str {
    let path = path.strip_prefix('/').unwrap_or("");
    path.split_once('/').map_or(path, |(first, _)| first)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use clap::Parser;

    use super::*;
    use crate::{
        capacity::{Fifo, QUEUE_MAX},
        types::InstanceType,
    };

    #[test]
    fn a_full_queue_is_answered_with_503_and_counted_as_an_error() {
        let args = ["worker", "--listen=127.0.0.1:0", "--cluster=c", "--instance-id=i", "--work=1s"];
        let now = Instant::now();
        let mut fifo = Fifo::new(&InstanceType::named("t2.micro").expect("a type"), false, now);
        for _ in 0..=QUEUE_MAX {
            fifo.admit(Duration::from_secs(60), now).expect("the queue has room");
        }
        let app = App::new(Args::parse_from(args), Machine::Emulated(Mutex::new(fifo)), 1);
        assert_eq!(app.answer(&Ask::get("/c")).status.0, 503);
        assert_eq!(app.answer(&Ask::get("/")).status.0, 200);
        let stats = app.stats();
        assert_eq!((&stats["requests"], &stats["errors"]), (&json!(1), &json!(1)));
        assert_eq!((&stats["in_service"], &stats["queued"]), (&json!(1), &json!(QUEUE_MAX)));
    }

    #[test]
    fn the_first_segment_is_compared_exactly() {
        for (path, segment) in [
            ("/cluster1", "cluster1"),
            ("/cluster1/", "cluster1"),
            ("/cluster1/a/b", "cluster1"),
            ("/cluster12", "cluster12"),
            ("//cluster1", ""),
            ("cluster1", ""),
            ("/", ""),
            ("*", ""),
            ("", ""),
        ] {
            assert_eq!(first_segment(path), segment, "{path}");
        }
    }
}
