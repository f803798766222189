//! Answers that are given again: the same request by the same key (or project) within the time that its terms allow.
//! Invariants: nobody gets an answer that another tenant's request made; an answer is kept only if it came whole, from one place; the
//! kept bytes never exceed [`Cache::new`]'s bound.

use super::holder::{KeyId, ProjectId};
use crate::openai::Request;
use crate::openai::fields::Fields;
use crate::openai::{Answer, endpoint};
use spillway_ledger::{Credits, Digest};
use spillway_protocol::Kind;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Largest answer that is kept, in bytes.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// What an answer takes beside its bytes, in bytes: its place in the maps.
const OVERHEAD_BYTES: usize = 256;

/// Whose answers they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenant {
    /// One key's.
    Key(KeyId),
    /// Those of all keys of a project.
    Project(ProjectId),
}

/// What the client wishes of the cache: the request header `x-spillway-cache`, or `cache-control` as in RFC 9111.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheWish {
    /// An answer that is kept will do.
    #[default]
    Use,
    /// A new answer, to be kept in place of the old one: `refresh`, or `no-cache`.
    Refresh,
    /// A new answer, not to be kept: `bypass`, or `no-store`.
    Bypass,
}

impl CacheWish {
    /// What the two headers ask for, `x-spillway-cache` first; `None` for a word of it that is none.
    #[must_use]
    pub fn read(own: Option<&str>, cache_control: Option<&str>) -> Option<Self> {
        if let Some(own) = own {
            return match own {
                "use" => Some(Self::Use),
                "refresh" => Some(Self::Refresh),
                "bypass" => Some(Self::Bypass),
                _ => None,
            };
        }
        let words = cache_control.unwrap_or_default().split(',').map(str::trim);
        let has = |wanted: &str| words.clone().any(|word| word.eq_ignore_ascii_case(wanted));
        Some(if has("no-store") {
            Self::Bypass
        } else if has("no-cache") {
            Self::Refresh
        } else {
            Self::Use
        })
    }
}

/// What the cache did for an answer: the response header `x-spillway-cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheState {
    /// It was kept, and cost nothing.
    Hit,
    /// It was not kept, and will be.
    Miss,
    /// It was not looked for, and will be kept.
    Refreshed,
    /// It was neither looked for nor will be kept.
    Bypassed,
}

impl CacheState {
    /// As it stands in the header.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Refreshed => "refresh",
            Self::Bypassed => "bypass",
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The backend's events, in order.
    pub chunks: Vec<Vec<u8>>,
    /// Why it ended.
    pub finish: String,
    /// What it cost.
    pub cost: Credits,
}

impl Kept {
    fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len() + size_of::<Vec<u8>>()).sum::<usize>()
            + self.finish.len()
            + OVERHEAD_BYTES
    }
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Answers given again.
    pub hits: u64,
    /// Answers looked for in vain.
    pub misses: u64,
    /// What the answers given again would have cost, in micro-credits.
    pub saved_micro: u64,
    /// Bytes kept now.
    pub bytes: u64,
    /// Answers kept now.
    pub answers: u64,
}

/// All kept answers of a gateway, in memory.
#[derive(Debug)]
pub struct Cache {
    shelf: Mutex<Shelf>,
    bytes_max: usize,
    hits: AtomicU64,
    misses: AtomicU64,
    saved_micro: AtomicU64,
}

#[derive(Debug, Default)]
struct Shelf {
    answers: BTreeMap<Digest, Entry>,
    /// By when it was last used; the first goes first.
    used: BTreeMap<u64, Digest>,
    next_use: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    kept: Arc<Kept>,
    since: Instant,
    used: u64,
}

impl Shelf {
    fn remove(&mut self, name: &Digest) {
        if let Some(answer) = self.answers.remove(name) {
            self.used.remove(&answer.used);
            self.bytes -= answer.kept.bytes();
        }
    }

    fn touch(&mut self, name: Digest) {
        let Some(answer) = self.answers.get_mut(&name) else { return };
        self.used.remove(&answer.used);
        answer.used = self.next_use;
        self.used.insert(self.next_use, name);
        self.next_use += 1;
    }
}

