//! The request on its way to the backend, driven beside the answer's way back.
//!
//! This module does not decide what becomes of a request that was not sent whole, and moves no bytes itself: `pump`
//! does.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::os::fd::RawFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use super::pump::PumpError;
use crate::buffer::Buffer;
use crate::error::Error;
use crate::watch::Deadline;

/// How the sending ended, with the buffer last sent.
pub(super) type Uploaded = (Result<(), PumpError>, Buffer);

/// A request being sent by `future`.
pub(super) struct Upload<'a, F> {
    future: Pin<&'a mut F>,
    done: Option<Uploaded>,
    uploading: &'a Cell<bool>,
    /// Of the answer's head; armed with `wait` once the request is sent, since only then the backend owes an answer.
    deadline: Deadline,
    client: RawFd,
    wait: Duration,
}

impl<'a, F: Future<Output = Uploaded>> Upload<'a, F> {
    /// `uploading` is false from when the whole request is sent. `deadline` is that of the answer's head, which may
    /// take `wait` from then on, and no longer than `client` stays.
    pub(super) fn new(
        future: Pin<&'a mut F>,
        uploading: &'a Cell<bool>,
        deadline: Deadline,
        client: RawFd,
        wait: Duration,
    ) -> Self {
        Self { future, done: None, uploading, deadline, client, wait }
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        if self.done.is_none()
            && let Poll::Ready(done) = self.future.as_mut().poll(cx)
        {
            self.uploading.set(done.0.is_err());
            self.done = Some(done);
            return true;
        }
        false
    }

    /// Runs until the answer's head is there, or until the client breaks its request.
    pub(super) async fn beside<T>(
        &mut self,
        receive: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut receive = pin!(receive);
        let head = poll_fn(|cx| {
            if self.drive(cx) {
                self.deadline.arm_for(self.wait, self.client);
            }
            if let Some((Err(error), _)) = &self.done
                && let Some(error) = upload_error(error)
            {
                return Poll::Ready(Err(error));
            }
            receive.as_mut().poll(cx)
        })
        .await;
        self.deadline.disarm();
        head
    }

    /// Runs until `download` is done. Nobody can be told any more that the upload failed.
    pub(super) async fn beside_quietly<T>(&mut self, download: impl Future<Output = T>) -> T {
        let mut download = pin!(download);
        poll_fn(|cx| {
            self.drive(cx);
            download.as_mut().poll(cx)
        })
        .await
    }

    /// Whether the sending has ended, well or not.
    pub(super) fn has_ended(&self) -> bool {
        self.done.is_some()
    }

    /// Runs until the sending has ended, well or not.
    pub(super) async fn end(&mut self) {
        poll_fn(|cx| if self.done.is_some() || self.drive(cx) { Poll::Ready(()) } else { Poll::Pending })
            .await;
    }

    /// Gives the buffer back to `out`, and tells whether every byte of the request was sent. Nothing else may be called
    /// after it.
    pub(super) fn finish(&mut self, out: &mut Buffer) -> bool {
        let Some((result, buffer)) = self.done.take() else { return false };
        *out = buffer;
        out.clear();
        result.is_ok()
    }

    /// The request as it was, if it was `whole` and its sending has ended; an empty buffer otherwise. Nothing else may
    /// be called after it.
    pub(super) fn take_back(&mut self, whole: bool) -> Buffer {
        match self.done.take() {
            Some((_, mut out)) if whole => {
                out.rewind();
                out
            }
            _ => Buffer::default(),
        }
    }
}

/// What a broken upload says while no answer is there: the client's faults end the request; when the backend does
/// not take it, its answer may still come.
fn upload_error(error: &PumpError) -> Option<Error> {
    match error {
        PumpError::Read => Some(Error::ClientGone),
        PumpError::ReadTooSlow => Some(Error::ClientTooSlow),
        PumpError::Framing(refusal) => Some(Error::Refused(*refusal)),
        PumpError::Write => None,
    }
}
