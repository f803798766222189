//! A provider's inference engine as a step model: continuous batching, chunked prefill, KV blocks, prefix cache, preemption.
