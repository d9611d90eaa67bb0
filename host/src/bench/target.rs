//! Reads a benchmark's URL: `http://HOST[:PORT][/PATH][?QUERY]`.
//!
//! Does not resolve names, and knows neither TLS nor user names in URLs.

use std::net::Ipv6Addr;

use super::options::wrong;
use crate::error::Error;

/// Where requests go and what they ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// A name or an address; an IPv6 address without its brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// What the Host field says: the host as written, with the port unless it is 80.
    pub(super) authority: String,
    /// Path and query; starts with `/`.
    pub(super) path: String,
}

/// Longer request lines are refused by servers.
const URL_BYTES_MAX: usize = 8 << 10;

impl Target {
    /// Errors (of kind `recipe`) on any other scheme, white space, control and non-ASCII characters, user names,
    /// a bad host or port. A fragment is dropped, as it is never sent.
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        let fail = |why: &str| wrong(format!("url {url:?}: {why}"));
        let example = "write for example \"http://127.0.0.1:8080/cluster1\"";
        if url.len() > URL_BYTES_MAX {
            return Err(wrong("url is longer than 8 KiB").with_hint(example));
        }
        if let Some(bad) = url.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(fail(&format!("character {bad:?} is not allowed")).with_hint(
                "percent-encode spaces and other special characters, for example %20 for a space",
            ));
        }
        let rest = after_scheme(url).map_err(|why| fail(why).with_hint(example))?;
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = split_authority(authority).map_err(|why| fail(why).with_hint(example))?;
        let path = if tail.starts_with('/') { tail.to_owned() } else { format!("/{tail}") };
        let written =
            authority.strip_suffix(":80").or_else(|| authority.strip_suffix(':')).unwrap_or(authority);
        Ok(Self { host, port, authority: written.to_owned(), path })
    }

    /// The path's first segment (the cluster, by labhost's convention), else the authority.
    pub(super) fn name(&self) -> &str {
        let segment = self.path[1..].split(['/', '?']).next().unwrap_or_default();
        if segment.is_empty() { &self.authority } else { segment }
    }
}

fn after_scheme(url: &str) -> Result<&str, &'static str> {
    match url.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => Ok(rest),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => {
            Err("https is not supported: the benchmark speaks plain HTTP/1.1")
        }
        Some(_) => Err("only http:// is supported"),
        None => Err("it must start with http://"),
    }
}

fn split_authority(authority: &str) -> Result<(String, u16), &'static str> {
    if authority.contains('@') {
        return Err("a user name in a URL is not supported; send an authorization header instead");
    }
    if let Some(inner) = authority.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or("the IPv6 address lacks its closing bracket")?;
        host.parse::<Ipv6Addr>().map_err(|_| "not an IPv6 address between the brackets")?;
        let port = if after.is_empty() { Ok("") } else { after.strip_prefix(':').ok_or("bad port") }?;
        return Ok((host.to_owned(), read_port(port)?));
    }
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if host.is_empty() || host.len() > 253 || !host.bytes().all(allowed) {
        return Err("the host is not a name or an address");
    }
    Ok((host.to_owned(), read_port(port)?))
}

fn read_port(text: &str) -> Result<u16, &'static str> {
    if text.is_empty() {
        return Ok(80);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or("the port is not a number from 1 to 65535")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, host: &str, port: u16, authority: &str, path: &str) {
        let target = Target::parse(url).unwrap();
        let read = (target.host.as_str(), target.port, target.authority.as_str(), target.path.as_str());
        assert_eq!(read, (host, port, authority, path), "{url}");
    }

    #[test]
    fn reads_host_port_path_and_query() {
        check("http://127.0.0.1", "127.0.0.1", 80, "127.0.0.1", "/");
        check("http://127.0.0.1:80/", "127.0.0.1", 80, "127.0.0.1", "/");
        check("HTTP://localhost:8080/a/b?c=d#e", "localhost", 8080, "localhost:8080", "/a/b?c=d");
        check("http://localhost?x", "localhost", 80, "localhost", "/?x");
        check("http://[::1]:81/x", "::1", 81, "[::1]:81", "/x");
        check("http://[::1]", "::1", 80, "[::1]", "/");
    }

    #[test]
    fn refuses_what_it_cannot_ask() {
        let bad = [
            "",
            "127.0.0.1",
            "https://a/",
            "ftp://a/",
            "http://",
            "http:///x",
            "http://a:0/",
            "http://a:65536/",
            "http://a:+1/",
            "http://a:b/",
            "http://u@a/",
            "http://[::1/",
            "http://[x]/",
            "http://[::1]x/",
            "http://a b/",
            "http://a/\r\nX: y",
            "http://a/ü",
            "http://a/\u{7f}",
            "http://a,b/",
        ];
        for url in bad {
            let error = Target::parse(url).expect_err(url);
            assert!(error.hint.is_some(), "{url}");
        }
    }

    #[test]
    fn https_is_named() {
        assert!(Target::parse("https://a/").unwrap_err().message.contains("https is not supported"));
    }

    #[test]
    fn is_named_after_its_cluster() {
        assert_eq!(Target::parse("http://a:1/cluster1/x").unwrap().name(), "cluster1");
        assert_eq!(Target::parse("http://a:1/?q").unwrap().name(), "a:1");
    }
}
