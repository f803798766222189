//! Answers that are given again: the same request by the same key (or project) within the time that its terms allow; where they
//! allow it, to a question that means the same.
//! Invariants: nobody gets an answer that another tenant's request made; an answer is kept only if it came whole, from one place; the
//! kept bytes never exceed [`Cache::new`]'s bound.

use super::holder::{KeyId, ProjectId};
use super::similar::{Question, Vector, may_share};
use crate::openai::Request;
use crate::openai::fields::Fields;
use crate::openai::{Answer, endpoint};
use spillway_ledger::{Credits, Digest};
use spillway_protocol::Kind;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Largest answer that is kept, in bytes.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;
/// What an answer takes beside its bytes, in bytes: its place in the maps.
const OVERHEAD_BYTES: usize = 256;
/// Questions with the same around them that are compared with a new one; the oldest goes first.
const NEIGHBOURS_MAX: usize = 256;

/// Whose answers they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenant {
    /// One key's.
    Key(KeyId),
    /// Those of all keys of a project.
    Project(ProjectId),
}

/// How a key's answers are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keeping {
    /// For whom.
    pub tenant: Tenant,
    /// For how long they are given again.
    pub lasts: Duration,
    /// How similar a question must be to get another's answer; `None` where only the same request does.
    pub similar: Option<f64>,
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
    /// One to a question that means the same was kept, and cost nothing.
    Similar,
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
            Self::Similar => "similar",
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
    /// Answers given again to the same request.
    pub hits: u64,
    /// Answers given to another question that means the same.
    pub similar: u64,
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
    similar: AtomicU64,
    misses: AtomicU64,
    saved_micro: AtomicU64,
}

#[derive(Debug, Default)]
struct Shelf {
    answers: BTreeMap<Digest, Entry>,
    /// The questions of answers that serve others, too, by what is around them; oldest first.
    neighbours: BTreeMap<Digest, VecDeque<Neighbour>>,
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
    /// What is around its question, if that has a place among its neighbours.
    context: Option<Digest>,
    bytes: usize,
}

/// A question whose answer is kept.
#[derive(Debug)]
struct Neighbour {
    name: Digest,
    text: String,
    vector: Vector,
}

impl Shelf {
    /// An answer that is young enough.
    fn take(&mut self, name: Digest, for_at_most: Duration, now: Instant) -> Option<Arc<Kept>> {
        let found = self.answers.get(&name).filter(|answer| now.saturating_duration_since(answer.since) < for_at_most);
        let found = found.map(|answer| Arc::clone(&answer.kept))?;
        self.touch(name);
        Some(found)
    }

    fn remove(&mut self, name: &Digest) {
        if let Some(answer) = self.answers.remove(name) {
            self.used.remove(&answer.used);
            self.bytes -= answer.bytes;
            if let Some(context) = answer.context
                && let Some(neighbours) = self.neighbours.get_mut(&context)
            {
                neighbours.retain(|neighbour| neighbour.name != *name);
                if neighbours.is_empty() {
                    self.neighbours.remove(&context);
                }
            }
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
            similar: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            saved_micro: AtomicU64::new(0),
        }
    }

    /// The answer of that name, if it was kept less than `for_at_most` before `now`.
    pub fn find(&self, name: Digest, for_at_most: Duration, now: Instant) -> Option<Arc<Kept>> {
        let found = self.shelf.lock().expect("no holder panics").take(name, for_at_most, now)?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.saved_micro.fetch_add(found.cost.micro(), Ordering::Relaxed);
        Some(found)
    }

    /// The answer to the question that is most like this one: as near as `least`, with no guard against it, and kept less than
    /// `for_at_most` before `now`.
    pub fn find_similar(
        &self,
        (question, vector): (&Question, &Vector),
        least: f64,
        for_at_most: Duration,
        now: Instant,
    ) -> Option<Arc<Kept>> {
        let mut shelf = self.shelf.lock().expect("no holder panics");
        let mut near: Vec<(f32, &Neighbour)> = Vec::new();
        for neighbour in shelf.neighbours.get(&question.context)? {
            let similarity = vector.similarity(&neighbour.vector).filter(|near| f64::from(*near) >= least);
            near.extend(similarity.map(|similarity| (similarity, neighbour)));
        }
        near.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let names: Vec<Digest> = near
            .into_iter()
            .filter(|(_, neighbour)| may_share(&neighbour.text, &question.text))
            .map(|(_, neighbour)| neighbour.name)
            .collect();
        let found = names.into_iter().find_map(|name| shelf.take(name, for_at_most, now))?;
        self.similar.fetch_add(1, Ordering::Relaxed);
        self.saved_micro.fetch_add(found.cost.micro(), Ordering::Relaxed);
        Some(found)
    }

