//! How a server is reached: its URL, its key, TLS, and connections that are used again.
//! Invariants: a key is read once, from where its section says, and is in no error, log or debug output; nothing is followed
//! elsewhere, and no proxy of the environment is used.
//!
//! A server without TLS, as one beside this node mostly is, is spoken to by hyper's own client. reqwest, which the others are reached
//! by, keeps the system's certificates and reads each URL anew, which shows in memory at rest and in each request: `docs/performance.md`.

use super::in_words;
use axum::http::header::{ACCEPT, AUTHORIZATION};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Url};
use spillway_protocol::Kind;
use spillway_protocol::config::ServerSection;
use std::path::Path;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long an idle connection is kept to a server beside this node. Shorter than common servers keep theirs (5 s), so that a
/// request is never written to a connection that is being closed.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// The same behind TLS: opening one anew costs two round trips over the internet, whose balancers keep theirs for a minute.
const IDLE_TLS_MAX: Duration = Duration::from_secs(45);
/// How often a connection of HTTP/2 is asked whether it lives, while it is in use.
const PING_EVERY: Duration = Duration::from_secs(20);

/// When, how often and how many times a silent host is asked whether it is there: 30 s after its last word, one that is not is
/// given up, however long an answer may take.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(15);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEP_ALIVE_RETRIES: u32 = 3;

/// A setting that does not hold, and why.
pub type BadSetting = (&'static str, String);

/// The connections to one server. They are opened as requests need them, and used again.
#[derive(Debug)]
pub struct Connections {
    way: Way,
    /// What goes with each request.
    headers: HeaderMap,
}

#[derive(Debug)]
enum Way {
    Plain(Box<legacy::Client<HttpConnector, Full<Bytes>>>),
    Tls(reqwest::Client),
}

/// An answer that has begun.
#[derive(Debug)]
pub struct Received {
    head: response::Parts,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Plain(hyper::body::Incoming),
    Tls(reqwest::Body),
}

impl Connections {
    /// Sends a request to the server that these connections are to; its URI is absolute.
    ///
    /// # Errors
    /// Why there is no answer, in words and without the URL.
    pub async fn send(&self, mut request: Request<Bytes>) -> Result<Received, String> {
        request.headers_mut().extend(self.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        let (head, body) = match &self.way {
            Way::Plain(client) => {
                let answer = client.request(request.map(Full::new)).await.map_err(|error| in_words(&error))?;
                let (head, body) = answer.into_parts();
                (head, Body::Plain(body))
            }
            Way::Tls(client) => {
                let request = reqwest::Request::try_from(request).map_err(|error| in_words(&error))?;
                let answer = client.execute(request).await.map_err(|error| in_words(&error))?;
                let (head, body) = axum::http::Response::<reqwest::Body>::from(answer).into_parts();
                (head, Body::Tls(body))
            }
        };
        Ok(Received { head, body })
    }

    /// As [`Self::send`], for what has no body.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn get(&self, uri: &Uri) -> Result<Received, String> {
        let mut request = Request::new(Bytes::new());
        request.uri_mut().clone_from(uri);
        self.send(request).await
    }
}

impl Received {
    /// Its status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.head.status
    }

    /// Its headers.
    #[must_use]
    pub const fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// The next piece of its body; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// Why it broke off, in words.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let frame = match &mut self.body {
                Body::Plain(body) => body.frame().await.map(|frame| frame.map_err(|error| in_words(&error))),
                Body::Tls(body) => body.frame().await.map(|frame| frame.map_err(|error| in_words(&error))),
            };
            let Some(frame) = frame else { return Ok(None) };
            // Trailers are nothing that anybody asked for.
            if let Ok(bytes) = frame?.into_data() {
                return Ok(Some(bytes));
            }
        }
    }

    /// All of its body, if it is no longer than `max` bytes.
    ///
    /// # Errors
    /// Why it broke off, in words, or that it is longer.
    pub async fn bytes(&mut self, max: usize) -> Result<Vec<u8>, String> {
        let mut body = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            if body.len() + bytes.len() > max {
                return Err(format!("its answer is over {} KiB", max >> 10));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }
}

