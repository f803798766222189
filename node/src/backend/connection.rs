//! How a server is reached: its URL, its key, TLS, and connections that are used again.
//! Invariant: a key is read once, from where its section says, and is in no error, log or debug output.

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Url};
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

/// A client for a server, and its base URL; files are relative to `folder`.
///
/// # Errors
/// The setting that does not hold, and why.
pub fn connection(server: &ServerSection, folder: &Path) -> Result<(Client, Url), BadSetting> {
    let base = base_url(&server.url)?;
    let mut client = Client::builder()
        .redirect(Policy::none())
        .no_proxy()
        .default_headers(headers(server, folder)?)
        .connect_timeout(Duration::from_secs_f64(server.connect_s))
        .tcp_keepalive(KEEP_ALIVE_AFTER)
        .tcp_keepalive_interval(KEEP_ALIVE_EVERY)
        .tcp_keepalive_retries(KEEP_ALIVE_RETRIES)
        .pool_max_idle_per_host(server.slots as usize)
        .http2_keep_alive_interval(PING_EVERY)
        .tcp_nodelay(true);
    if base.scheme() == "http" {
        // A machine without certificates can still reach the server beside it.
        client = client.tls_certs_only([]).pool_idle_timeout(IDLE_MAX);
        if server.http2 {
            client = client.http2_prior_knowledge();
        }
    } else {
        client = client.pool_idle_timeout(IDLE_TLS_MAX);
    }
    if let Some(file) = &server.ca_file {
        let path = folder.join(file);
        let fail = |why: String| ("ca_file", format!("{}: {why}", path.display()));
        let pem = std::fs::read(&path).map_err(|error| fail(error.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|_| fail("no certificates in PEM".into()))?;
        if certificates.is_empty() {
            return Err(fail("no certificates in PEM".into()));
        }
        client = client.tls_certs_merge(certificates);
    }
    let client = client.build().map_err(|error| ("url", error.to_string()))?;
    Ok((client, base))
}

fn headers(server: &ServerSection, folder: &Path) -> Result<HeaderMap, BadSetting> {
    let mut headers = HeaderMap::new();
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
