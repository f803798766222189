//! The engine's handle: loads a model, starts its thread, takes requests.
//! Invariant: a request is checked, rendered and tokenised on its caller's thread; the engine's thread only computes.

use std::{
    fs::File,
    io::{BufReader, Cursor, Read, Seek},
    path::Path,
    sync::Arc,
    time::Duration,
};

use crate::{
    error::{LoadError, SubmitError},
    generation::{Finish, Generation, Piece, Usage},
    gguf::Gguf,
    model::Model,
    request::{ModelInfo, Prompt, Request},
    sampling::Sampling,
    scheduler::{Scheduler, Shared},
    sequence::{self, Job},
    template::ChatTemplate,
    tokenizer::Tokenizer,
};

static GUIDE: &[u8] = include_bytes!("../models/guide.gguf");

/// Bounds on the fields of [`EngineConfig`].
const SLOTS_MAX: usize = 1024;
const WAITING_MAX: usize = 1 << 20;
const THREADS_MAX: usize = 1024;

/// How an engine runs.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    /// Sequences that run at once: 1 to 1,024. Each keeps its keys and values in memory.
    pub slots: usize,
    /// Requests that may wait beyond those; 0 refuses what has no slot.
    pub waiting_max: usize,
    /// Threads that compute: 1 to 1,024; `None` for one per core. Products of matrices that are not in Q8_0 run in a pool of the
    /// whole process instead, whose size is the environment's `CANDLE_NUM_THREADS` (default: one thread per physical core).
    pub threads: Option<usize>,
    /// Most tokens of prompt and answer together; `None`, or more than the model's own limit, means that limit.
    pub context_max: Option<usize>,
    /// Most tokens per second of each sequence: an operator's limit, to leave the machine to others. `None` for no limit.
    pub tokens_per_second: Option<f64>,
}

impl Default for EngineConfig {
    /// 8 slots, 64 waiting, one thread per core, the model's context, no limit on speed.
    fn default() -> Self {
        Self { slots: 8, waiting_max: 64, threads: None, context_max: None, tokens_per_second: None }
    }
}

impl EngineConfig {
    fn check(&self) -> Result<(), LoadError> {
        let wrong = |field, reason: String| Err(LoadError::BadConfig { field, reason });
        if !(1..=SLOTS_MAX).contains(&self.slots) {
            return wrong("slots", format!("{} is not within 1 and {SLOTS_MAX}", self.slots));
        }
        if self.waiting_max > WAITING_MAX {
            return wrong("waiting_max", format!("{} is above {WAITING_MAX}", self.waiting_max));
        }
        if self.threads.is_some_and(|n| !(1..=THREADS_MAX).contains(&n)) {
            return wrong("threads", format!("it is not within 1 and {THREADS_MAX}"));
        }
        if self.context_max.is_some_and(|n| n < 2) {
            return wrong("context_max", "it is below 2".into());
        }
        if self.tokens_per_second.is_some_and(|r| !(r.is_finite() && r >= 0.001)) {
            return wrong("tokens_per_second", "it is not a number from 0.001 up".into());
        }
        Ok(())
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("model", self.info()).finish_non_exhaustive()
    }
}

/// A running model. Clones are the same engine; when the last is gone, its thread ends and open answers are cancelled.
#[derive(Clone)]
pub struct Engine {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    info: ModelInfo,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Engine {
    /// Loads the model in `gguf`, which is not kept.
    pub fn load_bytes(gguf: impl AsRef<[u8]>, config: EngineConfig) -> Result<Self, LoadError> {
        let bytes = gguf.as_ref();
        Self::load(Cursor::new(bytes), *blake3::hash(bytes).as_bytes(), config)
    }

    /// Loads the model in the file at `path`. Reads it twice: once for its digest.
    pub fn load_file(path: &Path, config: EngineConfig) -> Result<Self, LoadError> {
        let mut file = File::open(path)?;
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut file, &mut hasher)?;
        Self::load(BufReader::new(file), *hasher.finalize().as_bytes(), config)
    }

    /// Loads the model that comes with Spillway: small, and knows Spillway only.
    pub fn guide(config: EngineConfig) -> Result<Self, LoadError> {
        Self::load_bytes(GUIDE, config)
    }

