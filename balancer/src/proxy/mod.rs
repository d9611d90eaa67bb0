//! A request's life: from a client's head to the backend's answer.
//!
//! One task per client connection. [`serve`] reads a head, `plan` decides what it asks for, `forward` picks a
//! backend (or lets the request wait for one, in `waiting`) and tries again elsewhere where that is safe,
//! `exchange` carries the two messages, each in a module of its own: `upload` and `head`. A small answer goes back
//! together with the next receive, so that a kept connection costs two wake-ups per request.
//!
//! Nothing here decides which backend is best, parses a head, or reads the clock but through `clock`.

mod answer;
mod client;
mod exchange;
mod flight;
mod forward;
mod head;
mod plan;
mod pump;
mod tunnel;
mod upload;
mod waiting;

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

pub(crate) use client::{Client, turn_away, turn_away_at_once};
pub(crate) use waiting::Waiting;

use crate::buffer::Buffer;
use crate::clock;
use crate::error::{Error, Side};
use crate::thread::{Count, Thread};
use answer::Answer;
use plan::{Meta, Plan};

/// What is left to do for a client once its request is answered.
pub(crate) enum Reply {
    /// Send these bytes, which end the answer.
    Send(Buffer, Then),
    /// The answer is sent already.
    Sent(Then),
    /// The answer is cut: reset the connection, so that it cannot be taken for a whole one.
    Abort,
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next request may come.
    Next,
    /// The client expects the close.
    Close,
    /// The client may still be sending: finish, and read for a while, so that a reset does not overtake the answer.
    Linger,
}

/// Serves one client connection until it closes.
pub(crate) async fn serve(mut client: Client, thread: Rc<Thread>) {
    loop {
        let reply = match client.next_plan(&thread).await {
            Ok(Some((meta, plan))) => answer(&mut client, &thread, &meta, plan).await,
            Ok(None) => return,
            Err(error) => {
                let meta = client.unread();
                refuse(&mut client, &thread, &meta, &error)
            }
        };
        client.record(&thread, &reply);
        let then = match reply {
            Reply::Send(buffer, Then::Next) => client.send_and_receive(&thread, buffer).await,
            Reply::Send(buffer, then) => client.send_last(&thread, buffer).await.then_some(then),
            Reply::Sent(then) => Some(then),
            Reply::Abort => return client.reset(),
        };
        match then {
            Some(Then::Next) => {}
            Some(Then::Linger) => return client.linger(&thread).await,
            Some(Then::Close) | None => return,
        }
    }
}

async fn answer(client: &mut Client, thread: &Thread, meta: &Meta, plan: Plan) -> Reply {
    thread.shared.totals.requests.fetch_add(1, Relaxed);
    match plan {
        Plan::Answer(answer) => own(client, thread, meta, &answer),
        Plan::Forward(job) => match forward::forward(client, thread, meta, job).await {
            Ok(reply) => reply,
            Err(failed) => {
                let meta = Meta { persists: meta.persists && failed.body_read, ..*meta };
                refuse(client, thread, &meta, &failed.error)
            }
        },
    }
}

/// Answers an error of a request of which nothing was answered yet.
fn refuse(client: &mut Client, thread: &Thread, meta: &Meta, error: &Error) -> Reply {
    if let Some(entry) = &mut client.entry {
        entry.set_error(error);
    }
    thread.shared.totals.refused.fetch_add(1, Relaxed);
    let Some(status) = error.status() else {
        thread.count(Count::Cancelled);
        return Reply::Abort;
    };
    // After a refused head nobody knows where the next one begins.
    let persists = meta.persists && error.side() != Side::Downstream;
    own(client, thread, &Meta { persists, ..*meta }, &Answer::error(status))
}

fn own(client: &mut Client, thread: &Thread, meta: &Meta, answer: &Answer) -> Reply {
    if let Some(entry) = &mut client.entry {
        entry.status = Some(answer.status());
    }
    thread.count(Count::Status(answer.status()));
    let mut buffer = thread.take_buffer();
    answer.write(buffer.end(), meta, clock::date());
    Reply::Send(buffer, if meta.persists { Then::Next } else { Then::Linger })
}
