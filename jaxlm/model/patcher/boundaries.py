"""Where patches begin: the published rules, as pure functions of bytes, entropies or hidden states.

Rows are arrays [..., L]. A rule says where a patch *starts* (its first byte); patches then run to the next start. Rules
that know the next byte's start already after the byte before it say where a patch *ends*.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.core.errors import choose

RULES = ("global", "monotonic", "combined")

BYTES = 256
SPACE, WORD, MARK, SPECIAL = range(4)  # kinds of bytes


def is_alphanumeric(tokens: jax.Array) -> jax.Array:
    """ASCII letters and digits."""
    lower = tokens | 0x20
    return ((lower >= 0x61) & (lower <= 0x7A) & (tokens < 0x80)) | ((tokens >= 0x30) & (tokens <= 0x39))


def spacelike(tokens: jax.Array) -> jax.Array:
    """SpaceByte's class: neither an ASCII letter or digit nor a UTF-8 continuation byte. Specials (>= 256) belong."""
    return ~is_alphanumeric(tokens) & ~((tokens >= 0x80) & (tokens < 0xC0))


def global_positions(now: jax.Array, previous: jax.Array, first: jax.Array) -> jax.Array:
    """Where SpaceByte's global model runs: at a text's first byte, at specials, and at a spacelike byte after one that
    is not. ``previous`` are the bytes before those of ``now``, ``first`` where there is none."""
    return first | (now >= BYTES) | (spacelike(now) & ~spacelike(previous))


def kinds(tokens: jax.Array) -> jax.Array:
    """`SPACE` (ASCII white space), `WORD` (letters, digits, ``_`` and all bytes of characters beyond ASCII), `SPECIAL`
    (>= 256) or `MARK` (all else: punctuation, controls)."""
    space = (tokens == 0x20) | ((tokens >= 0x09) & (tokens <= 0x0D))
    word = is_alphanumeric(tokens) | (tokens == 0x5F) | ((tokens >= 0x80) & (tokens < BYTES))
    return jnp.where(tokens >= BYTES, SPECIAL, jnp.where(space, SPACE, jnp.where(word, WORD, MARK)))


def word_starts(now: jax.Array, previous: jax.Array, first: jax.Array, *, marks: bool) -> jax.Array:
    """Where words start; leading white space belongs to the word that follows it.

    A white-space byte after another kind starts a word; so does, with ``marks``, a change between word characters and
    punctuation (in the manner of UAX 29). A special is a word by itself.
    """
    a, b = kinds(previous), kinds(now)
    change = (b == SPACE) | marks
    return first | (a == SPECIAL) | (b == SPECIAL) | ((a != SPACE) & (a != b) & change)


def entropy_ends(
    rule: str,
    after: jax.Array,
    before: jax.Array,
    position: jax.Array,
    threshold: jax.Array | float,
    threshold_add: jax.Array | float,
) -> jax.Array:
    """Whether the byte after each one starts a patch, by BLT's rules.

    Args:
      rule: ``"global"``: the entropy of the next byte is above ``threshold``; ``"monotonic"``: it rose by more than
        ``threshold_add``; ``"combined"``: both.
      after: float, nats, the entropy of the prediction made after each byte.
      before: the one made after the byte before it (any number where there is none).
      position: of each byte in its text. Text positions 0 and 1 always start a patch, with the rules of rises 2 too;
        with ``"combined"`` 3 never does.
    """
    choose("entropy rule", rule, RULES)
    following = position + 1
    rise, high = after - before > threshold_add, after > threshold
    if rule == "global":
        return (following == 1) | high
    forced = (following == 1) | (following == 2)
    if rule == "monotonic":
        return forced | rise
    return forced | (rise & high & (following != 3))


def run_index(starts: jax.Array, before: jax.Array) -> jax.Array:
    """Each byte's index within its run, int32 [B, L], from where runs start; ``before`` [B] is the index of the last
    byte of an earlier piece."""
    at = jnp.arange(starts.shape[-1])
    latest = jax.lax.cummax(jnp.where(starts, at, -1), axis=starts.ndim - 1)
    return jnp.where(latest >= 0, at - latest, before[..., None] + 1 + at)


def routing_probability(q: jax.Array, k: jax.Array, first: jax.Array) -> jax.Array:
    """H-Net's p = (1 - cos(q, k)) / 2, float32 [..., L], of q and k [..., L, d]; 1 at the first byte of a text."""
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    unit = lambda x: x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))
    p = jnp.clip((1 - jnp.sum(unit(q) * unit(k), -1)) / 2, 0, 1)
    return jnp.where(first, 1.0, p)


def smooth(z: jax.Array, p: jax.Array, start: jax.Array, before: jax.Array) -> jax.Array:
    """e_j = p_j z_j + (1 - p_j) e_(j-1) over patches, float32 [B, N, D]; p is clipped to [1e-4, 1 - 1e-4].

    ``start`` [B, N] says which patch is the first of its text, before which e is 0; ``before`` [B, D] is e of the
    patch before these.
    """
    p = jnp.clip(p.astype(jnp.float32), 1e-4, 1 - 1e-4)
    keep = jnp.where(start, 0.0, 1 - p)[..., None]

    def join(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return a[0] * b[0], a[1] * b[0] + b[1]

    decay, e = jax.lax.associative_scan(join, (keep, p[..., None] * z.astype(jnp.float32)), axis=1)
    return e + decay * before[:, None].astype(jnp.float32)


def confidence(p: jax.Array) -> jax.Array:
    """H-Net's confidence in each decision: p at a boundary, 1 - p elsewhere."""
    return jnp.where(p > 0.5, p, 1 - p)


def ratio_loss(p: jax.Array, real: jax.Array, ratio: float) -> jax.Array:
    """H-Net's N / (N - 1) ((N - 1) F G + (1 - F) (1 - G)), N = ``ratio``, F the share of boundaries and G the mean of p
    over ``real`` bytes; 1 where both are 1 / N. F has no gradient."""
    weight = real.astype(jnp.float32)
    mean = lambda x: jnp.sum(x * weight) / jnp.maximum(jnp.sum(weight), 1.0)
    f, g = mean((p > 0.5).astype(jnp.float32)), mean(p)
    return ratio / (ratio - 1) * ((ratio - 1) * f * g + (1 - f) * (1 - g))
