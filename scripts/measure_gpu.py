#!/usr/bin/env python3
"""Measures the kernel times behind the simulator's step model, and fits the model to them.

    python3 scripts/measure_gpu.py --model llama-3.1-8b --tp 1 --out FILE     # needs a CUDA GPU, torch and triton
    python3 scripts/measure_gpu.py --fit FILE [--fixed-ms 2.0]                # needs numpy alone
    python3 scripts/measure_gpu.py --model llama-3.1-8b --tp 1 --out FILE --dry-run   # tiny, on the CPU: does it run?

One run measures one rank of a tensor-parallel group, on one GPU, in about half a minute: bf16, random weights (zeros would
run faster), one layer at a time. Every time is the median of repeated replays of a CUDA graph, so launch overhead does not
count; weights and KV rotate through enough memory that no repeat finds them in the L2.

FILE is CSV. Comment lines (`# key: value`) name the GPU, the software, the model and its sizes; then the columns

    kernel,tokens,sequences,context,us,spread_pct

with `us` for one call on one layer and `spread_pct` the interquartile range over the median. Which of the other columns
count depends on the kernel:

    layer                          tokens: one whole layer without attention and all-reduce, kernels back to back
    norm qkv qk_norm rope o gate_up act down embedding      tokens: the layer's kernels one by one
    lm_head, greedy, sampler       sequences (greedy: the likeliest token; sampler: softmax and a draw)
    decode_flash, decode_packed    sequences, each with `context` tokens of KV (GQA left to the kernel / packed into rows)
    decode_cudnn                   the same by cuDNN
    prefill_flash, prefill_cudnn   a chunk of `tokens` after a prefix of `context`, causal
    varlen, varlen_packed          a chunk of `tokens` without prefix and `sequences` decoding at `context`, in one call
    copy, matmul                   the card's ceilings: 4 GiB copied (8 GiB moved); 8192 x 8192 x 8192

`--fit` prints one row of `step_time_coefficients.csv` and, on stderr, how well each part fits. The model, in ms:

    t_step = fixed + max(weight_floor, a + b*n_tokens) + per_seq*n_seqs
           + [dec_const + kv_us*sum_kv] * (mult if the batch also has prefill)
           + [pre_const + p*chunk + p2*chunk*(prefix + chunk/2)]

What one GPU cannot show is stated, not measured: `fixed` (the engine's own time per step), and the all-reduces, of which
a layer has two and the embedding one. See `ALL_REDUCE`.
"""

import argparse
import csv
import math
import subprocess
import sys
import time

try:  # Fitting needs neither.
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None
try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

# Published shapes (each model's config.json). Head size is 128 in all of them.
MODELS = {
    "llama-3.1-8b": dict(name="Llama-3.1-8B", hidden=4096, layers=32, heads=32, kv_heads=8, inter=14336, vocab=128256, parameters=8.03e9),
    "llama-3-70b": dict(name="Llama-3-70B", hidden=8192, layers=80, heads=64, kv_heads=8, inter=28672, vocab=128256, parameters=70.55e9),
    "qwen3-32b": dict(name="Qwen3-32B", hidden=5120, layers=64, heads=64, kv_heads=8, inter=25600, vocab=151936, parameters=32.76e9, qk_norm=True),
    "llama-2-7b": dict(name="Llama-2-7B", hidden=4096, layers=32, heads=32, kv_heads=32, inter=11008, vocab=32000, parameters=6.74e9),
    "llama-2-70b": dict(name="Llama-2-70B", hidden=8192, layers=80, heads=64, kv_heads=8, inter=28672, vocab=32000, parameters=68.98e9),
}
HEAD = 128

TOKENS = [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 8192]
SEQUENCES = [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 1024]
DECODE = [(n, kv) for n in (1, 4, 16, 32, 64, 128, 256, 512) for kv in (128, 512, 1024, 2048, 4096, 8192, 16384, 32768) if n * kv <= 1 << 20]
PREFILL = [(c, p) for c in (64, 128, 256, 512, 1024, 2048, 4096, 8192) for p in (0, 512, 2048, 8192, 16384, 32768) if c * p <= 1 << 27]
VARLEN = [(c, n, kv) for c in (512, 2048) for n in (0, 16, 64, 128) for kv in (1024, 4096) if n or kv == 1024]

# An all-reduce of S bytes over `tp` H100s of one NVLink switch: latency + 2 (tp-1)/tp * S / bandwidth, in us and bytes/us.
# Bandwidth: the slope, between 2 and 50 MB, of Vidur's NCCL times on a DGX H100 (microsoft/vidur, MIT); it is 70 to 80 % of
# NVLink 4's 450 GB/s a direction. Latency: what remains, under that slope, of the times vLLM's developers printed for its
# own kernels on H100 in pull requests 24111, 24532 and 42324 (7, 10 and 11 us for 512 KiB over 2, 4 and 8).
ALL_REDUCE = {1: (0.0, math.inf), 2: (5.0, 308e3), 4: (7.0, 352e3), 8: (9.0, 365e3)}