/// What a request's answer is kept under: whose it is, the endpoint called, the models, what is wished of providers, and every field
/// of the body in whatever order; `way` is what else decides where it goes. Where a backend is asked for a stream in any case, the answer to a stream serves who wants it
/// whole, and the other way round.
#[must_use]
pub fn name(tenant: Tenant, asked: Kind, request: &Request, way: &str) -> Digest {
    let (kind, id) = match tenant {
        Tenant::Key(id) => ("key", id.to_string()),
        Tenant::Project(id) => ("project", id.to_string()),
    };
    let models: Vec<&str> = request.models.iter().map(|model| model.name.as_str()).collect();
    let models = models.join("\n");
    let either_form = !matches!(endpoint(request.kind).answer, Answer::Whole(_));
    let fields = Fields::parse(&request.body).unwrap_or_default();
    let mut parts: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name, value.get())).collect();
    parts.retain(|(name, _)| !(either_form && matches!(*name, "stream" | "stream_options")));
    parts.sort_unstable();
    // Forms have no fields: all their bytes count.
    let body = if parts.is_empty() { &request.body[..] } else { b"" };
    let parts = format!("{parts:?}");
    let wishes = format!("{:?}", request.routing);
    Digest::of(
        "spillway/response-cache/1",
        &[
            kind.as_bytes(),
            id.as_bytes(),
            asked.as_str().as_bytes(),
            request.kind.as_str().as_bytes(),
            models.as_bytes(),
            wishes.as_bytes(),
            way.as_bytes(),
            parts.as_bytes(),
            body,
        ],
    )
}

impl Cache {
    /// For at most so many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            shelf: Mutex::default(),
            bytes_max,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            saved_micro: AtomicU64::new(0),
        }
    }

    /// The answer of that name, if it was kept less than `for_at_most` before `now`.
    pub fn find(&self, name: Digest, for_at_most: Duration, now: Instant) -> Option<Arc<Kept>> {
        let mut shelf = self.shelf.lock().expect("no holder panics");
        let found = shelf.answers.get(&name).filter(|answer| now.saturating_duration_since(answer.since) < for_at_most);
        let Some(found) = found.map(|answer| Arc::clone(&answer.kept)) else {
            self.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        shelf.touch(name);
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.saved_micro.fetch_add(found.cost.micro(), Ordering::Relaxed);
        Some(found)
    }

    /// Keeps an answer in place of an older one of that name; the least lately used ones make room.
    pub fn keep(&self, name: Digest, kept: Kept, now: Instant) {
        let bytes = kept.bytes();
        if bytes > self.bytes_max {
            return;
        }
        let mut shelf = self.shelf.lock().expect("no holder panics");
        shelf.remove(&name);
        while shelf.bytes + bytes > self.bytes_max {
            let Some((_, oldest)) = shelf.used.first_key_value() else { break };
            let oldest = *oldest;
            shelf.remove(&oldest);
        }
        let used = shelf.next_use;
        shelf.next_use += 1;
        shelf.used.insert(used, name);
        shelf.bytes += bytes;
        shelf.answers.insert(name, Entry { kept: Arc::new(kept), since: now, used });
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        let shelf = self.shelf.lock().expect("no holder panics");
        CacheCounts {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            saved_micro: self.saved_micro.load(Ordering::Relaxed),
            bytes: shelf.bytes as u64,
            answers: shelf.answers.len() as u64,
        }
    }
}

/// An answer on its way to a client, and into the cache.
#[derive(Debug)]
pub struct Recording {
    cache: Arc<Cache>,
    name: Digest,
    places: u32,
    bytes: usize,
    chunks: Vec<Vec<u8>>,
}

impl Recording {
    /// Of the answer that is to be kept under `name`.
    #[must_use]
    pub const fn new(cache: Arc<Cache>, name: Digest) -> Self {
        Self { cache, name, places: 0, bytes: 0, chunks: Vec::new() }
    }

    /// The job was placed, for the first time or anew: an answer of several places is not kept.
    pub fn placed(&mut self) {
        self.places += 1;
        if self.places > 1 {
            self.chunks = Vec::new();
        }
    }

