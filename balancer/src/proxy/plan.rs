//! What a request asks for, decided from its head alone.

use std::rc::Rc;

use crate::buffer::Buffer;
use crate::http::{self, Body, Refusal, Request};
use crate::insight::Report;
use crate::site::Site;
use crate::thread::Thread;
use crate::{clock, page, status};

use super::answer::Answer;

/// What an answer must know of its request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meta {
    pub(crate) is_head: bool,
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub(crate) version: u8,
    /// Whether the connection stays open after the answer, as far as the client and the balancer are concerned.
    pub(crate) persists: bool,
    /// The client itself will close after the answer.
    pub(crate) client_closes: bool,
}

impl Default for Meta {
    /// Of a request that could not be read.
    fn default() -> Self {
        Self { is_head: false, version: 1, persists: false, client_closes: false }
    }
}

pub(crate) enum Plan {
    Answer(Answer),
    Forward(Job),
}

/// A request for a backend. Its head, as it will be sent, is in the client's `out`.
pub(crate) struct Job {
    pub(crate) site: Rc<Site>,
    pub(crate) cluster: usize,
    pub(crate) body: Body,
    pub(crate) is_idempotent: bool,
    pub(crate) expects_continue: bool,
    /// The protocols that the client offers to change to.
    pub(crate) upgrade: Option<Box<[u8]>>,
}

impl Job {
    /// Goes over to the configuration that has replaced the request's since it came, if that has the cluster as well;
    /// whether it did.
    pub(crate) fn follow(&mut self, thread: &Thread) -> bool {
        let site = thread.site();
        let name = &self.site.generation.clusters[self.cluster].config.name;
        let found = site.generation.clusters.iter().position(|shard| shard.config.name == *name);
        match found {
            Some(cluster) if site.generation.number != self.site.generation.number => {
                (self.site, self.cluster) = (site, cluster);
                true
            }
            _ => false,
        }
    }
}

/// Reads the head at the front of `bytes`, of which `searched` were seen before, and decides. `None` means that the
/// head is incomplete. The third value is the head's length. Writes the head to forward to `out`.
pub(crate) fn plan(
    bytes: &[u8],
    searched: usize,
    thread: &Thread,
    out: &mut Buffer,
    client: &str,
) -> Result<Option<(Meta, Plan, usize)>, Refusal> {
    let site = thread.site();
    let mut space = http::space();
    let limits = &site.generation.config.limits.head;
    let Some(request) = http::parse_request(bytes, searched, limits, &mut space)? else { return Ok(None) };
    let mut meta = Meta {
        is_head: request.is_head(),
        version: request.version,
        persists: request.persists && !thread.shared.is_draining(),
        client_closes: !request.persists,
    };
    let head_bytes = request.head_bytes;
    let cluster = match own_answer(&request, thread, &site) {
        Ok(cluster) => cluster,
        Err(answer) => {
            // Its body is not read, so the connection cannot go on.
            meta.persists &= request.body.is_done();
            return Ok(Some((meta, Plan::Answer(answer), head_bytes)));
        }
    };
    let rules = &site.generation.clusters[cluster].config.rules;
    http::write_request(out.end(), &request, rules, client)?;
    let job = Job {
        cluster,
        is_idempotent: request.is_idempotent(),
        expects_continue: request.expects_continue,
        upgrade: request.upgrade.map(Box::from),
        body: request.body,
        site,
    };
    Ok(Some((meta, Plan::Forward(job), head_bytes)))
}

/// A page of the balancer's own: its content type and its text.
type Page = fn(&Thread, &dyn Fn() -> Report) -> (&'static str, String);

/// The cluster that a request is for, or the answer of the balancer's own.
fn own_answer(request: &Request<'_, '_>, thread: &Thread, site: &Site) -> Result<usize, Answer> {
    if request.is_asterisk || request.max_forwards == Some(0) {
        return Err(Answer::options());
    }
    let generation = &site.generation;
    let segment = request.first_segment();
    let query = memchr::memchr(b'?', request.path).unwrap_or(request.path.len());
    let page: Page = match &request.path[..query] {
        b"/status" => |thread, report| (status::JSON, status::json(&thread.shared, Some(&report()))),
        b"/metrics" => |thread, _| (status::METRICS, status::metrics(&thread.shared)),
        b"/" | b"" if generation.catch_all.is_none() => {
            |thread, report| (page::HTML, page::html(&thread.shared, &report()))
        }
        _ => {
            return generation.route(segment).ok_or_else(|| {
                let names = generation.clusters.iter().map(|cluster| cluster.config.name.as_str());
                Answer::no_cluster(&names.collect::<Vec<_>>())
            });
        }
    };
    if !matches!(request.method, b"GET" | b"HEAD") {
        return Err(Answer::error(405));
    }
    let (content_type, text) = page(thread, &|| Report::of(site, clock::now()));
    Err(Answer::ok(content_type, text))
}
