//! What a request must show before anything is done for it: where it was addressed to, and who asks.
//! Invariant: a web page in a browser on this machine reaches nothing here, whatever name it resolves to loopback.

use super::error::ApiError;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};

/// The secret that the client presents: `Authorization: Bearer …`, `x-api-key`, or `x-portkey-api-key`. A header that comes twice presents none:
/// a proxy in front of this node might have looked at the other one.
#[must_use]
pub fn secret(headers: &HeaderMap) -> Option<&str> {
    if headers.contains_key(header::AUTHORIZATION) {
        let (scheme, secret) = only(headers, header::AUTHORIZATION)?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim());
    }
    let own = header::HeaderName::from_static("x-api-key");
    // Portkey's clients send it so, where they are not told otherwise.
    let theirs = header::HeaderName::from_static("x-portkey-api-key");
    if headers.contains_key(&own) { only(headers, own) } else { only(headers, theirs) }
}

/// The value of a header that is there once.
fn only(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// Refuses a request to a name that is not this machine's own, for servers that listen on loopback only.
///
/// # Errors
/// 403 if the `Host` header names anything but `localhost` or a loopback address, or is there twice.
pub fn host(headers: &HeaderMap) -> Result<(), ApiError> {
    let named = only(headers, header::HOST).and_then(|host| host.parse::<Authority>().ok());
    if named.is_some_and(|authority| is_loopback(authority.host())) {
        return Ok(());
    }
    Err(ApiError::new(403, "host_not_allowed", "this server answers to localhost and loopback addresses only"))
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Refuses a browser's request from another origin, for routes that change things.
///
/// # Errors
/// 403 if there is an `Origin` that is not the `Host`, or the browser says that the request crosses sites.
pub fn origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let refused = || Err(ApiError::new(403, "origin_not_allowed", "requests from other web pages are not taken"));
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("\u{0}"));
    if let Some(origin) = text(header::ORIGIN) {
        let from = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if from.is_none() || from != text(header::HOST) {
            return refused();
        }
    }
    let site = text(header::HeaderName::from_static("sec-fetch-site"));
    if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return refused();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = &'static [(&'static str, &'static str)];

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (header::HeaderName::from_static(name), value.parse().expect("a value"))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn only_loopback_names_pass() {
        let cases = [
            (Some("localhost"), true),
            (Some("LOCALHOST:8080"), true),
            (Some("127.0.0.1:1"), true),
            (Some("127.8.9.1"), true),
            (Some("[::1]:8080"), true),
            (Some("evil.example"), false),
            (Some("localhost.evil.example:8080"), false),
            (Some("127.0.0.1.evil.example"), false),
            (Some("10.0.0.1:8080"), false),
            (Some("0.0.0.0:8080"), false),
            (Some("user@evil.example"), false),
            (Some(""), false),
            (None, false),
        ];
        for (name, want) in cases {
            let headers = name.map_or_else(HeaderMap::new, |name| headers(&[("host", name)]));
            assert_eq!(host(&headers).is_ok(), want, "{name:?}");
        }
    }

    #[test]
    fn other_origins_are_refused() {
        let cases: [(Pairs, bool); 8] = [
            (&[], true),
            (&[("origin", "http://localhost:1")], true),
            (&[("origin", "https://localhost:1")], true),
            (&[("origin", "http://localhost:2")], false),
            (&[("origin", "http://evil.example")], false),
            (&[("origin", "null")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "same-origin")], true),
        ];
        for (pairs, want) in cases {
            let mut headers = headers(pairs);
            headers.insert("host", "localhost:1".parse().expect("a value"));
            assert_eq!(origin(&headers).is_ok(), want, "{pairs:?}");
        }
    }

    #[test]
    fn secrets_come_in_two_headers() {
        let cases: [(Pairs, Option<&str>); 7] = [
            (&[("authorization", "Bearer abc")], Some("abc")),
            (&[("authorization", "bearer  abc ")], Some("abc")),
            (&[("authorization", "Basic abc")], None),
            (&[("authorization", "abc")], None),
            (&[("x-api-key", "abc")], Some("abc")),
            (&[("authorization", "Bearer a"), ("x-api-key", "b")], Some("a")),
            (&[], None),
        ];
        for (pairs, want) in cases {
            assert_eq!(secret(&headers(pairs)), want, "{pairs:?}");
        }
    }

    #[test]
    fn a_header_that_comes_twice_counts_for_nothing() {
        let cases = [("authorization", "Bearer abc"), ("x-api-key", "abc"), ("host", "localhost")];
        for (name, value) in cases {
            let mut headers = headers(&[(name, value)]);
            let shown = |headers: &HeaderMap| secret(headers).is_some() || host(headers).is_ok();
            assert!(shown(&headers), "{name} once");
            headers.append(name, value.parse().expect("a value"));
            assert!(!shown(&headers), "{name} twice");
        }
    }
}
