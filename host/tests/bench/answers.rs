//! How answers are read, and to whom they are counted.

use super::*;

#[tokio::test]
async fn every_framing_is_read_to_its_end() {
    let hints = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
    let answers = [
        HELLO.to_owned(),
        "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        format!("{hints}{HELLO}"),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n".to_owned(),
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
    ];
    for answer in answers {
        let report = run(&Server::answering(answer.clone()).url(), &closed(2, 20)).await;
        assert_eq!((report.counts.ok, report.stale_keepalive), (20, 0), "{answer:?}");
        assert_eq!(report.connect_ms.unwrap().count, 2, "{answer:?}");
    }
}

#[tokio::test]
async fn answers_that_end_with_the_connection_are_complete() {
    let closing = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    for answer in ["HTTP/1.1 200 OK\r\n\r\nhello", closing] {
        let report = run(&Server::closing_after(answer).url(), &closed(2, 20)).await;
        assert_eq!((report.counts.ok, report.stale_keepalive), (20, 0));
        assert_eq!(report.connect_ms.unwrap().count, 20);
    }
}

#[tokio::test]
async fn an_answer_byte_by_byte_is_read() {
    let server = Server::start(|_, mut stream| async move {
        stream.set_nodelay(true).unwrap();
        while read_request(&mut stream).await {
            for byte in b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" {
                let _ = stream.write_u8(*byte).await;
            }
        }
    });
    assert_eq!(run(&server.url(), &closed(2, 10)).await.counts.ok, 10);
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    let server = Server::answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let report = run(&server.url(), &Options { method: "HEAD".to_owned(), ..closed(1, 10) }).await;
    assert_eq!((report.counts.ok, report.connect_ms.unwrap().count), (10, 1));
}

#[tokio::test]
async fn bytes_after_an_answer_are_not_taken_for_the_next_one() {
    let server = Server::answering(format!("{HELLO}HTTP/1.1 500 Smuggled\r\nContent-Length: 0\r\n\r\n"));
    let report = run(&server.url(), &closed(1, 10)).await;
    assert_eq!((report.counts.ok, report.counts.http_error), (10, 0));
}

#[tokio::test]
async fn a_large_body_is_drained() {
    let size = 3_000_000;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n{}", "x".repeat(size));
    assert_eq!(run(&Server::answering(answer).url(), &closed(2, 6)).await.counts.ok, 6);
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_no_error() {
    let report = run(&Server::closing_after(HELLO).url(), &closed(2, 40)).await;
    assert_eq!((report.counts.ok, report.counts.errors()), (40, 0));
    assert_eq!((report.stale_keepalive, report.connect_ms.unwrap().count), (38, 40));
}

#[tokio::test]
async fn a_post_is_not_sent_twice() {
    let report_options = Options { method: "POST".to_owned(), ..closed(1, 10) };
    let report = run(&Server::closing_after(HELLO).url(), &report_options).await;
    assert_eq!((report.counts.ok, report.counts.transport_error), (5, 5));
    assert_eq!((report.stale_keepalive, report.connect_ms.unwrap().count), (0, 5));
}

/// Answers the requests of each connection by its number: two backends, and every third by the balancer itself.
fn balanced(served: &Arc<[AtomicU64; 3]>) -> Server {
    let served = Arc::clone(served);
    Server::start(move |index, mut stream| {
        let served = Arc::clone(&served);
        let (status, field) = match index % 3 {
            2 => (503, String::new()),
            backend => (200, format!("X-Instance-Id: i-{backend}\r\n")),
        };
        async move {
            while read_request(&mut stream).await {
                served[index % 3].fetch_add(1, SeqCst);
                let answer = format!("HTTP/1.1 {status} X\r\n{field}Content-Length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
}

#[tokio::test]
async fn backends_are_told_apart_by_the_header() {
    let served = Arc::default();
    let report = run(&balanced(&served).url(), &closed(9, 300)).await;
    let served = served.each_ref().map(|count| count.load(SeqCst));
    for (id, count) in ["i-0", "i-1", "(none)"].iter().zip(served) {
        let line = report.backends.iter().find(|line| line.id == *id).unwrap();
        assert_eq!((line.count, line.errors), (count, if *id == "(none)" { count } else { 0 }));
        assert!((line.share - count as f64 / 300.0).abs() < 1e-5);
    }
    assert_eq!((report.counts.ok, report.counts.http_error), (served[0] + served[1], served[2]));
}
