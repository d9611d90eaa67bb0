//! What a remote command's wrapper writes between the command's own output, and how it is read back.
//!
//! SSH's mux protocol cannot tell exit status 127 or 255, or death by a signal, from a lost connection. So a
//! command runs under a wrapper that marks, on both output streams, where the command's output begins and how it
//! ended. A mark is `RS LABEL WORD RS` (RS is the byte 0x1e) with a label drawn anew for each command.
//!
//! This module does no input or output.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
};

use super::quote::quote;

const RS: u8 = 0x1e;
/// Longest word of a mark (`p` and a process id of ten digits), with room; a longer one is not a mark.
const WORD_MAX: usize = 16;

/// How a command ended, as its wrapper saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Exit status; 128 plus the signal's number where a signal ended the command, as shells say it.
    Exit(i32),
    /// The working directory could not be entered; the reason is on stderr.
    NoDirectory,
    /// The server did not give the command a process group of its own, so it was not started: it could not
    /// have been killed as a whole.
    NoGroup,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// Output before the wrapper began, such as what a login script prints.
    Noise(&'a [u8]),
    Data(&'a [u8]),
    /// The wrapper runs; this is its process group.
    Begin(u32),
    End(Ending),
}

/// A label that no output contains by accident.
pub(crate) fn label() -> String {
    format!("labhost-{:016x}", RandomState::new().build_hasher().finish())
}

/// The wrapper, for any POSIX `sh` on Linux. Arguments: label, directory or nothing, the user's line.
///
/// The traps keep it alive when the group is told to end, so that it can still report how the command ended; the
/// command itself gets the default back. `ENVIRONMENT` is replaced by assignments.
const WRAPPER: &str = r#"m=$1 d=$2 l=$3
e() { printf '\036%s %s\036' "$m" "$1"; printf '\036%s %s\036' "$m" "$1" >&2; }
trap : HUP INT TERM
read -r t </proc/$$/stat; t=${t##*) }; set -- $t
e p$$
[ "$3" = $$ ] || { e g; exit 0; }
[ -z "$d" ] || CDPATH= cd -- "$d" || { e d; exit 0; }
ENVIRONMENT/bin/sh -c "$l"
e x$?"#;

/// The text to hand to the server's login shell. `environment` is `NAME=QUOTED ` pairs, or nothing.
pub(crate) fn wrap(label: &str, directory: &str, environment: &str, line: &str) -> String {
    let wrapper = WRAPPER.replace("ENVIRONMENT", environment);
    format!("exec /bin/sh -c {} labhost {label} {} {}", quote(&wrapper), quote(directory), quote(line))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Before,
    Inside,
    After,
}

/// Reads one output stream: separates the command's output from marks, however the stream is cut into pieces.
#[derive(Debug)]
pub(crate) struct Demux {
    needle: Vec<u8>,
    held: Vec<u8>,
    phase: Phase,
}

impl Demux {
    pub(crate) fn new(label: &str) -> Self {
        let needle = [&[RS], label.as_bytes(), b" "].concat();
        Self { needle, held: Vec::new(), phase: Phase::Before }
    }

    /// Whether the end mark was seen. What comes later is not the command's output and is dropped.
    pub(crate) fn ended(&self) -> bool {
        self.phase == Phase::After
    }

    pub(crate) fn feed(&mut self, piece: &[u8], on_event: &mut dyn FnMut(Event<'_>)) {
        if self.ended() {
            return;
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(piece);
        let used = self.scan(&held, on_event);
        held.drain(..used);
        self.held = held;
    }

    /// At the end of the stream: what was held back because it could have become a mark is output after all.
    pub(crate) fn finish(&mut self, on_event: &mut dyn FnMut(Event<'_>)) {
        let held = std::mem::take(&mut self.held);
        self.emit(&held, on_event);
    }

    /// Returns how many bytes are dealt with; the rest may be the beginning of a mark.
    fn scan(&mut self, bytes: &[u8], on_event: &mut dyn FnMut(Event<'_>)) -> usize {
        let (mut from, mut at) = (0, 0);
        while let Some(offset) = bytes[at..].iter().position(|byte| *byte == RS) {
            at += offset;
            match self.mark(&bytes[at..]) {
                Mark::No => at += 1,
                Mark::Maybe => {
                    self.emit(&bytes[from..at], on_event);
                    return at;
                }
                Mark::Yes(event, length) => {
                    self.emit(&bytes[from..at], on_event);
                    at += length;
                    from = at;
                    self.pass(event, on_event);
                    if self.ended() {
                        return bytes.len();
                    }
                }
            }
        }
        self.emit(&bytes[from..], on_event);
        bytes.len()
    }

    fn mark(&self, bytes: &[u8]) -> Mark {
        let known = bytes.len().min(self.needle.len());
        if bytes[..known] != self.needle[..known] {
            return Mark::No;
        }
        let word = &bytes[known..];
        match word.iter().take(WORD_MAX).position(|byte| *byte == RS) {
            Some(end) => parse(&word[..end]).map_or(Mark::No, |event| Mark::Yes(event, known + end + 1)),
            None if word.len() < WORD_MAX => Mark::Maybe,
            None => Mark::No,
        }
    }

    fn pass(&mut self, event: Event<'static>, on_event: &mut dyn FnMut(Event<'_>)) {
        self.phase = match event {
            Event::End(_) => Phase::After,
            _ => Phase::Inside,
        };
        on_event(event);
    }

    fn emit(&self, bytes: &[u8], on_event: &mut dyn FnMut(Event<'_>)) {
        match self.phase {
            _ if bytes.is_empty() => {}
            Phase::Before => on_event(Event::Noise(bytes)),
            Phase::Inside => on_event(Event::Data(bytes)),
            Phase::After => {}
        }
    }
}

enum Mark {
    No,
    /// All bytes so far agree.
    Maybe,
    /// The event and the mark's length.
    Yes(Event<'static>, usize),
}

fn parse(word: &[u8]) -> Option<Event<'static>> {
    let (kind, number) = std::str::from_utf8(word).ok()?.split_at_checked(1)?;
    match (kind, number) {
        ("p", _) => number.parse().ok().map(Event::Begin),
        ("x", _) => number.parse().ok().map(|code| Event::End(Ending::Exit(code))),
        ("d", "") => Some(Event::End(Ending::NoDirectory)),
        ("g", "") => Some(Event::End(Ending::NoGroup)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "labhost-0123";

    #[derive(Debug, Default, PartialEq, Eq, Clone)]
    struct Seen {
        noise: Vec<u8>,
        data: Vec<u8>,
        group: Option<u32>,
        ending: Option<Ending>,
    }

    fn read(pieces: &[&[u8]]) -> Seen {
        let mut seen = Seen::default();
        let mut demux = Demux::new(LABEL);
        let mut on_event = |event: Event<'_>| match event {
            Event::Noise(bytes) => seen.noise.extend_from_slice(bytes),
            Event::Data(bytes) => seen.data.extend_from_slice(bytes),
            Event::Begin(group) => seen.group = Some(group),
            Event::End(ending) => seen.ending = Some(ending),
        };
        for piece in pieces {
            demux.feed(piece, &mut on_event);
        }
        demux.finish(&mut on_event);
        seen
    }

    /// The same stream cut at every byte, and byte by byte, means the same.
    #[track_caller]
    fn check(stream: &[u8], expected: &Seen) {
        assert_eq!(read(&[stream]), *expected);
        for cut in 0..=stream.len() {
            assert_eq!(read(&[&stream[..cut], &stream[cut..]]), *expected, "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(read(&bytes), *expected, "byte by byte");
    }

    fn seen(noise: &[u8], data: &[u8], group: Option<u32>, ending: Option<Ending>) -> Seen {
        Seen { noise: noise.to_vec(), data: data.to_vec(), group, ending }
    }

    #[test]
    fn splits_output_from_marks_wherever_the_stream_is_cut() {
        let stream = b"motd\n\x1elabhost-0123 p4242\x1ehello\nno newline\x1elabhost-0123 x255\x1elate";
        check(stream, &seen(b"motd\n", b"hello\nno newline", Some(4242), Some(Ending::Exit(255))));
    }

    #[test]
    fn what_only_looks_like_a_mark_is_output() {
        for text in [
            &b"\x1e\x1e\x1e"[..],
            b"\x1elabhost-9999 x0\x1e",
            b"\x1elabhost-0123 y0\x1e",
            b"\x1elabhost-0123 x\x1e",
            b"\x1elabhost-0123 \xff\xfe\x1e",
            b"\x1elabhost-0123 xxxxxxxxxxxxxxxxxxxxxxxxxxx\x1e",
            b"\x1elabhost-01\x1elabhost-01",
        ] {
            let stream = [b"\x1elabhost-0123 p1\x1e", text, b"\x1elabhost-0123 x0\x1e"].concat();
            check(&stream, &seen(b"", text, Some(1), Some(Ending::Exit(0))));
        }
    }

    #[test]
    fn a_stream_that_breaks_off_has_no_ending_and_loses_no_output() {
        check(
            b"\x1elabhost-0123 p7\x1ehalf\x1elabhost-0123 x",
            &seen(b"", b"half\x1elabhost-0123 x", Some(7), None),
        );
        check(
            b"This account is not available.\n",
            &seen(b"This account is not available.\n", b"", None, None),
        );
        check(b"", &Seen::default());
    }

    #[test]
    fn reads_each_ending() {
        check(
            b"\x1elabhost-0123 p1\x1e\x1elabhost-0123 d\x1e",
            &seen(b"", b"", Some(1), Some(Ending::NoDirectory)),
        );
        check(
            b"\x1elabhost-0123 p1\x1e\x1elabhost-0123 g\x1e",
            &seen(b"", b"", Some(1), Some(Ending::NoGroup)),
        );
        check(
            b"\x1elabhost-0123 p1\x1e\x1elabhost-0123 x143\x1e",
            &seen(b"", b"", Some(1), Some(Ending::Exit(143))),
        );
    }

    /// Runs the wrapped line on this machine, in a process group of its own or not.
    fn wrapped(line: &str, own_group: bool) -> (Seen, Seen) {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("/bin/sh");
        command.arg("-c").arg(wrap(LABEL, "", "V='a b' ", line)).stdin(std::process::Stdio::null());
        if own_group {
            command.process_group(0);
        }
        let output = command.output().unwrap();
        assert!(output.status.success());
        (read(&[&output.stdout]), read(&[&output.stderr]))
    }

    #[test]
    fn the_wrapper_reports_on_both_streams() {
        let (out, err) = wrapped("printf %s \"$V\"; printf e >&2; exit 255", true);
        assert_eq!((out.data, out.ending), (b"a b".to_vec(), Some(Ending::Exit(255))));
        assert_eq!((err.data, err.ending), (b"e".to_vec(), Some(Ending::Exit(255))));
        assert!(out.group.is_some() && out.group == err.group);
    }

    #[test]
    fn the_wrapper_survives_signals_to_its_group_and_reports_them() {
        let (out, _) = wrapped("kill -s TERM 0", true);
        assert_eq!(out.ending, Some(Ending::Exit(128 + 15)));
    }

    #[test]
    fn the_wrapper_starts_nothing_that_could_not_be_killed_as_a_group() {
        let (out, _) = wrapped("echo never", false);
        assert_eq!((out.data, out.ending), (Vec::new(), Some(Ending::NoGroup)));
    }

    #[test]
    fn labels_differ() {
        assert_ne!(label(), label());
    }
}
