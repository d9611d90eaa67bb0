//! Where a command's output goes: kept whole, or handed on in lines.
//!
//! This module does no input or output.

use super::running::Stream;

/// Most that is kept of one stream. More is a file, and files are downloaded.
const CAPTURE_MAX: usize = 16 * 1024 * 1024;
/// Longest line handed on in one piece.
const LINE_MAX: usize = 64 * 1024;
/// What is remembered of each stream that is handed on in lines, to explain a failure.
const TAIL_MAX: usize = 16 * 1024;

#[derive(Debug, Default)]
pub(crate) struct Capture {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Capture {
    /// Fails, with the reason, when a stream is longer than what is kept.
    pub(crate) fn push(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), String> {
        let (kept, name) = match stream {
            Stream::Stdout => (&mut self.stdout, "stdout"),
            Stream::Stderr => (&mut self.stderr, "stderr"),
        };
        if kept.len() + bytes.len() > CAPTURE_MAX {
            let max = CAPTURE_MAX / 1024 / 1024;
            return Err(format!("more than {max} MiB on {name}; send it to a file and download that"));
        }
        kept.extend_from_slice(bytes);
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Half {
    line: Vec<u8>,
    tail: Vec<u8>,
}

pub(crate) struct Lines<'a> {
    on_line: &'a mut (dyn FnMut(Stream, &str) + Send),
    stdout: Half,
    stderr: Half,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(on_line: &'a mut (dyn FnMut(Stream, &str) + Send)) -> Self {
        Self { on_line, stdout: Half::default(), stderr: Half::default() }
    }

    pub(crate) fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let half = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            half.line.extend_from_slice(piece);
            while half.line.ends_with(b"\n") || half.line.len() > LINE_MAX {
                let cut = half.line.len().min(LINE_MAX);
                let line: Vec<u8> = half.line.drain(..cut).collect();
                emit(self.on_line, stream, &line);
            }
        }
        half.tail.extend_from_slice(bytes);
        let surplus = half.tail.len().saturating_sub(TAIL_MAX);
        half.tail.drain(..surplus);
    }

    /// Hands on what has no line end, and returns the end of stdout and of stderr.
    pub(crate) fn finish(self) -> (Vec<u8>, Vec<u8>) {
        for (stream, half) in [(Stream::Stdout, &self.stdout), (Stream::Stderr, &self.stderr)] {
            if !half.line.is_empty() {
                emit(self.on_line, stream, &half.line);
            }
        }
        (self.stdout.tail, self.stderr.tail)
    }
}

fn emit(on_line: &mut (dyn FnMut(Stream, &str) + Send), stream: Stream, line: &[u8]) {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    on_line(stream, &String::from_utf8_lossy(line));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let mut seen = Vec::new();
        let mut on_line = |_: Stream, line: &str| seen.push(line.to_owned());
        let mut lines = Lines::new(&mut on_line);
        for piece in pieces {
            lines.push(Stream::Stdout, piece);
        }
        lines.finish();
        seen
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let text = "one\r\n\ntwo é\nend".as_bytes();
        for cut in 0..=text.len() {
            assert_eq!(lines(&[&text[..cut], &text[cut..]]), ["one", "", "two é", "end"], "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_line_comes_in_pieces() {
        let seen = lines(&[&vec![b'x'; LINE_MAX * 2 + 1], b"\n"]);
        assert_eq!(seen.iter().map(String::len).collect::<Vec<_>>(), [LINE_MAX, LINE_MAX, 1]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut capture = Capture::default();
        let piece = vec![0; CAPTURE_MAX];
        capture.push(Stream::Stdout, &piece).unwrap();
        capture.push(Stream::Stderr, b"x").unwrap();
        assert!(capture.push(Stream::Stdout, b"x").unwrap_err().contains("16 MiB on stdout"));
        let mut ignore = |_: Stream, _: &str| {};
        let mut lines = Lines::new(&mut ignore);
        lines.push(Stream::Stdout, &piece);
        assert_eq!(lines.finish().0.len(), TAIL_MAX);
    }
}