/// The connections to a server, and its base URL; files are relative to `folder`.
///
/// # Errors
/// The setting that does not hold, and why.
pub fn connection(server: &ServerSection, folder: &Path) -> Result<(Connections, Url), BadSetting> {
    let base = base_url(&server.url)?;
    let headers = headers(server, folder)?;
    let certificates = certificates(server, folder)?;
    let way = if base.scheme() == "http" {
        Way::Plain(Box::new(plain(server)))
    } else {
        Way::Tls(tls(server, certificates)?)
    };
    Ok((Connections { way, headers }, base))
}

fn plain(server: &ServerSection) -> legacy::Client<HttpConnector, Full<Bytes>> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(Duration::from_secs_f64(server.connect_s)));
    connector.set_keepalive(Some(KEEP_ALIVE_AFTER));
    connector.set_keepalive_interval(Some(KEEP_ALIVE_EVERY));
    connector.set_keepalive_retries(Some(KEEP_ALIVE_RETRIES));
    connector.set_nodelay(true);
    let mut client = legacy::Client::builder(TokioExecutor::new());
    client
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_max_idle_per_host(server.slots as usize)
        .pool_idle_timeout(IDLE_MAX);
    if server.http2 {
        client.http2_only(true).http2_keep_alive_interval(PING_EVERY);
    }
    client.build(connector)
}

fn tls(server: &ServerSection, certificates: Vec<Certificate>) -> Result<reqwest::Client, BadSetting> {
    let client = reqwest::Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(Duration::from_secs_f64(server.connect_s))
        .tcp_keepalive(KEEP_ALIVE_AFTER)
        .tcp_keepalive_interval(KEEP_ALIVE_EVERY)
        .tcp_keepalive_retries(KEEP_ALIVE_RETRIES)
        .pool_max_idle_per_host(server.slots as usize)
        .http2_keep_alive_interval(PING_EVERY)
        .tcp_nodelay(true)
        .pool_idle_timeout(IDLE_TLS_MAX);
    let client = if certificates.is_empty() { client } else { client.tls_certs_merge(certificates) };
    client.build().map_err(|error| ("url", error.to_string()))
}

/// The authorities that are trusted beside the system's.
fn certificates(server: &ServerSection, folder: &Path) -> Result<Vec<Certificate>, BadSetting> {
    let Some(file) = &server.ca_file else { return Ok(Vec::new()) };
    let path = folder.join(file);
    let fail = |why: String| ("ca_file", format!("{}: {why}", path.display()));
    let pem = std::fs::read(&path).map_err(|error| fail(error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|_| fail("no certificates in PEM".into()))?;
    if certificates.is_empty() {
        return Err(fail("no certificates in PEM".into()));
    }
    Ok(certificates)
}

fn headers(server: &ServerSection, folder: &Path) -> Result<HeaderMap, BadSetting> {
    let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("*/*"))]);
    let Some((setting, key)) = key(server, folder)? else { return Ok(headers) };
    let secret = |text: &str| {
        let mut value =
            HeaderValue::from_str(text).map_err(|_| (setting, "it cannot be sent in a header".to_owned()))?;
        value.set_sensitive(true);
        Ok::<_, BadSetting>(value)
    };
    headers.insert(AUTHORIZATION, secret(&Zeroizing::new(format!("Bearer {}", *key)))?);
    if server.endpoints.contains(&Kind::Message) {
        // Servers of Anthropic's Messages want it here.
        headers.insert("x-api-key", secret(&key)?);
    }
    Ok(headers)
}

