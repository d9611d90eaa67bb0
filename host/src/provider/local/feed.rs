//! What a client has sent for a command's standard input and the command has not read yet.
//!
//! russh extends a channel's window when data arrives, not when it is consumed, and delivers to all channels
//! of a connection from one task. Waiting there for a command that does not read would stop its neighbours,
//! and for ever when the command itself waits to be read from. So nobody waits: what memory should not hold
//! goes to an unlinked file.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

/// Kept in memory per command: twice the window, so that a command that keeps up never touches the disk.
const MEMORY_BYTES_MAX: usize = 4 << 20;

/// Kept on disk per command; more than anyone uploads, and less than what fills a disk unnoticed.
const SPILL_BYTES_MAX: u64 = 8 << 30;

/// Read back from the file at a time.
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Debug, Default)]
struct Queue {
    memory: VecDeque<Vec<u8>>,
    memory_bytes: usize,
    spill: Option<Spill>,
    /// The client will send no more.
    is_closed: bool,
    /// The command will read no more.
    is_abandoned: bool,
}

#[derive(Debug)]
struct Spill {
    file: File,
    read: u64,
    written: u64,
}

#[derive(Debug)]
struct Shared {
    /// Where the file is made; it has no name for longer than a moment.
    directory: PathBuf,
    queue: Mutex<Queue>,
    changed: Notify,
}

/// The client's end.
#[derive(Debug)]
pub(super) struct Feed(Arc<Shared>);

/// The command's end.
#[derive(Debug)]
pub(super) struct Source(Arc<Shared>);

pub(super) fn feed(directory: PathBuf) -> (Feed, Source) {
    let shared = Arc::new(Shared { directory, queue: Mutex::default(), changed: Notify::new() });
    (Feed(shared.clone()), Source(shared))
}

impl Feed {
    /// Queues a copy; without effect when nobody will read it. An error means that the disk is full or that
    /// the client sent too much: the command must then not go on as if it had everything.
    pub(super) fn push(&self, data: &[u8]) -> io::Result<()> {
        let mut queue = self.0.lock();
        if queue.is_abandoned || data.is_empty() {
            return Ok(());
        }
        if queue.spill.is_none() && queue.memory_bytes + data.len() <= MEMORY_BYTES_MAX {
            queue.memory_bytes += data.len();
            queue.memory.push_back(data.to_vec());
        } else {
            queue.spill(data, &self.0.directory)?;
        }
        self.0.changed.notify_one();
        Ok(())
    }

    /// After what is queued, the command reads the end of its input.
    pub(super) fn close(&self) {
        self.0.lock().is_closed = true;
        self.0.changed.notify_one();
    }
}

impl Source {
    /// The next piece, or `None` at the end of the input.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            {
                let mut queue = self.0.lock();
                if let Some(chunk) = queue.pop()? {
                    return Ok(Some(chunk));
                }
                if queue.is_closed {
                    return Ok(None);
                }
            }
            self.0.changed.notified().await;
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        *self.0.lock() = Queue { is_abandoned: true, ..Queue::default() };
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn spill(&mut self, data: &[u8], directory: &std::path::Path) -> io::Result<()> {
        let spill = match &mut self.spill {
            Some(spill) => spill,
            None => self.spill.insert(Spill { file: nameless_file(directory)?, read: 0, written: 0 }),
        };
        if spill.written + data.len() as u64 > SPILL_BYTES_MAX {
            return Err(io::Error::other("too much unread input"));
        }
        spill.file.write_all_at(data, spill.written)?;
        spill.written += data.len() as u64;
        Ok(())
    }

    fn pop(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(chunk) = self.memory.pop_front() {
            self.memory_bytes -= chunk.len();
            return Ok(Some(chunk));
        }
        let Some(spill) = &mut self.spill else { return Ok(None) };
        let mut chunk = vec![0; CHUNK_BYTES.min((spill.written - spill.read) as usize)];
        spill.file.read_exact_at(&mut chunk, spill.read)?;
        spill.read += chunk.len() as u64;
        if spill.read == spill.written {
            self.spill = None;
        }
        Ok(Some(chunk))
    }
}

fn nameless_file(directory: &std::path::Path) -> io::Result<File> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let path = directory.join(format!(".input-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_arrives_in_order_also_through_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let (feed, mut source) = feed(directory.path().to_owned());
        let sent: Vec<u8> = (0..3 * MEMORY_BYTES_MAX).map(|index| (index / 7) as u8).collect();
        for chunk in sent.chunks(30_000) {
            feed.push(chunk).unwrap();
        }
        assert!(source.0.lock().memory_bytes <= MEMORY_BYTES_MAX);
        assert!(source.0.lock().spill.is_some());
        let mut received = Vec::new();
        while received.len() < sent.len() {
            received.extend(source.next().await.unwrap().unwrap());
        }
        assert!(received == sent);
        assert!(source.0.lock().spill.is_none());
        feed.push(b"end").unwrap();
        feed.close();
        assert_eq!(source.next().await.unwrap().unwrap(), b"end");
        assert_eq!(source.next().await.unwrap(), None);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_nobody_will_read_is_dropped() {
        let (feed, source) = feed("/nonexistent".into());
        drop(source);
        for _ in 0..100 {
            feed.push(&vec![0; 1 << 20]).unwrap();
        }
    }

    #[test]
    fn input_that_cannot_be_kept_is_an_error() {
        let (feed, _source) = feed("/nonexistent".into());
        assert!((0..5).any(|_| feed.push(&vec![0; 1 << 20]).is_err()));
    }
}
