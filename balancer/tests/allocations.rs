//! A kept client connection and a pooled backend connection carry requests without touching the heap.
//!
//! The balancer runs inside of this program, under an allocator that counts what its serving threads ask for. The
//! main and the probing thread are not counted, nor are the test's own. What remains are the timers of the ticks ten
//! times a second, whose number does not depend on that of the requests.
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are on the real clock")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use balancer::{DriverChoice, Options};

/// No wait is longer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Requests until every buffer, pool and table has its size.
const WARM_UP: usize = 500;
const REQUESTS: usize = 5_000;
/// What a serving thread does regardless of requests: monoio allocates for each timer, and a tick has two.
const TICK: Duration = Duration::from_millis(100);
const ALLOCATIONS_PER_TICK: u64 = 12;
/// A private loopback address: a port that is free there stays free until the balancer binds it.
const ADDRESS: &str = "127.0.4.4:0";
const REQUEST: &[u8] =
    b"GET /app/x?y=1 HTTP/1.1\r\nHost: test\r\nAccept: */*\r\nUser-Agent: test\r\nCookie: a=b\r\n\r\n";
const UPLOAD: &[u8] = b"POST /app/x HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nx-instance-id: i-1\r\n\r\nhello";
/// Has a field that must not be forwarded, so that the head is written anew.
const REWRITTEN: &[u8] =
    b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=9\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello";

/// What threads named `serve-*` asked for.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// The counter is of the whole process, so one test at a time uses it.
static TURN: Mutex<()> = Mutex::new(());

struct Counting;

// SAFETY: the system's allocator does the work; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Asks the kernel for the thread's name, since thread-local storage may allocate.
fn note() {
    let mut name = [0u8; 16];
    // SAFETY: the call writes at most 16 bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    if name.starts_with(b"serve-") {
        ALLOCATIONS.fetch_add(1, SeqCst);
    }
}

/// Answers everything that comes, one request per read, on a thread per connection.
fn start_backend(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind(ADDRESS).expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut piece = [0; 4096];
                while stream.read(&mut piece).is_ok_and(|count| count > 0) && stream.write_all(answer).is_ok()
                {
                }
            });
        }
    });
    address
}

/// Starts a balancer on a thread of this process; it ends with the process.
fn start_balancer(driver: DriverChoice, backend: SocketAddr, folder: &std::path::Path) -> SocketAddr {
    let address = TcpListener::bind(ADDRESS).and_then(|free| free.local_addr()).expect("a free port");
    let config = serde_json::json!({ "listen": address.to_string(), "threads": 1,
        "clusters": { "app": { "backends": [{ "id": "a", "address": backend.to_string() }] } } });
    let path = folder.join("balancer.json");
    std::fs::write(&path, config.to_string()).expect("written");
    let options = Options { config: path, driver, replace: None, access: None };
    std::thread::spawn(move || balancer::run(&options).expect("it runs"));
    address
}

fn connect(address: SocketAddr) -> TcpStream {
    let due = Instant::now() + DEADLINE;
    loop {
        match TcpStream::connect_timeout(&address, DEADLINE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
                return stream;
            }
            Err(error) => assert!(Instant::now() < due, "the balancer never listened: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends `count` requests one after the other, and checks that each is answered.
fn ask(client: &mut TcpStream, request: &[u8], count: usize) {
    let mut answer = [0; 4096];
    for _ in 0..count {
        client.write_all(request).expect("sent");
        let mut length = 0;
        while !answer[..length].ends_with(b"\r\n\r\nhello") {
            let more = client.read(&mut answer[length..]).expect("an answer");
            assert!(more > 0, "closed after {:?}", String::from_utf8_lossy(&answer[..length]));
            length += more;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{:?}", String::from_utf8_lossy(&answer[..length]));
    }
}

#[track_caller]
fn check(driver: DriverChoice, request: &[u8], answer: &'static [u8]) {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let folder = tempfile::tempdir().expect("a temporary directory");
    let before_start = ALLOCATIONS.load(SeqCst);
    let mut client = connect(start_balancer(driver, start_backend(answer), folder.path()));
    ask(&mut client, request, WARM_UP);
    let (before, began) = (ALLOCATIONS.load(SeqCst), Instant::now());
    assert!(before > before_start, "the start is counted, or nothing is");
    ask(&mut client, request, REQUESTS);
    let ticks = began.elapsed().div_duration_f64(TICK) as u64 + 2;
    let (found, allowed) = (ALLOCATIONS.load(SeqCst) - before, ticks * ALLOCATIONS_PER_TICK);
    println!("{found} allocations in {REQUESTS} requests and at most {ticks} ticks on {driver:?}");
    assert!(
        found <= allowed,
        "{found} allocations in {REQUESTS} requests on {driver:?}, {allowed} are explained"
    );
}

#[test]
fn request_and_answer_allocate_nothing() {
    check(DriverChoice::Auto, REQUEST, ANSWER);
    check(DriverChoice::Epoll, REQUEST, ANSWER);
}

#[test]
fn short_upload_allocates_nothing() {
    check(DriverChoice::Auto, UPLOAD, ANSWER);
    check(DriverChoice::Epoll, UPLOAD, ANSWER);
}

#[test]
fn answer_with_a_rewritten_head_allocates_nothing() {
    check(DriverChoice::Auto, REQUEST, REWRITTEN);
    check(DriverChoice::Epoll, REQUEST, REWRITTEN);
}
