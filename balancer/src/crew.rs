//! Tasks that serve one client after another.
//!
//! A task is an allocation of more than 4 KiB that is filled when it starts, which a connection per request would
//! notice: so a task that is done with a client waits for the next one. This module does not accept, count or limit
//! clients.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::proxy::{self, Client};
use crate::thread::Thread;

/// Tasks of one thread that wait for a client: as many as connections that end between two turns of the loop under
/// load. They hold 300 KiB; more end with their client.
const RESTING_MAX: usize = 64;

/// The tasks of one thread that wait for a client; the last one to come is the first one to go.
#[derive(Default)]
pub(crate) struct Crew(RefCell<Vec<Rc<Seat>>>);

/// Where a waiting task finds its next client.
#[derive(Default)]
struct Seat {
    client: Cell<Option<Client>>,
    waiting: Cell<Option<Waker>>,
}

impl Crew {
    /// Gives a client to a waiting task; back if there is none.
    pub(crate) fn take_on(&self, client: Client) -> Option<Client> {
        let Some(seat) = self.0.borrow_mut().pop() else { return Some(client) };
        seat.client.set(Some(client));
        if let Some(waker) = seat.waiting.take() {
            waker.wake();
        }
        None
    }

    /// Ends all waiting tasks, which would otherwise keep their thread's state for ever.
    pub(crate) fn dismiss(&self) {
        for seat in self.0.take() {
            // The waker holds the task, which holds the seat.
            seat.waiting.take();
        }
    }

    fn rest(&self, seat: &Rc<Seat>) -> bool {
        let mut resting = self.0.borrow_mut();
        let has_room = resting.len() < RESTING_MAX;
        if has_room {
            resting.push(Rc::clone(seat));
        }
        has_room
    }
}

/// Serves `client`, then whoever is given to this task.
pub(crate) async fn work(mut client: Client, thread: Rc<Thread>) {
    let seat = Rc::new(Seat::default());
    loop {
        proxy::serve(client, Rc::clone(&thread)).await;
        if !thread.crew.rest(&seat) {
            return;
        }
        client = next(&seat).await;
    }
}

async fn next(seat: &Seat) -> Client {
    poll_fn(|cx| match seat.client.take() {
        Some(client) => Poll::Ready(client),
        None => {
            seat.waiting.set(Some(cx.waker().clone()));
            Poll::Pending
        }
    })
    .await
}
