//! What a head costs: parse and judge it, and write it as it is forwarded.

use std::hint::black_box;

use balancer::http::{self, ForwardedFor, HeadLimits, NameList, Rules};
use criterion::{Criterion, criterion_group, criterion_main};

const LIMITS: HeadLimits = HeadLimits { head_bytes: 16 << 10, target_bytes: 8 << 10, fields: 100 };

const SMALL: &[u8] = b"GET /cluster1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";

const BROWSER: &[u8] = b"GET /cluster1 HTTP/1.1\r\nHost: 203.0.113.7\r\nConnection: keep-alive\r\n\
    Cache-Control: max-age=0\r\nsec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\"\r\n\
    sec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\nDNT: 1\r\nUpgrade-Insecure-Requests: 1\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\n\
    Accept-Encoding: gzip, deflate\r\nAccept-Language: en-GB,en;q=0.9\r\nCookie: session=0123456789abcdef\r\n\r\n";

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: M\r\nDate: Tue, 24 Nov 2026 04:03:28 GMT\r\n\
    x-instance-id: i-0123456789abcdef0\r\nContent-Length: 58\r\n\r\n";

fn rules() -> Rules {
    Rules {
        forwarded_for: ForwardedFor::Append,
        forwarded_proto: true,
        via: true,
        dropped: NameList::new(balancer::config::BROWSER_FIELDS),
        fields_max: 16,
    }
}

fn requests(criterion: &mut Criterion) {
    let rules = rules();
    let mut out = Vec::with_capacity(4096);
    for (name, bytes) in [("small", SMALL), ("browser", BROWSER)] {
        criterion.bench_function(&format!("request/{name}/parse"), |bencher| {
            bencher.iter(|| {
                let mut space = http::space();
                let request = http::parse_request(black_box(bytes), 0, &LIMITS, &mut space);
                request.expect("legal").expect("whole").head_bytes
            });
        });
        criterion.bench_function(&format!("request/{name}/parse and forward"), |bencher| {
            bencher.iter(|| {
                let mut space = http::space();
                let request = http::parse_request(black_box(bytes), 0, &LIMITS, &mut space);
                let request = request.expect("legal").expect("whole");
                out.clear();
                http::write_request(&mut out, &request, &rules, "203.0.113.9").expect("few enough fields");
                out.len()
            });
        });
    }
}

fn answers(criterion: &mut Criterion) {
    let mut out = Vec::with_capacity(4096);
    for (name, connection) in [("in place", None), ("rewritten", Some(b"close".as_slice()))] {
        criterion.bench_function(&format!("answer/{name}"), |bencher| {
            bencher.iter(|| {
                let mut space = http::space();
                let answer = http::parse_response(black_box(ANSWER), 0, false, &LIMITS, &mut space);
                let answer = answer.expect("legal").expect("whole");
                out.clear();
                http::write_response(&mut out, &answer, connection, 1)
            });
        });
    }
}

criterion_group!(benches, requests, answers);
criterion_main!(benches);