def rank_of(model, tp):
    """The sizes of one rank's share of `model`, heads and rows split `tp` ways."""
    m = dict(MODELS[model])
    if m["kv_heads"] % tp or tp not in ALL_REDUCE:
        sys.exit(f"--tp {tp}: {model} has {m['kv_heads']} KV heads, and the all-reduce is known for {sorted(ALL_REDUCE)}")
    m.update(tp=tp, heads=m["heads"] // tp, kv_heads=m["kv_heads"] // tp, inter=m["inter"] // tp, vocab_rank=-(-m["vocab"] // tp))
    return m


# --- Element-wise kernels, fused as a serving engine fuses them. -----------------------------------------------------

if triton:

    @triton.jit
    def _add_rms(x, residual, weight, out, width, add: tl.constexpr, block: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) * width
        cols = tl.arange(0, block)
        mask = cols < width
        v = tl.load(x + row + cols, mask, 0.0).to(tl.float32)
        if add:
            v += tl.load(residual + row + cols, mask, 0.0).to(tl.float32)
            tl.store(residual + row + cols, v.to(tl.bfloat16), mask)
        scale = 1.0 / tl.sqrt(tl.sum(v * v, 0) / width + 1e-5)
        w = tl.load(weight + cols, mask, 0.0).to(tl.float32)
        tl.store(out + row + cols, (v * scale * w).to(tl.bfloat16), mask)

    @triton.jit
    def _silu_mul(x, out, width, block: tl.constexpr):
        cols = tl.program_id(1) * block + tl.arange(0, block)
        mask = cols < width
        row = tl.program_id(0).to(tl.int64)
        g = tl.load(x + row * 2 * width + cols, mask, 0.0).to(tl.float32)
        u = tl.load(x + row * 2 * width + width + cols, mask, 0.0).to(tl.float32)
        tl.store(out + row * width + cols, (g / (1.0 + tl.exp(-g)) * u).to(tl.bfloat16), mask)

    @triton.jit
    def _head_rms(x, weight, out, rows, width: tl.constexpr, tall: tl.constexpr):
        row = (tl.program_id(0) * tall + tl.arange(0, tall)).to(tl.int64)[:, None]
        at = row * width + tl.arange(0, width)[None, :]
        v = tl.load(x + at, row < rows, 0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(v * v, 1) / width + 1e-5)
        w = tl.load(weight + tl.arange(0, width)).to(tl.float32)
        tl.store(out + at, (v * scale[:, None] * w[None, :]).to(tl.bfloat16), row < rows)

    @triton.jit
    def _rope(x, cos, sin, heads, stride, half: tl.constexpr, tall: tl.constexpr):
        token = tl.program_id(0).to(tl.int64)
        head = tl.program_id(1) * tall + tl.arange(0, tall)[:, None]
        cols = tl.arange(0, half)
        at = x + token * stride + head * 2 * half + cols[None, :]
        c = tl.load(cos + token * half + cols).to(tl.float32)[None, :]
        s = tl.load(sin + token * half + cols).to(tl.float32)[None, :]
        a = tl.load(at, head < heads, 0.0).to(tl.float32)
        b = tl.load(at + half, head < heads, 0.0).to(tl.float32)
        tl.store(at, (a * c - b * s).to(tl.bfloat16), head < heads)
        tl.store(at + half, (b * c + a * s).to(tl.bfloat16), head < heads)


def add_rms(x, residual, weight, out):
    """residual += x; out = residual / rms(residual) * weight. Without a residual, the norm of x alone."""
    rows, width = x.numel() // weight.numel(), weight.numel()
    if not (triton and x.is_cuda):
        v = x.float() if residual is None else x.float() + residual.float()
        if residual is not None:
            residual.copy_(v)
        out.copy_((v.view(rows, width) * torch.rsqrt(v.view(rows, width).pow(2).mean(-1, keepdim=True) + 1e-5) * weight.float()).view_as(out))
        return
    if residual is None and width == HEAD:
        _head_rms[(triton.cdiv(rows, 16),)](x, weight, out, rows, width, 16)
        return
    block = triton.next_power_of_2(width)
    _add_rms[(rows,)](x, x if residual is None else residual, weight, out, width, residual is not None, block, num_warps=max(1, min(16, block // 512)))


def silu_mul(x, out):
    """out = silu(first half of x) * second half."""
    if not (triton and x.is_cuda):
        gate, up = x.float().chunk(2, -1)
        out.copy_(F.silu(gate) * up)
        return
    _silu_mul[(x.shape[0], triton.cdiv(out.shape[1], 1024))](x, out, out.shape[1], 1024)


def rope(qkv, cos, sin, heads):
    """Rotates the first `heads` heads of each row of `qkv` in place, halves paired as Llama pairs them."""
    if not (triton and qkv.is_cuda):
        part = qkv[:, : heads * HEAD].view(-1, heads, 2, HEAD // 2)
        a, b = part[:, :, 0].float(), part[:, :, 1].float()
        c, s = cos.float()[:, None], sin.float()[:, None]
        part.copy_(torch.stack((a * c - b * s, b * c + a * s), 2))
        return
    _rope[(qkv.shape[0], triton.cdiv(heads, 16))](qkv, cos, sin, heads, qkv.shape[1], HEAD // 2, 16)


def flash(q, k, v, causal):
    """FlashAttention-2 as torch ships it; causal is aligned to the end of the keys. Shapes: (batch, heads, length, 128)."""
    if q.is_cuda:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)[0]
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]) if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def cudnn(q, k, v, causal):
    """cuDNN's attention; causal is aligned to the start of the keys, so it is used for a chunk on itself only."""
    if q.is_cuda and hasattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention"):
        return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, False, 0.0, causal)[0]
    return flash(q, k, v, causal)


def varlen(q, k, v, starts_q, starts_k, max_q, max_k, causal):
    """FlashAttention-2 over sequences of unequal length in one call, causal to the end or not. Shapes: (tokens, heads, 128)."""
    if q.is_cuda:
        return torch.ops.aten._flash_attention_forward(q, k, v, starts_q, starts_k, max_q, max_k, 0.0, causal, False)[0]
    at_q, at_k = starts_q.tolist(), starts_k.tolist()
    rows = [(q[a:b], k[c:d], v[c:d]) for a, b, c, d in zip(at_q, at_q[1:], at_k, at_k[1:])]
    return torch.cat([flash(x.transpose(0, 1)[None], y.transpose(0, 1)[None], z.transpose(0, 1)[None], causal)[0].transpose(0, 1) for x, y, z in rows])


# --- Measuring. --------------------------------------------------------------------------------------------------------


class Bench:
    """Times calls and writes one CSV row for each, at once, so that a run cut short keeps what it has."""

    def __init__(self, out, device, wrong):
        self.device, self.out, self.wrong = torch.device(device), out, wrong
        self.gpu = self.device.type == "cuda"
        if self.gpu:  # One pool of memory for all graphs, held by the first, which does nothing.
            self.pool, self.anchor, nothing = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph(), torch.zeros(1, device=device)
            nothing.add_(1)
            with torch.cuda.graph(self.anchor, pool=self.pool):
                nothing.add_(1)

    def row(self, kernel, tokens, sequences, context, us, spread):
        self.out.write(f"{kernel},{tokens},{sequences},{context},{us:.3f},{spread:.1f}\n")
        self.out.flush()

    def time(self, kernel, call, copies, tokens=0, sequences=0, context=0):
        """Writes the median time of `call(i)`, i going round the `copies` of its data. A call that the library refuses
        (an attention shape, say) leaves a comment instead of a row, and one that computes something else leaves nothing."""
        if kernel in self.wrong:
            return
        try:
            us, spread = self.median(call, copies)
        except RuntimeError as refused:
            self.out.write(f"# refused: {kernel} {tokens} {sequences} {context}: {str(refused).splitlines()[0]}\n")
            self.out.flush()
            return
        self.row(kernel, tokens, sequences, context, us, spread)

    def median(self, call, copies):
        if not self.gpu:
            laps = []
            for i in range(3):
                start = time.perf_counter()
                call(i % copies)
                laps.append((time.perf_counter() - start) * 1e6)
            return quartiles(laps)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # Loads modules, makes plans and workspaces, and says how long a call is.
            call(0)
            side.synchronize()
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            for i in range(3):
                call((i + 1) % copies)
            ended.record()
            side.synchronize()
        rough = began.elapsed_time(ended) / 3 * 1e3
        calls = copies * max(1, round(min(1000 / rough, 96) / copies))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            for i in range(calls):
                call(i % copies)
        repeats = max(5, min(15, int(15e3 / (rough * calls))))
        bursts = []
        for _ in range(2):  # Two bursts, and the better one: now and then the host or the clock disturbs a whole burst.
            graph.replay()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
            events[0].record()
            for event in events[1:]:
                graph.replay()
                event.record()
            torch.cuda.synchronize()
            bursts.append(quartiles([a.elapsed_time(b) * 1e3 / calls for a, b in zip(events, events[1:])]))
        return min(bursts)

    def rand(self, *shape, scale=1.0):
        return torch.empty(shape, dtype=torch.bfloat16, device=self.device).normal_(0, scale)


def quartiles(laps):
    laps = sorted(laps)
    median = laps[len(laps) // 2]
    return median, (laps[(3 * len(laps)) // 4] - laps[len(laps) // 4]) / median * 100


def copies_for(size, least=256 << 20):
    """How many buffers of `size` bytes to go round so that each is out of the L2 (50 MB on an H100) when its turn comes."""
    return max(1, min(32, -(-least // max(size, 1))))


class Dense:
    """One rank's layer: its weights, several times over, and its kernels on `n` tokens."""

    def __init__(self, bench, m):
        self.b, self.m = bench, m
        h, wide = m["hidden"], (m["heads"] + 2 * m["kv_heads"]) * HEAD
        self.shapes = {"qkv": (wide, h), "o": (h, m["heads"] * HEAD), "gate_up": (2 * m["inter"], h), "down": (h, m["inter"])}
        sizes = [2 * a * b for a, b in self.shapes.values()]
        self.layers = max(copies_for(sum(sizes), 768 << 20) + 1, copies_for(min(sizes), 192 << 20))
        self.weights = [{k: bench.rand(*s, scale=s[1] ** -0.5) for k, s in self.shapes.items()} for _ in range(self.layers)]
        self.gain = torch.ones(h, dtype=torch.bfloat16, device=bench.device)
        self.head_gain = self.gain[:HEAD]

    def buffers(self, n):
        m, b = self.m, self.b
        self.x, self.residual, self.normed = (b.rand(n, m["hidden"]) for _ in range(3))
        self.qkv, self.attended = b.rand(n, self.shapes["qkv"][0]), b.rand(n, m["heads"] * HEAD)
        self.gate_up, self.acted = b.rand(n, 2 * m["inter"]), b.rand(n, m["inter"])
        angle = torch.rand(n, HEAD // 2, device=b.device)
        self.cos, self.sin = angle.cos().bfloat16(), angle.sin().bfloat16()
        self.heads = b.rand(n, m["heads"] + m["kv_heads"], HEAD)

    def layer(self, i):
        w = self.weights[i]
        add_rms(self.x, self.residual, self.gain, self.normed)
        qkv = F.linear(self.normed, w["qkv"])
        if self.m.get("qk_norm"):
            add_rms(self.heads, None, self.head_gain, self.heads)
        rope(qkv, self.cos, self.sin, self.m["heads"] + self.m["kv_heads"])
        add_rms(F.linear(self.attended, w["o"]), self.residual, self.gain, self.normed)
        silu_mul(F.linear(self.normed, w["gate_up"]), self.acted)
        torch.mm(self.acted, w["down"].t(), out=self.x)

    def measure(self, tokens, kernels):
        for n in tokens:
            self.buffers(n)
            self.b.time("layer", self.layer, self.layers, tokens=n)
            if not kernels:
                continue
            for kernel, x in (("qkv", self.normed), ("o", self.attended), ("gate_up", self.normed), ("down", self.acted)):
                self.b.time(kernel, lambda i, k=kernel, x=x: F.linear(x, self.weights[i][k]), self.layers, tokens=n)
            self.b.time("norm", lambda i: add_rms(self.x, self.residual, self.gain, self.normed), 1, tokens=n)
            self.b.time("act", lambda i: silu_mul(self.gate_up, self.acted), 1, tokens=n)
            self.b.time("rope", lambda i: rope(self.qkv, self.cos, self.sin, self.m["heads"] + self.m["kv_heads"]), 1, tokens=n)
            if self.m.get("qk_norm"):
                self.b.time("qk_norm", lambda i: add_rms(self.heads, None, self.head_gain, self.heads), 1, tokens=n)


def measure_ends(b, m, tokens, sequences):
    """The embedding, the output projection and the sampler: the likeliest, or softmax in float32 and exponential noise."""
    table = b.rand(m["vocab_rank"], m["hidden"], scale=m["hidden"] ** -0.5)
    for n in tokens:
        ids = torch.randint(m["vocab_rank"], (n,), device=b.device)
        b.time("embedding", lambda i: F.embedding(ids, table), 1, tokens=n)
    tables = [table] + [b.rand(*table.shape, scale=0.02) for _ in range(copies_for(table.numel() * 2) - 1)]
    for n in sequences:
        x, logits = b.rand(n, m["hidden"]), b.rand(n, m["vocab"])
        b.time("lm_head", lambda i: F.linear(x, tables[i]), len(tables), sequences=n)
        noise = torch.empty(n, m["vocab"], device=b.device)
        b.time("greedy", lambda i: logits.float().argmax(-1), 1, sequences=n)
        b.time("sampler", lambda i: logits.softmax(-1, torch.float32).div_(noise.exponential_()).argmax(-1), 1, sequences=n)


def measure_decode(b, m, points):
    """One new token for each of n sequences. KV lies as pages of whole sequences, (n, context, KV heads, 128)."""
    kv, group = m["kv_heads"], m["heads"] // m["kv_heads"]
    need = max(n * c * copies_for(4 * n * c * kv * HEAD) for n, c in points) * kv * HEAD
    keys, values = b.rand(need), b.rand(need)
    for n, context in points:
        size = n * context * kv * HEAD
        copies = copies_for(4 * size)
        part = lambda pool, i: pool[i * size : (i + 1) * size].view(n, context, kv, HEAD).transpose(1, 2)
        q = b.rand(n, kv, group, HEAD)
        single = q.view(n, kv * group, 1, HEAD)
        b.time("decode_flash", lambda i: flash(single, part(keys, i), part(values, i), False), copies, sequences=n, context=context)
        b.time("decode_packed", lambda i: flash(q, part(keys, i), part(values, i), False), copies, sequences=n, context=context)
        b.time("decode_cudnn", lambda i: cudnn(single, part(keys, i), part(values, i), False), copies, sequences=n, context=context)


def measure_prefill(b, m, points):
    longest = max(c + p for c, p in points)
    keys, values = (b.rand(1, longest, m["kv_heads"], HEAD).transpose(1, 2) for _ in range(2))
    queries = b.rand(1, max(c for c, _ in points), m["heads"], HEAD).transpose(1, 2)
    for c, p in points:
        q, k, v = queries[:, :, :c], keys[:, :, : c + p], values[:, :, : c + p]
        b.time("prefill_flash", lambda i: flash(q, k, v, True), 1, tokens=c, context=p)

        def both(i):  # The chunk on itself, then on the prefix. Merging the two is left out: a fused kernel has no merge.
            cudnn(q, k[:, :, p:], v[:, :, p:], True)
            if p:
                cudnn(q, k[:, :, :p], v[:, :, :p], False)

        b.time("prefill_cudnn", both, 1, tokens=c, context=p)


def measure_varlen(b, m, points):
    """Both kinds of work in one call, twice. Once plainly. Once with the query heads that share a KV head laid in rows, as
    newer kernels do: what a mask cannot say then, a prefix of half the length says (the chunk does the same work)."""
    ends = lambda parts: torch.tensor([sum(parts[:i]) for i in range(len(parts) + 1)], dtype=torch.int32, device=b.device)
    group = m["heads"] // m["kv_heads"]
    for c, n, context in points:
        keys, values = (b.rand(c + n * context, m["kv_heads"], HEAD) for _ in range(2))
        for kernel, rows, seen, causal in (("varlen", 1, c, True), ("varlen_packed", group, c // 2, False)):
            queries = b.rand((c + n) * rows, m["heads"] // rows, HEAD)
            call = (queries, keys, values, ends([c * rows] + [rows] * n), ends([seen] + [context] * n), c * rows, max(seen, context if n else 0), causal)
            b.time(kernel, lambda i: varlen(*call), 1, tokens=c, sequences=n, context=context if n else 0)


def measure_ceilings(b):
    source = b.rand(2 << 30)
    target = torch.empty_like(source)
    b.time("copy", lambda i: target.copy_(source), 1)
    del target
    x, y = b.rand(8192, 8192), b.rand(8192, 8192)
    b.time("matmul", lambda i: x @ y, 1, tokens=8192)


def check(device):
    """The relative error of each kernel of ours and of each attention call against float32. Wrong numbers have no times."""
    torch.manual_seed(1)
    rand = lambda *s: torch.randn(s, device=device).bfloat16()
    off = lambda a, b: ((a.float() - b.float()).norm() / b.float().norm()).item()
    errors = {}
    x, r, w = rand(37, 4096), rand(37, 4096), rand(4096)
    out, total = torch.full_like(x, math.nan), x.float() + r.float()
    add_rms(x, r, w, out)
    errors["norm"] = max(off(out, total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + 1e-5) * w.float()), off(r, total))
    x, w = rand(37, HEAD), rand(HEAD)
    out = torch.full_like(x, math.nan)
    add_rms(x, None, w, out)
    errors["qk_norm"] = off(out, x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5) * w.float())
    x = rand(37, 3000)
    out = torch.full_like(x[:, :1500], math.nan).contiguous()
    silu_mul(x, out)
    errors["act"] = off(out, F.silu(x[:, :1500].float()) * x[:, 1500:].float())
    x, angle = rand(37, 6 * HEAD), torch.rand(37, HEAD // 2, device=device)
    c, s = angle.cos().bfloat16(), angle.sin().bfloat16()
    a, b = x[:, : 4 * HEAD].float().view(37, 4, 2, -1).unbind(2)
    right = torch.stack((a * c[:, None].float() - b * s[:, None].float(), b * c[:, None].float() + a * s[:, None].float()), 2).view(37, -1)
    right, kept = torch.cat((right, x[:, 4 * HEAD :].float()), 1), x
    rope(kept, c, s, 4)
    errors["rope"] = off(kept, right)

    def exact(q, k, v, causal):
        group = q.shape[1] // k.shape[1]
        k, v = (t.float().repeat_interleave(group, 1) for t in (k, v))
        score = q.float() @ k.transpose(-1, -2) / math.sqrt(HEAD)
        if causal:
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=device).tril(k.shape[2] - q.shape[2])
            score = score.masked_fill(~seen, -math.inf)
        return score.softmax(-1) @ v

    q, k, v = rand(3, 8, 1, HEAD), *(rand(3, 300, 2, HEAD).transpose(1, 2) for _ in range(2))
    errors["decode_flash"] = off(flash(q, k, v, False), exact(q, k, v, False))
    errors["decode_packed"] = off(flash(q.view(3, 2, 4, HEAD), k, v, False).reshape(3, 8, 1, HEAD), exact(q, k, v, False))
    try:
        errors["decode_cudnn"] = off(cudnn(q, k, v, False), exact(q, k, v, False))
    except RuntimeError:
        errors["decode_cudnn"] = math.inf  # Not on this GPU.
    q = rand(1, 200, 8, HEAD).transpose(1, 2)
    k, v = (rand(1, 300, 2, HEAD).transpose(1, 2) for _ in range(2))
    errors["prefill_flash"] = off(flash(q, k, v, True), exact(q, k, v, True))
    try:
        own, prefix = (q, k[:, :, 100:], v[:, :, 100:], True), (q, k[:, :, :100], v[:, :, :100], False)
        errors["prefill_cudnn"] = max(off(cudnn(*own), exact(*own)), off(cudnn(*prefix), exact(*prefix)))
    except RuntimeError:
        errors["prefill_cudnn"] = math.inf  # Not on this GPU.
    k, v = (rand(200 + 90, 2, HEAD) for _ in range(2))
    q = rand(201, 8, HEAD)
    starts = [torch.tensor(s, dtype=torch.int32, device=device) for s in ([0, 200, 201], [0, 200, 290])]
    got = varlen(q, k, v, *starts, 200, 200, True)
    lay = lambda t: t.transpose(0, 1)[None]
    parts = [exact(lay(q[:200]), lay(k[:200]), lay(v[:200]), True), exact(lay(q[200:]), lay(k[200:]), lay(v[200:]), True)]
    errors["varlen"] = off(lay(got), torch.cat(parts, 2))
    return errors


def measure(model, tp, path, device="cuda", dry=False, parts=("dense", "attention", "ceilings")):
    """Measures one rank of `model` split `tp` ways and writes the file at `path`."""
    m = rank_of(model, tp)
    tokens, sequences, decode, prefill, mixed = TOKENS, SEQUENCES, DECODE, PREFILL, VARLEN
    if dry:
        m.update(hidden=256, inter=512, vocab=1024, vocab_rank=1024 // tp)
        tokens, sequences, decode, prefill, mixed = [1, 8], [1, 4], [(1, 128), (4, 128)], [(64, 0), (64, 512)], [(32, 0, 64), (32, 2, 64)]
    errors = check(device)
    wrong = {k for k, e in errors.items() if not e < 1e-2}
    if wrong & {"norm", "qk_norm", "act", "rope"}:
        sys.exit(f"wrong results, so no times: {errors}")
    with open(path, "w", encoding="utf-8") as out:
        facts = dict(gpu="CPU, a dry run", driver="-", memory_gib="0")
        if device == "cuda":
            said = subprocess.run(["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"], capture_output=True, text=True)
            facts = dict(gpu=torch.cuda.get_device_name(), driver=said.stdout.strip().replace(",", ";") or "unknown", memory_gib=f"{torch.cuda.get_device_properties(0).total_memory / 2**30:.1f}")
        facts.update(torch=torch.__version__, date=time.strftime("%Y-%m-%d", time.gmtime()), model=model, tensor_parallel=tp, layers=m["layers"])
        facts.update(errors=" ".join(f"{k}={e:.1e}" for k, e in errors.items()))
        out.writelines(f"# {k}: {v}\n" for k, v in facts.items())
        out.write("kernel,tokens,sequences,context,us,spread_pct\n")
        b = Bench(out, device, wrong)
        with torch.no_grad():
            if "dense" in parts:
                dense = Dense(b, m)
                dense.measure(tokens, kernels=True)
                dense.measure(tokens[::3], kernels=False)  # A second time: how far two runs of the same thing differ.
                del dense
                measure_ends(b, m, tokens, sequences)
            if "attention" in parts:
                measure_decode(b, m, decode)
                measure_prefill(b, m, prefill)
                measure_varlen(b, m, mixed)
            if "ceilings" in parts and not dry:
                measure_ceilings(b)


# --- Fitting. ------------------------------------------------------------------------------------------------------------

# Engine settings and memory that the row states: what vLLM takes by default on a GPU of 70 GB or more, and how it divides
# the memory. 3.5 GB for activations and graphs is what the 307,328 tokens leave that llm-d published for Qwen3-32B on 2 H100s.
MAX_SEQS, CHUNK_BUDGET, MEMORY_USED, MEMORY_OTHER = 1024, 8192, 0.9, 3.5e9
# The engine's own time per step, in ms: the mean of the two GPUs with a real vLLM run (0.6 and 3.5), the best there is.
FIXED_MS = 2.0
COLUMNS = (
    "gpu,model,fixed_ms,weight_floor_ms,dense_a_ms,dense_b_us_per_token,per_seq_us,decode_attn_const_ms,decode_kv_us_per_token,mixed_batch_decode_mult,"
    "prefill_attn_const_ms,prefill_attn_us_per_token,prefill_attn_us_per_token2,kv_capacity_tokens,max_num_seqs,chunk_budget,source"
)


def read(path):
    """The facts of a measured file, and its times in us: {(kernel, tokens, sequences, context): [us, ...]}."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    times = {}
    for r in csv.DictReader(line for line in lines if not line.startswith("#")):
        times.setdefault((r["kernel"], int(r["tokens"]), int(r["sequences"]), int(r["context"])), []).append(float(r["us"]))
    return facts, times


def nonnegative(columns, y, weight):
    """Weighted least squares with no coefficient below zero: the best over all choices of columns."""
    import numpy as np

    best = None
    for chosen in range(1, 1 << len(columns)):
        picked = [i for i in range(len(columns)) if chosen >> i & 1]
        a = np.stack([columns[i] for i in picked], 1) * weight[:, None]
        solved = np.linalg.lstsq(a, y * weight, rcond=None)[0]
        loss = float(((a @ solved - y * weight) ** 2).sum())
        if (solved >= 0).all() and (best is None or loss < best[0] - 1e-12):
            full = np.zeros(len(columns))
            full[picked] = solved
            best = (loss, full)
    return best[1]


def hinge(x, y):
    """floor, a, b of max(floor, a + b x), least squares of the relative error, the best over all places of the bend."""
    import numpy as np

    best = None
    for bend in range(1, len(x) - 1):
        low, high = slice(0, bend), slice(bend, None)
        floor = (1 / y[low]).sum() / (1 / y[low] ** 2).sum()
        b, a = np.polyfit(x[high], y[high], 1, w=1 / y[high])
        loss = float(((np.maximum(floor, a + b * x) / y - 1) ** 2).sum())
        if best is None or loss < best[0]:
            best = (loss, floor, a, b)
    return best[1:]


def fit(path, fixed_ms=FIXED_MS, out=sys.stdout, log=sys.stderr):
    """Prints the coefficients that a measured file gives, and on `log` how well each part of the model fits it."""
    import numpy as np

    facts, times = read(path)
    m = rank_of(facts["model"], int(facts["tensor_parallel"]))
    layers, tp = m["layers"], m["tp"]
    latency, bandwidth = ALL_REDUCE[tp]
    share = 2 * (tp - 1) / tp
    reduces = 2 * layers + 1 if tp > 1 else 0
    say = lambda text: print(text, file=log)
    get = lambda *key: float(np.median(times[key]))
    say(f"{path}: {m['name']} TP{tp} on {facts['gpu']}, torch {facts['torch']}")

    # Sequences: the output projection reads its weights once (a constant, put beside the dense layers') and grows from there.
    n = np.array(sorted(k[2] for k in times if k[0] == "lm_head" and k[2] <= 512), float)
    y = np.array([get("lm_head", 0, int(i), 0) + get("greedy", 0, int(i), 0) for i in n])
    head_us, per_seq_us = nonnegative([np.ones_like(n), n], y, 1 / y)
    draw = [(get("sampler", 0, int(i), 0) - get("greedy", 0, int(i), 0)) / i for i in n[n >= 64]]
    say(f"  per sequence: {error(head_us + per_seq_us * n, y, n)}; greedy; drawing from the softmax adds {np.mean(draw):.2f} us")
    per_seq_us += share / 2 * m["vocab"] * 2 / bandwidth  # Its logits, gathered.

    tokens = np.array(sorted(k[1] for k in times if k[0] == "layer"), float)
    own = np.array([layers * get("layer", int(t), 0, 0) + get("embedding", int(t), 0, 0) for t in tokens])
    reduced = reduces * (latency + share * tokens * m["hidden"] * 2 / bandwidth)
    dense = (own + reduced) / 1e3
    floor, a, b = hinge(tokens, dense)
    say(f"  dense: {error(np.maximum(floor, a + b * tokens), dense, tokens)}; all-reduce is {reduced[0] / 10 / dense[0]:.0f} % of it at 1 token, {reduced[-1] / 10 / dense[-1]:.0f} % at {tokens[-1]:.0f}")
    floor, a = floor + head_us / 1e3, a + head_us / 1e3
    dense_ms = lambda t: np.maximum(floor, a + b * t)

    # Attention: errors count by their part of the whole step, for a microsecond is a microsecond wherever it is spent.
    fastest = lambda kernels, *key: min(get(k, *key) for k in kernels if (k, *key) in times)
    decode, prefill = ("decode_flash", "decode_packed", "decode_cudnn"), ("prefill_flash", "prefill_cudnn")
    points = sorted({k[1:] for k in times if k[0] in decode})
    seqs, kv = np.array([p[1] for p in points], float), np.array([p[1] * p[2] for p in points], float)
    y = np.array([layers * fastest(decode, *p) for p in points]) / 1e3
    step = fixed_ms + dense_ms(seqs) + y
    dec_const, kv_ms = nonnegative([np.ones_like(kv), kv], y, 1 / step)
    got = dec_const + kv_ms * kv
    say(f"  decode: of the step, {error(step - y + got, step, kv)}; alone from 2^17 tokens of KV, {error(got[kv >= 1 << 17], y[kv >= 1 << 17], kv[kv >= 1 << 17])}; {bandwidth_of(m, kv, y):.2f} TB/s of KV at most")

    points = sorted({k[1:] for k in times if k[0] in prefill})
    chunk, prefix = (np.array([p[i] for p in points], float) for i in (0, 2))
    y = np.array([layers * fastest(prefill, *p) for p in points]) / 1e3
    step = fixed_ms + dense_ms(chunk) + y
    area = chunk * (prefix + chunk / 2)
    fair = chunk >= 256  # A shorter chunk leaves most of the GPU idle; it is a prompt's last, and the fit is not bent for it.
    pre_const, p_ms, p2_ms = nonnegative([np.ones_like(chunk[fair]), chunk[fair], area[fair]], y[fair], 1 / step[fair])
    got = pre_const + p_ms * chunk + p2_ms * area
    say(f"  prefill: of the step, {error((step - y + got)[fair], step[fair], chunk[fair])}, below 256 tokens {error((step - y + got)[~fair], step[~fair], chunk[~fair])}; {4 * HEAD * m['heads'] * (area * layers / y).max() / 1e9:.0f} TFLOP/s at most")

    mult = 1.0  # Over calls with enough sequences to fill the GPU: with fewer, newer kernels split the KV, and this one does not.
    for kernel in ("varlen", "varlen_packed"):
        mults = []
        for _, c, s, context in (k for k in times if k[0] == kernel and k[2] * m["kv_heads"] >= 128):
            if (kernel, c, 0, 0) in times and any((d, 0, s, context) in times for d in decode):
                mults.append((get(kernel, c, s, context) - get(kernel, c, 0, 0)) / fastest(decode, 0, s, context))
        if mults:
            mult = max(1.0, float(np.median(mults)))
            say(f"  mixed, {kernel}: decoding takes {min(mults):.2f} to {max(mults):.2f} times as long in a call that also has prefill, median {mult:.2f}")

    again = [max(v) / min(v) * 100 - 100 for k, v in times.items() if k[0] == "layer" and len(v) > 1]
    parts = ("qkv", "o", "gate_up", "down", "act", "rope") + (("qk_norm",) if m.get("qk_norm") else ())
    sums = [(sum(get(k, t, 0, 0) for k in parts) + 2 * get("norm", t, 0, 0)) / get("layer", t, 0, 0) * 100 - 100 for t in map(int, tokens)]
    say(f"  two runs of a layer differ by {np.median(again):.1f} % (median) and {max(again):.1f} % (most); its kernels one by one sum to {min(sums):+.0f} to {max(sums):+.0f} % of it")

    per_token = layers * m["kv_heads"] * HEAD * 2 * 2
    capacity = int((MEMORY_USED * float(facts["memory_gib"]) * 2**30 - 2 * m["parameters"] / tp - MEMORY_OTHER) / per_token) // 16 * 16
    gpu = facts["gpu"].removeprefix("NVIDIA ")
    name = gpu if tp == 1 else f"{tp}x {gpu}"
    numbers = (f"{fixed_ms:.3f} {floor:.3f} {a:.3f} {b * 1e3:.3f} {per_seq_us:.2f} {dec_const:.3f} {kv_ms * 1e3:.5f} {mult:.2f} {pre_const:.3f} {p_ms * 1e3:.4f} {p2_ms * 1e3:.7f} {capacity}").split()
    source = f"scripts/measure_gpu.py on one {gpu}; torch {facts['torch']}; {facts['date']}" + ("; all-reduce by formula" if tp > 1 else "")
    print(",".join([name, f"{m['name']} bf16 TP{tp}", *numbers, str(MAX_SEQS), str(CHUNK_BUDGET), source]), file=out)


def error(got, y, at):
    """Mean and worst relative error, and where the worst is."""
    import numpy as np

    off = got / y - 1
    worst = int(np.abs(off).argmax())
    return f"{np.abs(off).mean() * 100:.1f} % mean, {off[worst] * 100:+.1f} % worst (at {at[worst]:.0f})"


def bandwidth_of(m, kv, ms):
    return float((kv * m["kv_heads"] * HEAD * 4 * m["layers"] / ms).max()) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(MODELS))
    parser.add_argument("--tp", type=int, default=1, help="ranks that the model is split over; one of them is measured")
    parser.add_argument("--out", help="where the measured CSV goes")
    parser.add_argument("--dense-only", action="store_true", help="leave attention and the ceilings out")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU, to see that the script runs; its times mean nothing")
    parser.add_argument("--fit", metavar="FILE", nargs="+", help="print coefficients for measured files instead")
    parser.add_argument("--fixed-ms", type=float, default=FIXED_MS, help="the engine's own time per step, which no kernel shows")
    args = parser.parse_args()
    if args.fit:
        print(COLUMNS)
        for path in args.fit:
            fit(path, args.fixed_ms)
        return
    if not (args.model and args.out):
        parser.error("--model and --out, or --fit")
    if torch is None or not (args.dry_run or (torch.cuda.is_available() and triton)):
        sys.exit("measuring needs torch, triton and a CUDA GPU; --dry-run needs torch alone")
    parts = ("dense",) if args.dense_only else ("dense", "attention", "ceilings")
    measure(args.model, args.tp, args.out, "cpu" if args.dry_run else "cuda", args.dry_run, parts)


if __name__ == "__main__":
    main()