    fn load<R: Read + Seek>(source: R, weights_digest: [u8; 32], config: EngineConfig) -> Result<Self, LoadError> {
        config.check()?;
        let mut gguf = Gguf::read(source)?;
        let tokenizer = Arc::new(Tokenizer::load(&gguf)?);
        let source = gguf.text("tokenizer.chat_template")?;
        let template_digest = *blake3::hash(source.unwrap_or_default().as_bytes()).as_bytes();
        let (bos, eos) = tokenizer.bos_eos();
        let template = source.map(|source| ChatTemplate::new(source, bos, eos)).transpose()?;
        let name = gguf.text("general.name")?.unwrap_or("unnamed").to_string();
        let model = Model::load(&mut gguf, tokenizer.size())?;
        let info = ModelInfo {
            name,
            architecture: model.architecture().into(),
            parameters: model.parameters(),
            quantization: model.quantization().into(),
            context_length: config.context_max.map_or(model.context(), |most| most.min(model.context())),
            weights_digest,
            tokenizer_digest: tokenizer.digest(),
            template_digest,
        };

        let threads =
            config.threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
        let start = |reason: String| LoadError::BadConfig { field: "threads", reason };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("spillway-engine-{i}"))
            .build()
            .map_err(|e| start(e.to_string()))?;
        let shared = Arc::new(Shared::new(config.slots, config.waiting_max));
        let interval = config.tokens_per_second.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate));
        let scheduler = Scheduler { model, tokenizer: tokenizer.clone(), shared: shared.clone(), interval };
        // The scheduler occupies one of the pool's threads; the others help it where that pays.
        std::thread::Builder::new()
            .name("spillway-engine".into())
            .spawn(move || pool.install(|| scheduler.run()))
            .map_err(|e| start(e.to_string()))?;
        Ok(Self { handle: Arc::new(Handle { shared, tokenizer, template, info }) })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.handle.info
    }

    /// Sequences in slots.
    pub fn running(&self) -> usize {
        self.handle.shared.load().0
    }

    /// Requests in the queue.
    pub fn waiting(&self) -> usize {
        self.handle.shared.load().1
    }

    /// The tokens of `text` as the model's tokenizer splits it: what the offer's meter counts.
    pub fn tokenize(&self, text: &str) -> Vec<u32> {
        // Every byte of a text has a token, as was checked on load, so that splitting cannot fail.
        self.handle.tokenizer.encode(text).map(|e| e.ids).unwrap_or_default()
    }

    /// Takes a request, or says at once why not. Never waits; renders and tokenises on the calling thread, which takes about
    /// 1 ms for 10 KB of text.
    ///
    /// Errors, in this order: a field out of range, no or an unhappy template, no room in the context, no room in the queue.
    pub fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        request.check()?;
        let Handle { shared, tokenizer, template, info } = &*self.handle;
        let context = info.context_length;
        // Too much text is refused before work is spent on it.
        let size = match &request.prompt {
            Prompt::Chat(messages) => messages.iter().map(|m| m.role.len() + m.content.len()).sum(),
            Prompt::Text(text) => text.len(),
        };
        let (fewest, fewest_prefix) = (tokenizer.fewest(size), tokenizer.fewest(request.prefix.len()));
        if fewest.saturating_add(fewest_prefix) >= context {
            return Err(SubmitError::ContextExceeded { prompt_tokens: fewest, prefix_tokens: fewest_prefix, context });
        }
        let prompt = match &request.prompt {
            Prompt::Chat(messages) => {
                tokenizer.encode_prompt(&template.as_ref().ok_or(SubmitError::NoTemplate)?.render(messages)?)?
            }
            Prompt::Text(text) => tokenizer.encode_prompt(text)?,
        };
        if prompt.is_empty() {
            return Err(SubmitError::OutOfRange { field: "prompt", reason: "it has no tokens".into() });
        }
        let prefix = tokenizer.encode(&request.prefix)?;
        let (prompt_tokens, prefix_tokens) = (prompt.len(), prefix.ids.len());
        if prompt_tokens + prefix_tokens >= context {
            return Err(SubmitError::ContextExceeded { prompt_tokens, prefix_tokens, context });
        }

        let (kept, again) = prefix.ids.split_at(prefix_tokens - prefix.last_word);
        let replay: Vec<u8> = again.iter().flat_map(|id| tokenizer.bytes(*id)).copied().collect();
        let answer_max = request.max_tokens.unwrap_or(usize::MAX).min(context - prompt_tokens);
        let (sender, receiver) = sequence::channel();
        let generation = Generation::new(receiver, shared.clone());
        if kept.len() >= answer_max {
            // The delivered text has used up the answer's length: nothing is left to compute.
            let usage = Usage { prompt_tokens, completion_tokens: prefix_tokens, prefix_tokens };
            for piece in [Piece::Started { prompt_tokens }, Piece::Done { finish: Finish::Length, usage }] {
                sender.try_send(piece).expect("a new channel has room for two");
            }
            return Ok(generation);
        }
        shared.enqueue(Job {
            prompt,
            kept: kept.to_vec(),
            replay,
            prefix: request.prefix,
            answer_max,
            sampling: Sampling { temperature: request.temperature, top_p: request.top_p, seed: request.seed },
            stop: request.stop,
            logprobs: request.logprobs,
            pieces: sender,
        })?;
        Ok(generation)
    }
}