    /// An event of the backend.
    pub fn chunk(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len());
        if self.places == 1 && self.bytes <= ANSWER_BYTES_MAX {
            self.chunks.push(bytes.to_vec());
        } else {
            self.chunks = Vec::new();
        }
    }

    /// The job's proper end; what was cut at a limit is kept too, since the request names the limit.
    pub fn end(self, finish: &str, cost: Credits) {
        if self.places == 1 && self.bytes <= ANSWER_BYTES_MAX {
            let kept = Kept { chunks: self.chunks, finish: finish.into(), cost };
            self.cache.keep(self.name, kept, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn answer(bytes: usize) -> Kept {
        Kept { chunks: vec![vec![7; bytes]], finish: "stop".into(), cost: Credits::new(3) }
    }

    fn digest(number: u8) -> Digest {
        Digest::of("spillway/test/1", &[&[number]])
    }

    #[test]
    fn an_answer_is_found_until_it_is_too_old() {
        let (cache, now) = (Cache::new(1 << 20), Instant::now());
        let minute = Duration::from_secs(60);
        cache.keep(digest(1), answer(10), now);
        assert_eq!(
            cache.find(digest(1), minute, now + minute - Duration::from_millis(1)).as_deref(),
            Some(&answer(10))
        );
        assert_eq!(cache.find(digest(1), minute, now + minute), None);
        assert_eq!(cache.find(digest(2), minute, now), None);
        let counts = cache.counts();
        assert_eq!((counts.hits, counts.misses, counts.saved_micro, counts.answers), (1, 2, 3, 1));
    }

    #[test]
    fn the_least_lately_used_makes_room() {
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let each = answer(1000).bytes();
        let cache = Cache::new(3 * each);
        for number in 1..=3 {
            cache.keep(digest(number), answer(1000), now);
        }
        cache.find(digest(1), minute, now).expect("kept");
        cache.keep(digest(4), answer(1000), now);
        let there: Vec<u8> = (1..=4).filter(|number| cache.find(digest(*number), minute, now).is_some()).collect();
        assert_eq!(there, [1, 3, 4]);
        cache.keep(digest(3), answer(500), now);
        cache.keep(digest(9), answer(4 * each), now);
        let counts = cache.counts();
        assert_eq!(counts.answers, 3, "what is too large displaces nothing");
        assert_eq!(counts.bytes as usize, 2 * each + answer(500).bytes());
    }

    #[test]
    fn only_a_whole_answer_of_one_place_is_kept() {
        let minute = Duration::from_secs(60);
        let case = |play: &dyn Fn(&mut Recording)| {
            let cache = Arc::new(Cache::new(4 << 20));
            let mut recording = Recording::new(Arc::clone(&cache), digest(1));
            play(&mut recording);
            recording.end("stop", Credits::new(1));
            cache.find(digest(1), minute, Instant::now()).map(|kept| kept.chunks.concat())
        };
        let whole = case(&|recording| {
            recording.placed();
            recording.chunk(b"a");
            recording.chunk(b"b");
        });
        assert_eq!(whole.as_deref(), Some(b"ab".as_slice()));
        let moved = case(&|recording| {
            recording.placed();
            recording.chunk(b"a");
            recording.placed();
            recording.chunk(b"b");
        });
        assert_eq!(moved, None);
        let long = case(&|recording| {
            recording.placed();
            (0..=ANSWER_BYTES_MAX / 1024).for_each(|_| recording.chunk(&[0; 1024]));
        });
        assert_eq!(long, None);
    }

    #[test]
    fn a_name_tells_tenants_endpoints_and_requests_apart() {
        let request = |body: &str| Request::parse(Kind::Chat, body.as_bytes()).expect("a request");
        let one = r#"{"model":"m","messages":[{"role":"user","content":"a"}]}"#;
        let [key, other] = [KeyId([1; 4]), KeyId([2; 4])];
        let base = name(Tenant::Key(key), Kind::Chat, &request(one), "");
        let streamed = one.replace(r#""model""#, r#""stream":true,"stream_options":{"include_usage":true},"model""#);
        assert_eq!(
            base,
            name(Tenant::Key(key), Kind::Chat, &request(&streamed), ""),
            "a stream's answer serves the other form"
        );
        for different in [
            name(Tenant::Key(other), Kind::Chat, &request(one), ""),
            name(Tenant::Project(ProjectId([1; 4])), Kind::Chat, &request(one), ""),
            name(Tenant::Key(key), Kind::Response, &request(one), ""),
            name(Tenant::Key(key), Kind::Chat, &request(one), "another policy"),
            name(Tenant::Key(key), Kind::Chat, &request(&one.replace("\"a\"", "\"b\"")), ""),
            name(Tenant::Key(key), Kind::Chat, &request(&one.replace("\"m\"", "\"n\"")), ""),
            name(Tenant::Key(key), Kind::Chat, &request(&one.replace("\"model\"", "\"temperature\":0,\"model\"")), ""),
        ] {
            assert_ne!(base, different);
        }
    }

    #[test]
    fn headers_say_what_is_wished() {
        for (own, control, want) in [
            (None, None, Some(CacheWish::Use)),
            (None, Some("max-age=0, No-Cache"), Some(CacheWish::Refresh)),
            (None, Some("no-cache, no-store"), Some(CacheWish::Bypass)),
            (Some("refresh"), Some("no-store"), Some(CacheWish::Refresh)),
            (Some("bypass"), None, Some(CacheWish::Bypass)),
            (Some("use"), Some("no-cache"), Some(CacheWish::Use)),
            (Some("never"), None, None),
        ] {
            assert_eq!(CacheWish::read(own, control), want, "{own:?} {control:?}");
        }
    }
}