/// The server's key, and the setting that tells where it is.
fn key(server: &ServerSection, folder: &Path) -> Result<Option<(&'static str, Zeroizing<String>)>, BadSetting> {
    if let Some(name) = &server.key_env {
        let key = std::env::var(name).map_err(|_| ("key_env", format!("the environment has no {name}")))?;
        return Ok(Some(("key_env", Zeroizing::new(key))));
    }
    let Some(file) = &server.key_file else { return Ok(None) };
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).map(Zeroizing::new);
    let text = text.map_err(|error| ("key_file", format!("{}: {error}", path.display())))?;
    let key = Zeroizing::new(text.trim().to_owned());
    if key.is_empty() {
        return Err(("key_file", format!("{}: empty", path.display())));
    }
    Ok(Some(("key_file", key)))
}

/// A URL as requests have it.
///
/// # Panics
/// If it is no URL of a server's that [`connection`] gave, or below one.
#[must_use]
pub fn uri(url: &Url) -> Uri {
    url.as_str().parse().expect("it was one when the settings were read")
}

/// A URL that paths can be put below.
pub(super) fn base_url(text: &str) -> Result<Url, BadSetting> {
    // What is wrong with it is said without repeating it: it may hold what its writer took for the place of a key.
    let url: Url = text.parse().map_err(|_| ("url", "no URL".to_owned()))?;
    let fail = |why: &str| Err(("url", why.to_owned()));
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return fail("neither http:// nor https:// with a host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return fail("holds a password; use key_file or key_env");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return fail("has a query or a fragment");
    }
    if url.as_str().parse::<Uri>().is_err() {
        return fail("no URL that a request can have");
    }
    Ok(url)
}

/// The URL of a path below a server's.
pub fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_joined() {
        let cases = [
            ("http://127.0.0.1:8000/v1", Some("http://127.0.0.1:8000/v1/chat/completions")),
            ("http://127.0.0.1:8000/v1/", Some("http://127.0.0.1:8000/v1/chat/completions")),
            ("https://api.example.org", Some("https://api.example.org/chat/completions")),
            ("ftp://host/v1", None),
            ("file:///etc/passwd", None),
            ("http://user:secret@host/v1", None),
            ("http://host/v1?key=secret", None),
            ("host:8000/v1", None),
            ("", None),
        ];
        for (text, want) in cases {
            let got = base_url(text).ok().map(|base| below(&base, "chat/completions").to_string());
            assert_eq!(got.as_deref(), want, "{text}");
        }
    }

    #[test]
    fn a_key_is_read_and_never_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
        write("good", "sk-third-party\n");
        write("empty", "\n");
        write("bad", "sk-third\nparty");
        let with = |file: &str| ServerSection {
            key_file: Some(file.into()),
            ..ServerSection::new("https://api.example.org/v1")
        };
        let (client, _) = connection(&with("good"), folder.path()).expect("a client");
        assert_eq!(headers(&with("good"), folder.path()).expect("headers")[AUTHORIZATION], "Bearer sk-third-party");
        assert!(!format!("{client:?}").contains("third-party"), "{client:?}");
        for (file, setting) in [("empty", "key_file"), ("absent", "key_file"), ("bad", "key_file")] {
            let (field, why) = connection(&with(file), folder.path()).expect_err(file);
            assert!(field == setting && !why.contains("third"), "{field}: {why}");
        }
        let unset =
            ServerSection { key_env: Some("SPILLWAY_TEST_UNSET".into()), ..ServerSection::new("http://localhost/v1") };
        let error = connection(&unset, folder.path()).expect_err("unset");
        assert_eq!(error, ("key_env", "the environment has no SPILLWAY_TEST_UNSET".into()));
        write("ca.pem", "no certificate");
        for file in ["ca.pem", "absent"] {
            let server = ServerSection { ca_file: Some(file.into()), ..ServerSection::new("https://localhost/v1") };
            assert_eq!(connection(&server, folder.path()).expect_err(file).0, "ca_file");
        }
    }
}
