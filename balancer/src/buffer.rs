//! A byte buffer that a runtime can own while the kernel uses it.

use monoio::buf::{IoBuf, IoBufMut};

/// Bytes received and not yet used, or to be sent and not yet taken. Received bytes are appended at the end; sent or
/// used ones are taken from the front.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity), start: 0 }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Takes `count` bytes from the front.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        assert!(self.start <= self.bytes.len(), "no more is consumed than is there");
    }

    /// Puts back what was taken since the last [`Self::clear`] or [`Self::compact`]: to send it once more.
    pub(crate) fn rewind(&mut self) {
        self.start = 0;
    }

    /// Drops everything behind the first `count` bytes.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.bytes.truncate(self.start + count);
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// The bytes to append to.
    pub(crate) fn end(&mut self) -> &mut Vec<u8> {
        self.compact();
        &mut self.bytes
    }

    /// Makes room for at least `room` more bytes, moving the rest to the front first.
    pub(crate) fn reserve(&mut self, room: usize) {
        if self.bytes.capacity() - self.bytes.len() < room {
            self.compact();
            self.bytes.reserve(room);
        }
    }

    /// Room for bytes at the end without moving or growing.
    pub(crate) fn room(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    /// Moves the unused bytes to the front.
    pub(crate) fn compact(&mut self) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Moves all bytes of `self` to `other`, without copying when `other` is empty.
    pub(crate) fn append_to(&mut self, other: &mut Self) {
        if other.is_empty() {
            std::mem::swap(self, other);
            self.clear();
        } else {
            other.end().extend_from_slice(self.as_slice());
            self.clear();
        }
    }
}

// SAFETY: the pointer is into the heap allocation of `bytes`, which does not move while the runtime owns the buffer,
// and `bytes_init` bytes from it are initialised.
unsafe impl IoBuf for Buffer {
    fn read_ptr(&self) -> *const u8 {
        self.as_slice().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.len()
    }
}

// SAFETY: the pointer is to the spare capacity behind the initialised bytes, of which there are `bytes_total`. The
// runtime calls `set_init` with the number of bytes that it has written there.
unsafe impl IoBufMut for Buffer {
    fn write_ptr(&mut self) -> *mut u8 {
        self.bytes.spare_capacity_mut().as_mut_ptr().cast()
    }

    fn bytes_total(&mut self) -> usize {
        self.room()
    }

    unsafe fn set_init(&mut self, count: usize) {
        // SAFETY: the caller has written `count` bytes behind the initialised ones, within the capacity.
        unsafe { self.bytes.set_len(self.bytes.len() + count) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_bytes_make_room_without_growing() {
        let mut buffer = Buffer::with_capacity(8);
        buffer.end().extend_from_slice(b"12345678");
        let capacity = buffer.capacity();
        buffer.consume(6);
        buffer.reserve(2);
        assert_eq!((buffer.as_slice(), buffer.capacity()), (b"78".as_slice(), capacity));
        buffer.consume(2);
        assert!(buffer.is_empty());
    }

    #[test]
    fn appending_to_an_empty_buffer_swaps() {
        let (mut from, mut to) = (Buffer::with_capacity(4), Buffer::with_capacity(4));
        from.end().extend_from_slice(b"ab");
        from.append_to(&mut to);
        from.end().extend_from_slice(b"cd");
        from.append_to(&mut to);
        assert_eq!((from.len(), to.as_slice()), (0, b"abcd".as_slice()));
    }

    #[test]
    fn sent_bytes_can_be_sent_again() {
        let mut buffer = Buffer::with_capacity(4);
        buffer.end().extend_from_slice(b"abc");
        buffer.consume(3);
        buffer.rewind();
        assert_eq!(buffer.as_slice(), b"abc");
    }
}
