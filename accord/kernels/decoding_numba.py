"""CPU kernels for generating one token per row: attention over the cache, norms, SwiGLU, products with weights that do
not fit into a processor's cache, and the draw from the logits.

Arrays are flat float32 views; a head's width and a row's width are multiples of ``LANES``.  Rows [first, last) are
independent, so the number of threads changes no bit.

Plain form: ``accord.models.transformer.Transformer.step`` without kernels and, of the draw,
``accord.rollout.generate.draw``; compared in ``tests/kernels/test_decoding_numba.py``.
"""

from __future__ import annotations

import math

import numpy as np

from accord.kernels.numba_vectors import (
    LANES,
    add,
    broadcast,
    compiled,
    exp2,
    fma,
    increase,
    load,
    mul,
    parallel_for,
    sigmoid,
    store,
    zero,
)

__all__ = ["TILE", "add_norm", "attend", "multiply", "sample", "parallel_for", "swiglu", "transpose_rows"]

LOG2E = math.log2(math.e)
TILE = 6  # outputs that are summed at once: with their sixteen rows they fill the registers of AVX2
BLOCK = 256  # numbers of a logits row that are summed as one


@compiled
def add_norm(x, delta, weight, out, eps, width, first, last):  # type: ignore[no-untyped-def]
    """x += delta, and out = x / rms(x) * weight; an empty ``delta`` adds nothing."""
    total = np.zeros(1, np.float32)
    for row in range(first, last):
        begin = row * width
        squares = zero()
        for i in range(begin, begin + width, LANES):
            value = load(x, i)
            if delta.size:
                value = add(value, load(delta, i))
                store(x, i, value)
            squares = fma(value, value, squares)
        total[0] = 0.0
        increase(total, 0, squares)
        total[0] = np.float32(1.0 / math.sqrt(total[0] / width + eps))
        scale = broadcast(total, 0)
        for i in range(0, width, LANES):
            store(out, begin + i, mul(mul(load(x, begin + i), scale), load(weight, i)))


@compiled
def swiglu(gate_up, out, width, first, last):  # type: ignore[no-untyped-def]
    """silu(gate) * up from rows (gate, up)."""
    for row in range(first, last):
        begin = 2 * row * width
        for i in range(0, width, LANES):
            gate = load(gate_up, begin + i)
            store(out, row * width + i, mul(mul(gate, sigmoid(gate)), load(gate_up, begin + width + i)))


@compiled
def _prepare(qkv, at, heads, width, rope, weights, eps):  # type: ignore[no-untyped-def]
    """In place, for ``heads`` of one row at ``at``: RMSNorm by ``weights`` where there are any, then the rotation."""
    for head in range(heads):
        start = at + head * width
        if weights.size:
            squares = np.float32(0.0)
            for i in range(width):
                squares += qkv[start + i] * qkv[start + i]
            scale = np.float32(1.0 / math.sqrt(squares / width + eps))
            for i in range(width):
                qkv[start + i] *= scale * weights[i]
        for i in range(0, width, 2):
            real, imaginary = qkv[start + i], qkv[start + i + 1]
            cosine, sine = rope[i], rope[i + 1]
            qkv[start + i] = real * cosine - imaginary * sine
            qkv[start + i + 1] = real * sine + imaginary * cosine


