//! The checks that are fuzzed, on the committed corpus and on mutations of it: a bounded part of what cargo-fuzz does
//! (`.ci/fuzz`), without it.

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the fuzz targets, which use all of it")]
mod checks;

use std::path::{Path, PathBuf};

/// Mutations per target: together some seconds without optimisation.
const MUTATIONS: usize = 15_000;
/// What mutations insert: the words that framing and routing hang on.
const WORDS: [&[u8]; 40] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"\0",
    b"\x0b",
    b"\x7f",
    b"\xa0",
    b":",
    b": ",
    b",",
    b";",
    b"0",
    b"1",
    b"5",
    b"0\r\n\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"GET ",
    b"HEAD ",
    b"POST /x ",
    b"OPTIONS * ",
    b"http://a/",
    b"Host: a\r\n",
    b"Content-Length: ",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: ",
    b"Transfer-Encoding: chunked\r\n",
    b"chunked",
    b"Connection: close\r\n",
    b"Connection: keep-alive, Host, X-A\r\n",
    b"X-A: b\r\n",
    b"Expect: 100-continue\r\n",
    b"X-Forwarded-For: 10.0.0.1\r\n",
    b"Via: 1.1 a\r\n",
    b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
];

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.into_iter().map(|path| (path.clone(), std::fs::read(path).expect("read"))).collect()
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }

    fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len())]
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(16) + 1)
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let range = self.range(bytes.len());
        match self.below(6) {
            0 if !bytes.is_empty() => {
                let at = self.below(bytes.len());
                bytes[at] ^= 1 << self.below(8);
            }
            1 => drop(bytes.drain(range)),
            2 => {
                let copy = bytes[range].to_vec();
                let at = self.below(bytes.len() + 1);
                bytes.splice(at..at, copy);
            }
            3 => {
                let from = self.range(other.len());
                bytes.splice(range, other[from].iter().copied());
            }
            _ => {
                let word = *self.pick(&WORDS);
                bytes.splice(range.start..range.start, word.iter().copied());
            }
        }
    }
}

/// Runs `check` on the corpus of `target` and on mutations of it that depend on nothing but the corpus.
fn run(target: &str, check: fn(&[u8])) {
    let corpus = corpus(target);
    for (path, bytes) in &corpus {
        let checked = std::panic::catch_unwind(|| check(bytes));
        assert!(checked.is_ok(), "on {}", path.display());
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..MUTATIONS {
        let mut bytes = random.pick(&corpus).1.clone();
        for _ in 0..1 + random.below(4) {
            let other = &random.pick(&corpus).1;
            random.mutate(&mut bytes, other);
        }
        let checked = std::panic::catch_unwind(|| check(&bytes));
        assert!(checked.is_ok(), "{target}, mutation {round}: \"{}\"", bytes.escape_ascii());
    }
}

#[test]
fn request_heads_read_alike_in_whatever_pieces_they_come() {
    run("request_head", checks::request_head);
}

#[test]
fn heads_of_answers_read_alike_in_whatever_pieces_they_come() {
    run("response_head", checks::response_head);
}

#[test]
fn chunked_bodies_read_alike_in_whatever_pieces_they_come_and_as_hyper_reads_them() {
    run("chunked", checks::chunked);
}

#[test]
fn what_we_take_for_requests_and_what_we_forward_hyper_takes_for_the_same_requests() {
    run("requests", checks::requests);
}

#[test]
fn what_we_take_for_answers_and_what_we_send_on_hyper_takes_for_the_same_answers() {
    run("responses", checks::responses);
}
