//! Requests that fail: each has its kind, and none is lost in counting.

use super::*;

/// Every request fails in this way, and nothing else happens.
async fn check_fault(server: &Server, kind: &str, options: Options) -> Report {
    let report = run(&server.url(), &options).await;
    let lines = report.errors.iter();
    let kinds: Vec<_> = lines.map(|line| (line.kind.as_str(), line.side.as_str(), line.count)).collect();
    assert_eq!(kinds, [(kind, "server", options.requests.unwrap())]);
    assert!(!report.errors[0].sample.is_empty());
    assert_eq!((report.counts.ok, report.verdict), (0, Verdict::Failed));
    report
}

#[tokio::test]
async fn statuses_that_are_not_2xx_are_http_errors() {
    for (status, kind) in [(302, "status_3xx"), (404, "status_4xx"), (503, "status_5xx")] {
        let server = Server::answering(format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nno"));
        for options in [burst(5), closed(2, 5), open(5)] {
            let report = check_fault(&server, kind, options).await;
            assert_eq!((report.counts.http_error, report.status[&status]), (5, 5));
            assert_eq!((report.requests_per_second, report.backends[0].errors), (0.0, 5));
            assert!(report.answers_per_second > 0.0);
        }
    }
}

#[tokio::test]
async fn broken_answers_have_their_kinds() {
    let cases = [
        ("", "reset_before_response"),
        ("HTTP/1.1 200 OK\r\nContent-", "eof_in_headers"),
        ("HTTP/1.1 100 Continue\r\n\r\n", "eof_in_headers"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", "eof_in_body"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "eof_in_body"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "bad_http"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "bad_http"),
    ];
    for (bytes, kind) in cases {
        let server = Server::closing_after(bytes);
        for options in [burst(5), closed(2, 5), open(5)] {
            let report = check_fault(&server, kind, options).await;
            assert_eq!(report.counts.transport_error, 5, "{bytes:?}");
        }
    }
}

#[tokio::test]
async fn a_head_without_end_is_bad_http() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(100_000));
    check_fault(&Server::answering(endless), "bad_http", burst(3)).await;
}

#[tokio::test]
async fn a_reset_before_an_answer_has_its_kind() {
    let server = Server::start(|_, mut stream| async move {
        read_request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    });
    check_fault(&server, "reset_before_response", burst(5)).await;
}

#[tokio::test]
async fn a_reset_while_sending_has_its_kind() {
    let server = Server::start(|_, mut stream| async move {
        let _ = stream.read_u8().await;
        stream.set_zero_linger().unwrap();
    });
    let options = Options { method: "POST".to_owned(), body: Some("x".repeat(1 << 20)), ..burst(3) };
    let report = run(&server.url(), &options).await;
    assert_eq!(report.counts.transport_error, 3);
    // The kernel may have taken all of the body before the reset comes.
    let expected = ["write_broken", "reset_before_response"];
    assert!(report.errors.iter().all(|line| expected.contains(&line.kind.as_str())), "{:?}", report.errors);
}

#[tokio::test]
async fn a_refused_connection_has_its_kind() {
    // Bound and not listening: nobody else can have the port meanwhile.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}/", socket.local_addr().unwrap());
    for options in [burst(5), closed(2, 6), open(5)] {
        let report = run(&url, &options).await;
        assert_eq!(report.errors[0].kind, "connect_refused");
        assert_eq!(report.counts.transport_error, options.requests.unwrap());
    }
}

#[tokio::test]
async fn a_full_listen_queue_gives_connect_timeouts() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let options = Options { timeout: span("400ms"), connect_timeout: span("200ms"), ..burst(20) };
    let report = run(&format!("http://{}/", listener.local_addr().unwrap()), &options).await;
    assert_eq!(report.counts.timeout, 20);
    let kinds: Vec<_> = report.errors.iter().map(|line| line.kind.as_str()).collect();
    assert_eq!(kinds, ["connect_timeout", "ttfb_timeout"]);
}

#[tokio::test]
async fn a_timeout_is_a_sample_at_its_age() {
    let silent = Server::start(|_, mut stream| async move { while read_request(&mut stream).await {} });
    let stuck = Server::answering("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello");
    for (server, kind) in [(silent, "ttfb_timeout"), (stuck, "total_timeout")] {
        for options in [burst(5), closed(2, 5), open(5)] {
            let options = Options { timeout: span("50ms"), ..options };
            let report = check_fault(&server, kind, options).await;
            assert_eq!(report.counts.timeout, 5);
            assert!(report.latency_ms.all.unwrap().min >= 50.0 && report.errors[0].latency_ms.p50 >= 50.0);
            assert!(report.latency_ms.ok.is_none());
        }
    }
}

#[tokio::test]
async fn bytes_that_trickle_do_not_extend_the_timeout() {
    let server = Server::start(|_, mut stream| async move {
        read_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await;
        while stream.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    check_fault(&server, "total_timeout", Options { timeout: span("60ms"), ..burst(3) }).await;
}

#[tokio::test]
async fn every_request_is_accounted_for_when_everything_happens() {
    let server = Server::start(|index, mut stream| async move {
        read_request(&mut stream).await;
        match index % 4 {
            0 => {}
            1 => drop(stream.read_u8().await),
            2 => drop(stream.write_all(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n").await),
            _ => drop(stream.write_all(HELLO.as_bytes()).await),
        }
    });
    // Long enough for the other three quarters on any machine.
    let report = run(&server.url(), &Options { timeout: span("2s"), ..burst(200) }).await;
    let counts = report.counts;
    assert_eq!([counts.ok, counts.http_error, counts.transport_error, counts.timeout], [50; 4]);
    assert!(report.reasons.iter().any(|reason| reason.contains("150 of 200")), "{:?}", report.reasons);
}