@compiled
def attend(  # type: ignore[no-untyped-def]
    qkv, rope, q_weight, k_weight, eps, keys, values, lengths, sizes, capacity, window, out, first, last
):
    """One token a row: rotates q and k, stores k and v after the row's others, and attends to the row's tokens.

    ``qkv`` (B, (H + 2 G) K); ``rope`` (B, K), cosine and sine of each pair; ``keys`` (B, G, C / LANES, K, LANES), so
    that the scores of ``LANES`` tokens fill a vector; ``values`` (B, G, C, K); ``lengths`` (B,) tokens before this
    one; ``sizes`` (H, G, K); ``capacity`` is C; ``out`` (B, H K).  A token sees ``window`` positions, itself included.
    """
    heads, groups, width = sizes
    shared = heads // groups  # queries that read the same keys
    scores = np.empty(capacity + LANES, np.float32)
    number = np.zeros(1, np.float32)
    power = np.float32(LOG2E / math.sqrt(width))
    for row in range(first, last):
        query = row * (heads + 2 * groups) * width
        angles = rope[row * width : (row + 1) * width]
        _prepare(qkv, query, heads, width, angles, q_weight, eps)
        _prepare(qkv, query + heads * width, groups, width, angles, k_weight, eps)
        now = lengths[row]
        count = now + 1
        oldest = max(0, count - window)
        for group in range(groups):
            base = (row * groups + group) * capacity * width
            block = (row * groups + group) * ((capacity + LANES - 1) // LANES) * LANES * width
            new = query + (heads + group) * width
            slot = block + (now // LANES) * LANES * width + now % LANES
            for i in range(width):
                keys[slot + i * LANES] = qkv[new + i]
            for i in range(0, width, LANES):
                store(values, base + now * width + i, load(qkv, new + groups * width + i))
            for head in range(group * shared, (group + 1) * shared):
                one = query + head * width
                for c in range(oldest - oldest % LANES, count, LANES):
                    key = block + c * width
                    a, b, d, e = zero(), zero(), zero(), zero()
                    for i in range(0, width, 4):
                        a = fma(broadcast(qkv, one + i), load(keys, key + i * LANES), a)
                        b = fma(broadcast(qkv, one + i + 1), load(keys, key + (i + 1) * LANES), b)
                        d = fma(broadcast(qkv, one + i + 2), load(keys, key + (i + 2) * LANES), d)
                        e = fma(broadcast(qkv, one + i + 3), load(keys, key + (i + 3) * LANES), e)
                    store(scores, c, add(add(a, b), add(d, e)))
                largest = scores[oldest]
                for c in range(oldest, count):
                    largest = max(largest, scores[c])
                for c in range(oldest, count):
                    scores[c] = (scores[c] - largest) * power
                for c in range(count, count + LANES):
                    scores[c] = -126.0  # 2**-126 is negligible in the sum
                total = zero()
                for c in range(oldest, count, LANES):
                    weight = exp2(load(scores, c))
                    total = add(total, weight)
                    store(scores, c, weight)
                number[0] = 0.0
                increase(number, 0, total)
                number[0] = np.float32(1.0) / number[0]
                scale = broadcast(number, 0)
                target = (row * heads + head) * width
                for i in range(0, width, LANES):
                    a, b, d, e = zero(), zero(), zero(), zero()
                    value = base + i
                    whole = oldest + (count - oldest) // 4 * 4
                    for c in range(oldest, whole, 4):
                        a = fma(broadcast(scores, c), load(values, value + c * width), a)
                        b = fma(broadcast(scores, c + 1), load(values, value + (c + 1) * width), b)
                        d = fma(broadcast(scores, c + 2), load(values, value + (c + 2) * width), d)
                        e = fma(broadcast(scores, c + 3), load(values, value + (c + 3) * width), e)
                    for c in range(whole, count):
                        a = fma(broadcast(scores, c), load(values, value + c * width), a)
                    store(out, target + i, mul(add(add(a, b), add(d, e)), scale))


@compiled
def transpose_rows(x, out, rows, width):  # type: ignore[no-untyped-def]
    """x (rows, width) as (rows / LANES, width, LANES); rows beyond the last are 0."""
    for first in range(0, rows, LANES):
        base, here = first * width, min(LANES, rows - first)
        if here < LANES:
            for i in range(base, base + width * LANES, LANES):
                store(out, i, zero())
        for row in range(here):
            at = (first + row) * width
            for i in range(width):
                out[base + i * LANES + row] = x[at + i]


@compiled
def multiply(x, weight, out, rows, width, outputs, first, last):  # type: ignore[no-untyped-def]
    """out (rows, outputs) = x @ weight.T for tiles [first, last) of outputs; x is in the layout of ``transpose_rows``.

    Every row of the weights is read from memory once, however many rows of x there are.
    """
    tile = np.empty(TILE * LANES, np.float32)
    for number in range(first, last):
        output = number * TILE
        count = min(TILE, outputs - output)
        at = output * width
        w1, w2, w3, w4, w5 = (  # where there are fewer, the last one is computed again
            at + width * min(1, count - 1),
            at + width * min(2, count - 1),
            at + width * min(3, count - 1),
            at + width * min(4, count - 1),
            at + width * min(5, count - 1),
        )
        for row in range(0, rows, LANES):
            a, b, c, d, e, f = zero(), zero(), zero(), zero(), zero(), zero()
            base = row * width
            for i in range(width):
                lanes = load(x, base + i * LANES)
                a = fma(broadcast(weight, at + i), lanes, a)
                b = fma(broadcast(weight, w1 + i), lanes, b)
                c = fma(broadcast(weight, w2 + i), lanes, c)
                d = fma(broadcast(weight, w3 + i), lanes, d)
                e = fma(broadcast(weight, w4 + i), lanes, e)
                f = fma(broadcast(weight, w5 + i), lanes, f)
            store(tile, 0, a)
            store(tile, LANES, b)
            store(tile, 2 * LANES, c)
            store(tile, 3 * LANES, d)
            store(tile, 4 * LANES, e)
            store(tile, 5 * LANES, f)
            for lane in range(min(LANES, rows - row)):
                target = (row + lane) * outputs + output
                for i in range(count):
                    out[target + i] = tile[i * LANES + lane]


@compiled
def sample(logits, uniform, inverse, greedy, tokens, logprobs, first, last):  # type: ignore[no-untyped-def]
    """A token of each row of logits (B, V) at temperature 1 / ``inverse``, and its log-prob.

    The first token at which the cumulative distribution exceeds ``uniform`` (B,) times its sum, or the likeliest.
    One pass finds the largest logit, one sums exponentials by block; only the token's block is summed one by one.
    """
    vocabulary = logits.shape[1]
    blocks = (vocabulary + BLOCK - 1) // BLOCK
    sums = np.empty(blocks, np.float64)
    work = np.zeros(BLOCK + LANES, np.float32)
    part = np.zeros(1, np.float32)
    power = np.float32(inverse * LOG2E)
    for row in range(first, last):
        line = logits[row]
        best, largest = 0, line[0]
        for i in range(vocabulary):
            if line[i] > largest:
                best, largest = i, line[i]
        total = 0.0
        for block in range(blocks):
            begin = block * BLOCK
            size = min(BLOCK, vocabulary - begin)
            for i in range(size):
                work[i] = (line[begin + i] - largest) * power
            for i in range(size, size + LANES):
                work[i] = -126.0
            lanes = zero()
            for i in range(0, size, LANES):
                lanes = add(lanes, exp2(load(work, i)))
            part[0] = 0.0
            increase(part, 0, lanes)
            sums[block] = part[0]
            total += sums[block]
        token = best
        if not greedy:
            target = uniform[row] * total
            block, reached = 0, 0.0
            while block < blocks - 1 and reached + sums[block] <= target:
                reached += sums[block]
                block += 1
            begin = block * BLOCK
            found = False
            for i in range(begin, min(begin + BLOCK, vocabulary)):
                height = (line[i] - largest) * power
                if height > -126.0:  # below are tokens that cannot be drawn
                    reached += math.exp(height / LOG2E)
                    token = i
                    if reached > target:
                        found = True
                        break
            if not found:  # rounding: the last possible token up to here
                for i in range(min(begin + BLOCK, vocabulary)):
                    if (line[i] - largest) * power > -126.0:
                        token = i
        tokens[row] = token
        logprobs[row] = (line[token] - largest) * inverse - math.log(total)