    /// Counts an answer that was looked for in vain.
    pub fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps an answer in place of an older one of that name; the least lately used ones make room. With the `question`, it serves
    /// those that mean the same, too.
    pub fn keep(&self, name: Digest, kept: Kept, question: Option<(Question, Vector)>, now: Instant) {
        let asked = question.as_ref().map_or(0, |(question, vector)| {
            question.text.len() + vector.bytes() + size_of::<Neighbour>() + OVERHEAD_BYTES
        });
        let bytes = kept.bytes() + asked;
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
        let context = question.map(|(Question { context, text }, vector)| {
            let neighbours = shelf.neighbours.entry(context).or_default();
            if neighbours.len() == NEIGHBOURS_MAX {
                neighbours.pop_front();
            }
            neighbours.push_back(Neighbour { name, text, vector });
            context
        });
        shelf.answers.insert(name, Entry { kept: Arc::new(kept), since: now, used, context, bytes });
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        let shelf = self.shelf.lock().expect("no holder panics");
        CacheCounts {
            hits: self.hits.load(Ordering::Relaxed),
            similar: self.similar.load(Ordering::Relaxed),
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
    question: Option<(Question, Vector)>,
    places: u32,
    bytes: usize,
    chunks: Vec<Vec<u8>>,
}

impl Recording {
    /// Of the answer that is to be kept under `name`; with its `question`, for others that mean the same.
    #[must_use]
    pub const fn new(cache: Arc<Cache>, name: Digest, question: Option<(Question, Vector)>) -> Self {
        Self { cache, name, question, places: 0, bytes: 0, chunks: Vec::new() }
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
            self.cache.keep(self.name, kept, self.question, Instant::now());
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
        cache.keep(digest(1), answer(10), None, now);
        assert_eq!(
            cache.find(digest(1), minute, now + minute - Duration::from_millis(1)).as_deref(),
            Some(&answer(10))
        );
        assert_eq!(cache.find(digest(1), minute, now + minute), None);
        assert_eq!(cache.find(digest(2), minute, now), None);
        cache.missed();
        let counts = cache.counts();
        assert_eq!((counts.hits, counts.misses, counts.saved_micro, counts.answers), (1, 1, 3, 1));
    }

    #[test]
    fn the_least_lately_used_makes_room() {
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let each = answer(1000).bytes();
        let cache = Cache::new(3 * each);
        for number in 1..=3 {
            cache.keep(digest(number), answer(1000), None, now);
        }
        cache.find(digest(1), minute, now).expect("kept");
        cache.keep(digest(4), answer(1000), None, now);
        let there: Vec<u8> = (1..=4).filter(|number| cache.find(digest(*number), minute, now).is_some()).collect();
        assert_eq!(there, [1, 3, 4]);
        cache.keep(digest(3), answer(500), None, now);
        cache.keep(digest(9), answer(4 * each), None, now);
        let counts = cache.counts();
        assert_eq!(counts.answers, 3, "what is too large displaces nothing");
        assert_eq!(counts.bytes as usize, 2 * each + answer(500).bytes());
    }

    #[test]
    fn a_question_gets_the_answer_of_the_nearest_that_may_share_it() {
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let cache = Cache::new(1 << 20);
        let question = |context: u8, text: &str| Question { context: digest(context), text: text.into() };
        let vector = |x: f32, y: f32| Vector::new(vec![x, y]).expect("a direction");
        let answers = [("what is it", 1.0, 0.0, 1), ("what is that", 1.0, 0.1, 2), ("what is not it", 1.0, 0.01, 3)];
        for (number, (text, x, y, size)) in (1..).zip(answers) {
            cache.keep(digest(number), answer(size), Some((question(7, text), vector(x, y))), now);
        }
        let find = |context: u8, text: &str, y: f32, least: f64, at: Instant| {
            let found = cache.find_similar((&question(context, text), &vector(1.0, y)), least, minute, at);
            found.map(|kept| kept.chunks[0].len())
        };
        assert_eq!(find(7, "so what is it", 0.0, 0.95, now), Some(1), "the nearest");
        assert_eq!(find(7, "so what is it", 0.1, 0.95, now), Some(2));
        assert_eq!(find(7, "so what is not it", 0.0, 0.95, now), Some(3), "those nearer are not its like");
        assert_eq!(find(7, "so what is it", 0.1, 0.9999, now), Some(2));
        assert_eq!(find(7, "so what is it", 1.0, 0.95, now), None, "none is near");
        assert_eq!(find(8, "so what is it", 0.0, 0.95, now), None, "another context");
        assert_eq!(find(7, "so what is it", 0.0, 0.95, now + minute), None, "too old");
        assert_eq!((cache.counts().similar, cache.counts().saved_micro), (4, 12));
        // What goes leaves no trace.
        let before = cache.counts().bytes;
        cache.keep(digest(1), answer(1), None, now);
        assert_eq!(find(7, "so what is it", 0.0, 0.9999, now), None);
        assert!(cache.counts().bytes < before);
        for number in [1, 2, 3] {
            cache.shelf.lock().expect("no panic").remove(&digest(number));
        }
        let shelf = cache.shelf.lock().expect("no panic");
        assert_eq!((shelf.bytes, shelf.neighbours.len(), shelf.used.len()), (0, 0, 0));
    }

    #[test]
    fn only_a_whole_answer_of_one_place_is_kept() {
        let minute = Duration::from_secs(60);
        let case = |play: &dyn Fn(&mut Recording)| {
            let cache = Arc::new(Cache::new(4 << 20));
            let mut recording = Recording::new(Arc::clone(&cache), digest(1), None);
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
