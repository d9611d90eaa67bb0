//! This machine's public address, for rules that let only the caller in.
//!
//! It comes from `--my-ip`. Only when that is not given and a rule needs it, AWS's own echo service is asked over
//! HTTPS, and the user is told so. Nobody is asked for an endpoint on this machine.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto, pki_types::ServerName},
};

use crate::{Error, provider::Say};

/// Answers a GET with the caller's address and a line end; kept by AWS for this purpose.
const ECHO: &str = "checkip.amazonaws.com";
const ECHO_WITHIN: Duration = Duration::from_secs(10);
/// An address, and the head before it.
const ANSWER_BYTES_MAX: u64 = 8192;

/// The caller's address.
pub(super) async fn caller(given: Option<Ipv4Addr>, say: &Say) -> Result<Ipv4Addr, Error> {
    if let Some(address) = given {
        return Ok(address);
    }
    say(&format!("asking https://{ECHO} for this machine's public address (--my-ip ADDRESS spares it)"));
    let answer = match timeout(ECHO_WITHIN, ask()).await {
        Ok(answer) => answer,
        Err(_) => Err("no answer in time".to_owned()),
    };
    answer.and_then(|text| parse(&text).ok_or_else(|| "the answer is no IPv4 address".to_owned())).map_err(
        |cause| {
            Error::provider(format!("find this machine's public address: ask {ECHO}: {cause}"))
                .with_hint("Give it with --my-ip ADDRESS or the variable LABHOST_MY_IP.")
        },
    )
}

async fn ask() -> Result<String, String> {
    let words = |cause: &dyn std::error::Error| cause.to_string();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| words(&cause))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect((ECHO, 443)).await.map_err(|cause| words(&cause))?;
    let name = ServerName::try_from(ECHO).map_err(|cause| words(&cause))?;
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await.map_err(|cause| words(&cause))?;
    let request = format!("GET / HTTP/1.0\r\nHost: {ECHO}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|cause| words(&cause))?;
    let mut answer = String::new();
    // The service closes without TLS's goodbye; what has arrived is judged as it is.
    let _ = stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await;
    Ok(answer)
}

/// The address in an HTTP answer with status 200.
fn parse(answer: &str) -> Option<Ipv4Addr> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?;
    if status == "200" { body.trim().parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_taken_from_the_answer() {
        assert_eq!(
            parse("HTTP/1.1 200 OK\r\nA: b\r\n\r\n203.0.113.7\n"),
            Some(Ipv4Addr::new(203, 0, 113, 7))
        );
        for answer in
            ["HTTP/1.1 500 No\r\n\r\n203.0.113.7\n", "HTTP/1.1 200 OK\r\n\r\n<html>", "", "203.0.113.7"]
        {
            assert_eq!(parse(answer), None, "{answer:?}");
        }
    }
}
