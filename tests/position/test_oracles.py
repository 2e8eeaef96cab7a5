"""The attention layer under each encoding against float64 numpy that loops over heads, queries and keys."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import position
from jaxlm.attention.mask import Causal
from jaxlm.core import registry
from jaxlm.core.errors import ConfigError
from jaxlm.core.types import Context, Dims, PositionEncoding
from jaxlm.mixer.attention import Attention
from jaxlm.model import decoder
from jaxlm.ops.attention import attention
from jaxlm.position.rotary import Rotary
from jaxlm.position.t5_bias import bucket
from jaxlm.position.temperature import Temperature
from pallas_kernels.block_sparse_attention.call import aimed_at
from tests.tiny import close, draw_params, tiny

BATCH, LENGTH, WIDTH = 2, 9, 24
SEGMENTS = np.asarray([[1] * 9, [0, 0, 1, 1, 1, 2, 2, 2, 0]], np.int32)
POSITIONS = np.asarray([[0, 1, 2, 5, 9, 14, 20, 21, 40], [0, 0, 0, 1, 2, 0, 3, 7, 0]], np.int32)
X = np.random.default_rng(0).standard_normal((BATCH, LENGTH, WIDTH)).astype(np.float32)


def turned(vector: np.ndarray, pos: int, base: float, channels: int, pairing: str) -> np.ndarray:
    """A head's vector with its first ``channels`` rotated, each pair as one complex number."""
    half = channels // 2
    first = np.arange(half) if pairing == "half" else 2 * np.arange(half)
    second = first + (half if pairing == "half" else 1)
    z = (vector[first] + 1j * vector[second]) * np.exp(1j * pos * base ** (-2.0 * np.arange(half) / channels))
    out = vector.copy()
    out[first], out[second] = z.real, z.imag
    return out


def t5_bucket(distance: int, buckets: int, max_distance: int) -> int:
    """The causal rule, as the T5 paper's appendix words it."""
    exact = buckets // 2
    if distance < exact:
        return max(distance, 0)
    far = math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact)
    return min(exact + int(far), buckets - 1)


def normalized(heads: np.ndarray, scale: np.ndarray, span: str) -> np.ndarray:
    """Each head of [B, L, heads..., K] over its root mean square, or, if the span is all of them, over theirs."""
    axes = tuple(range(2, heads.ndim)) if span == "all" else -1
    return heads / np.sqrt(np.mean(heads**2, axes, keepdims=True) + 1e-6) * scale


def before(i: int, j: int) -> bool:
    return j <= i


def oracle(mixer: Attention, p, rotate=lambda x, pos: x, bias=lambda h, i, j: 0.0, seen_by=before):
    """The layer on X in float64: [B, L, D]. ``bias`` and ``seen_by`` take positions, of the query first."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    heads, groups = mixer.heads, mixer.kv_heads or mixer.heads
    repeats, width = heads // groups, mixer.head_dim or WIDTH // heads
    qkv = np.einsum("bld,dgrk->blgrk", X.astype(np.float64), p["qkv"]) + p.get("qkv_bias", 0.0)
    queries, keys, values = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
    if mixer.qk_norm is not None:
        queries = normalized(queries, p["q_norm"]["scale"], mixer.qk_norm_span)
        keys = normalized(keys, p["k_norm"]["scale"], mixer.qk_norm_span)
    if mixer.qkv_clip:
        queries, keys, values = (np.clip(part, -mixer.qkv_clip, mixer.qkv_clip) for part in (queries, keys, values))
    out = np.zeros((BATCH, LENGTH, heads, width))
    for b, h, i in np.ndindex(BATCH, heads, LENGTH):
        g, r = divmod(h, repeats)
        seen = [
            j
            for j in range(LENGTH)
            if SEGMENTS[b, j] == SEGMENTS[b, i] != 0 and seen_by(POSITIONS[b, i], POSITIONS[b, j])
        ]
        logits = []
        for j in seen:
            q, k = queries[b, i, g, r], keys[b, j, g]
            logit = (mixer.scale or width**-0.5) * (rotate(q, POSITIONS[b, i]) @ rotate(k, POSITIONS[b, j]))
            if mixer.soft_cap:
                logit = mixer.soft_cap * math.tanh(logit / mixer.soft_cap)
            logits.append(logit + bias(h, int(POSITIONS[b, i]), int(POSITIONS[b, j])))
        if seen:
            weights = np.exp(logits)
            sink = np.exp(p["sinks"][g, r]) if mixer.sinks else 0.0
            out[b, i, h] = weights @ values[b, seen, g] / (weights.sum() + sink)
    return out.reshape(BATCH, LENGTH, -1) @ p["out"].reshape(-1, WIDTH) + p.get("out_bias", 0.0)


def ours(mixer: Attention, p, shared) -> jax.Array:
    ctx = Context(positions=jnp.asarray(POSITIONS), segment_ids=jnp.asarray(SEGMENTS), shared=shared)
    return jax.jit(lambda p, x: mixer(p, x, ctx)[0])(p, X)


def check(position: dict, rest: dict, row_of=None, **rules) -> None:
    mixer = Attention(**{"heads": 4, "position": position, **rest})
    specs = mixer.params(Dims(width=WIDTH))
    own = mixer.position.params(mixer.dims(Dims(width=WIDTH)))
    p, shared = draw_params(specs), {position["name"]: draw_params(own)}
    if row_of is not None:
        table = np.asarray(shared[position["name"]]["table"], np.float64)
        rules["bias"] = lambda h, i, j: table[row_of(i - j), h]
    close(ours(mixer, p, shared), oracle(mixer, p, **rules), 2e-6)


def slope(heads: int, steepness: float = 8.0):
    return lambda h, i, j: -(2.0 ** (-steepness * (h + 1) / heads)) * (i - j)


@pytest.mark.parametrize("precision", [None, "default", "bfloat16", "tensorfloat32", "float32", "highest"])
@pytest.mark.parametrize("base, pairing", [(10_000.0, "half"), (500_000.0, "interleaved"), (10.0, "half")])
def test_rotary_angles_at_long_positions(precision, base, pairing):
    """Up to position 200,000, where matmuls are as rough as they may be: a float32 product of float32 factors."""
    width, positions = 16, np.unique(np.geomspace(1, 200_000, 3000).astype(np.int32)) - 1
    assert positions[0] == 0 and positions[-1] == 199_999
    positions = np.append(positions, 200_000)
    first = np.arange(width) < width // 2 if pairing == "half" else np.arange(width) % 2 == 0
    ones = jnp.tile(jnp.asarray(first, jnp.float32), (1, len(positions), 1, 1))
    rotary = Rotary(base=base, pairing=pairing)
    with jax.default_matmul_precision(precision):
        turned = np.asarray(jax.jit(lambda x, at: rotary.rotate({}, x, at, None))(ones, positions[None]))[0, :, 0]
    angle = positions[:, None] * np.float64(base) ** (-2.0 * np.arange(width // 2) / width)
    difference = np.angle((turned[:, first] + 1j * turned[:, ~first]) * np.exp(-1j * angle))
    assert (np.abs(difference) <= 1.2e-7 * angle + 1e-6).all()


def test_sandwich():
    """A third of the heads' slopes and of the cosines by hand; the middle key of a row is the fourth of 9."""
    cosines = lambda r: sum(math.cos(r * 60.0 ** (-2 * m / 6)) for m in range(3))
    bias = lambda h, i, j: 4 / (8 * (h + 1)) * cosines(i - j)
    check({"name": "sandwich", "args": {"width": 6, "base": 60.0}}, {"kv_heads": 2}, bias=bias)


BIASES = [
    ("kerple", {"kernel": "log"}),
    ("kerple", {"kernel": "power"}),
    ("sandwich", {"width": 8}),
    ("temp_scale", {"inner": "kerple", "tau": 0.7}),
]


@pytest.mark.parametrize("name, args", BIASES)
@pytest.mark.parametrize("implementation", ["tpu", "triton"])
def test_kernels_serve_the_bias(name, args, implementation):
    """Values and gradients of the kernels, interpreted, are the reference's, in units of the largest gradient."""
    encoding = registry.get("position", name)(**args)
    p, at = draw_params(encoding.params(Dims(width=8, heads=2))), jnp.arange(140)[None]
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 140, 2, 16)).astype(np.float32)

    def loss(p, q, k, v, implementation):
        ((q, k, _),) = encoding.views(p, q, k, at, at, None)
        bias = encoding.bias(p, q, k, at, at)
        return jnp.sin(attention(q, k, v, mask=Causal(), bias=bias, implementation=implementation)).sum()

    def gradients(implementation):
        return jax.jit(jax.value_and_grad(lambda *x: loss(*x, implementation), (0, 1, 2, 3)))(p, q, k, v)

    expected = gradients("reference")
    with aimed_at(interpret=True):
        found = gradients(implementation)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6 * largest)


@pytest.mark.parametrize("name", ["xpos", "temperature", "log_n"])
def test_what_treats_queries_unlike_keys_is_not_taken_for_a_rotation(name):
    """By a memory that turns the keys it retrieves by themselves."""
    position = {"name": name, "args": {"original": 4} if name == "log_n" else {}}
    mixer = {"name": "landmark", "args": {"heads": 4, "period": 2, "position": position}}
    spec = tiny(block={"mixer": mixer}, edit={"name": "landmark", "args": {"period": 2}})
    params, tokens = draw_params(decoder.param_specs(spec)), jnp.zeros((1, 4), jnp.int32)
    state = decoder.init_state(spec, 1, 8, registry.get("cache", "landmark")(blocks=1))
    with pytest.raises(ConfigError, match=f"'{name}' treats queries unlike keys"):
        decoder.forward(spec, params, tokens, state=state)


@pytest.mark.parametrize("tau, factor, times", [(0.6, 1.0, 1 / 0.6), (1.0, 8.0, (0.1 * math.log(8) + 1) ** 2)])
def test_temp_scale(tau, factor, times):
    """All logits, the bias among them."""
    args = {"inner": "alibi", "tau": tau, "factor": factor}
    turned = lambda x, pos: x * math.sqrt(times)
    check({"name": "temp_scale", "args": args}, {}, rotate=turned, bias=lambda h, i, j: times * slope(4)(h, i, j))


def test_ssmax():
    """s_h ln(i + 1) times the queries, each head with its own s."""
    encoding = registry.get("position", "ssmax")("none")
    p = draw_params(encoding.params(Dims(width=8, heads=3)))
    q, k = np.random.default_rng(0).standard_normal((2, 2, 9, 3, 4)).astype(np.float32)
    ((sharp, keys, region),) = jax.jit(lambda q, k, at: encoding.views(p, q, k, at, at, None))(q, k, POSITIONS)
    expected = np.asarray(p["ssmax"]) * np.log(POSITIONS[..., None] + 1.0)
    np.testing.assert_allclose(sharp, q * expected[..., None], rtol=1e-6)
    np.testing.assert_array_equal(keys, k)
    assert region is None


def test_log_n_by_the_length():
    """One factor for a whole row: of its own length, or of the one that is declared."""
    encoding = registry.get("position", "log_n")("none", original=6, least=0.0, count="length")
    q = np.random.default_rng(0).standard_normal((2, 9, 3, 4)).astype(np.float32)
    for length, n in ((None, POSITIONS.max(1) + 1), (100, np.full(2, 100))):
        ((sharp, _, _),) = jax.jit(lambda q, at, length=length: encoding.views({}, q, q, at, at, length))(q, POSITIONS)
        np.testing.assert_allclose(sharp, q * (np.log(n) / math.log(6))[:, None, None, None], rtol=1e-6)


@pytest.mark.parametrize("kernel", ["log", "power"])
def test_kerple_keeps_the_gradient_of_what_is_out_of_bounds(kernel):
    encoding = registry.get("position", "kerple")(kernel=kernel)
    assert {"p", "a"} == set(encoding.params(Dims(width=8, heads=2)))
    q, at = jnp.zeros((1, 5, 2, 4)), jnp.arange(5)[None]
    total = lambda p: encoding.bias(p, q, q, at, at).tile(at, at).sum((0, 2, 3))
    inside, outside = ({"p": jnp.asarray(x), "a": jnp.asarray(x)} for x in ([0.01, 0.5], [-3.0, 0.5]))
    np.testing.assert_allclose(total(outside), total(inside), rtol=1e-6)
    grads = [jax.grad(lambda p: total(p).sum())(p) for p in (inside, outside)]
    close(grads[1], grads[0], 1e-6)
    assert all(np.abs(leaf).min() > 1e-3 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("fraction, channels", [(1.0, 6), (0.7, 4)])
def test_rotary(pairing, fraction, channels):
    args = {"base": 300.0, "fraction": fraction, "pairing": pairing}
    check({"name": "rotary", "args": args}, {}, rotate=lambda x, pos: turned(x, pos, 300.0, channels, pairing))


def test_alibi():
    check({"name": "alibi"}, {"kv_heads": 2}, bias=slope(4))
    halved = lambda h, i, j: 0.5 * slope(4, 5.0)(h, i, j)
    check({"name": "alibi", "args": {"max": 5.0, "multiplier": 0.5}}, {}, bias=halved)


def test_alibi_rounded_to_bfloat16():
    """Falcon's: the bias of a key counts from position 0, slope and bias are rounded, and the rounding shows."""
    low = lambda x: float(np.asarray(x, jnp.bfloat16))
    bias = lambda h, i, j: 0.5 * low(low(2.0 ** (-5.0 * (h + 1) / 4)) * low(j))
    args = {"max": 5.0, "multiplier": 0.5, "rounding": "bfloat16"}
    check({"name": "alibi", "args": args}, {"kv_heads": 2}, bias=bias)
    tile = registry.get("position", "alibi")(**args).bias({}, jnp.zeros((1, 1, 4, 6)), None, None, None).tile
    positions = np.asarray([[3, 300, 5001]])
    expected = [[bias(h, 0, int(j)) for j in positions[0]] for h in range(4)]
    np.testing.assert_array_equal(jax.jit(tile)(positions[:, :1], positions)[0, :, 0], np.asarray(expected, np.float32))


def test_t5_bias():
    args = {"buckets": 6, "max_distance": 12}
    check({"name": "t5_bias", "args": args}, {"kv_heads": 1}, row_of=lambda d: t5_bucket(d, 6, 12))
    distance = jnp.arange(300)
    expected = [t5_bucket(d, 32, 128) for d in range(300)]
    np.testing.assert_array_equal(bucket(distance, 32, 128, False), expected)


@pytest.mark.parametrize(
    "rest",
    [
        {"scale": 1.0},
        {"soft_cap": 0.7, "head_dim": 10},
        {"qk_norm": "rms", "kv_heads": 2},
        {"qk_norm": "rms", "kv_heads": 2, "qk_norm_span": "heads"},
        {"qk_norm": "rms", "kv_heads": 2, "qk_norm_span": "all"},
        {"qkv_clip": 0.3, "qk_norm": "rms", "qkv_bias": True},
        {"sinks": True, "kv_heads": 2},
        {"qkv_bias": True, "out_bias": True, "kv_heads": 1},
    ],
    ids=lambda rest: rest.get("qk_norm_span", next(iter(rest))),
)
def test_options_of_the_layer(rest):
    """With the bias of ALiBi, so that their order (scale, cap, then bias) shows."""
    check({"name": "alibi"}, rest, bias=slope(4))


@pytest.mark.parametrize(
    "mask, seen_by",
    [("window", lambda i, j: 0 <= i - j < 4), ("chunked", lambda i, j: j <= i and i // 4 == j // 4)],
)
def test_masks_of_a_size(mask, seen_by):
    check({"name": "alibi"}, {"mask": {"name": mask, "args": {"size": 4}}}, bias=slope(4), seen_by=seen_by)


def test_a_sink_under_gradients_and_views_without_keys():
    """Padding sees no key: its output is 0 and its gradients are finite. The sink is one more key whose value is 0."""
    mixer = Attention(heads=4, kv_heads=2, position="none", sinks=True)
    p = draw_params(mixer.params(Dims(width=WIDTH)))
    real = SEGMENTS != 0
    y = ours(mixer, p, {})
    assert (np.asarray(y)[~real] == 0).all() and np.abs(np.asarray(y)[real]).max() > 0.1

    def reference(p, x):
        qkv = jnp.einsum("bld,dgrk->blgrk", x, p["qkv"])
        q, k, v = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
        logits = jnp.einsum("blgrk,btgk->bgrlt", q, k) * q.shape[-1] ** -0.5
        seen = (POSITIONS[:, :, None] >= POSITIONS[:, None]) & (SEGMENTS[:, :, None] == SEGMENTS[:, None])
        logits = jnp.where((seen & real[:, None])[:, None, None], logits, -1e9)
        sinks = jnp.broadcast_to(p["sinks"][..., None, None], (*logits.shape[:-1], 1))
        weights = jax.nn.softmax(jnp.concatenate((logits, sinks), -1), -1)[..., :-1]
        return jnp.einsum("bgrlt,btgk,grkd->bld", weights, v, p["out"])

    ctx = Context(positions=jnp.asarray(POSITIONS), segment_ids=jnp.asarray(SEGMENTS))
    gradient = lambda f: jax.jit(jax.grad(lambda p, x: jnp.sin(f(p, x)).sum(), argnums=(0, 1)))(p, X)
    close(gradient(lambda p, x: mixer(p, x, ctx)[0]), gradient(reference), 2e-6)


def test_no_position_sees_order_only_through_the_mask():
    check({"name": "none"}, {})


@pytest.mark.parametrize("layout", ["concat", "interleaved"])
def test_sinusoidal_table(layout):
    encoding = registry.get("position", "sinusoidal")(base=200.0, layout=layout, scale=0.5)
    table = np.zeros((*POSITIONS.shape, WIDTH))
    for m in range(WIDTH // 2):
        angle = POSITIONS * 200.0 ** (-2 * m / WIDTH)
        sine, cosine = (m, m + WIDTH // 2) if layout == "concat" else (2 * m, 2 * m + 1)
        table[..., sine], table[..., cosine] = np.sin(angle), np.cos(angle)
    close(encoding.embed({}, jnp.asarray(POSITIONS), WIDTH), 0.5 * table, 1e-5)


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_rows_and_nothing_outside_the_table(offset):
    encoding = registry.get("position", "learned")(size=5, offset=offset)
    assert encoding.max_positions() == 5
    table = draw_params(encoding.params(Dims(width=4)))["table"]
    assert table.shape == (5 + offset, 4)
    embed = jax.jit(lambda positions: encoding.embed({"table": table}, positions, 4))
    rows = np.asarray(embed(np.asarray([[4, 0, 5, -1]])))
    np.testing.assert_array_equal(rows[0, :2], np.asarray(table)[[4 + offset, offset]])
    assert np.isnan(rows[0, 2:]).all()


def test_temperature():
    """1 + rate ln(1 + floor((i + 1) / step)) times the queries, nothing to the keys, over the inner encoding."""
    inner = Rotary(base=50.0)
    q, k = np.random.default_rng(0).standard_normal((2, 1, 9, 2, 4)).astype(np.float32)
    at = np.arange(9, dtype=np.int32)[None] * 3
    ((turned, keys, region),) = Temperature(inner, rate=0.4, step=5).views({}, q, k, at, at, None)
    sharpness = [1 + 0.4 * math.log(1 + (i + 1) // 5) for i in at[0].tolist()]
    np.testing.assert_allclose(turned, inner.rotate({}, q, at, None) * np.asarray(sharpness)[:, None, None], rtol=1e-6)
    np.testing.assert_array_equal(keys, inner.rotate({}, k, at, None))
    assert region is None


# Those that draw; others that have the hook pass it on to the encoding they wrap.
DRAWING = [
    name
    for name in position.METHODS
    if (cls := registry.get("position", name)).draw is not PositionEncoding.draw and hasattr(cls, "max_position")
]


@pytest.mark.parametrize("name", DRAWING)
class TestDraws:
    """Of every encoding that draws its positions."""

    rows, length, highest = 4000, 4, 10

    def draw(self, name: str, seed: int, plain: np.ndarray) -> np.ndarray:
        encoding = registry.get("position", name)(max_position=self.highest)
        return np.asarray(jax.jit(encoding.draw)(jax.random.key(seed), plain))

    def test_a_row_is_a_uniform_subset_in_order(self, name):
        plain = np.tile(np.arange(self.length, dtype=np.int32), (self.rows, 1))
        drawn = self.draw(name, 0, plain)
        assert drawn.shape == plain.shape and drawn.dtype == np.int32
        assert (np.diff(drawn, axis=1) > 0).all() and drawn.min() == 0 and drawn.max() == self.highest - 1
        subsets = math.comb(self.highest, self.length)
        counts = np.unique(drawn, axis=0, return_counts=True)[1]
        assert len(counts) == subsets
        expected = self.rows / subsets
        chi_square = np.sum((counts - expected) ** 2 / expected)
        assert abs(chi_square - (subsets - 1)) < 5 * math.sqrt(2 * (subsets - 1))

    def test_depends_on_the_key_and_the_row_alone(self, name):
        plain = np.tile(np.arange(self.length, dtype=np.int32), (16, 1))
        drawn = self.draw(name, 0, plain)
        np.testing.assert_array_equal(drawn, self.draw(name, 0, plain))
        np.testing.assert_array_equal(drawn[:5], self.draw(name, 0, plain[:5]))
        assert (drawn != self.draw(name, 1, plain)).any(1).mean() > 0.9

    def test_segments_of_a_row_share_its_draw(self, name):
        plain = np.asarray([[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]], np.int32)
        drawn = self.draw(name, 0, plain)
        for row, pos in zip(drawn, plain, strict=True):
            chosen = {p: d for p, d in zip(pos, row, strict=True)}
            assert sorted(chosen.values()) == [chosen[p] for p in sorted(chosen)]
            np.testing.assert_array_equal(row, [chosen[p] for p in pos])

    def test_a_full_row_is_all_positions_and_a_longer_one_an_error(self, name):
        full = self.draw(name, 0, np.tile(np.arange(self.highest, dtype=np.int32), (2, 1)))
        np.testing.assert_array_equal(full, np.tile(np.arange(self.highest), (2, 1)))
        spec = tiny({"position": registry.get("position", name)(max_position=self.highest)})
        with pytest.raises(ConfigError, match=str(self.highest)):
            decoder.draw_positions(spec, jax.random.key(0), jnp.arange(self.highest + 1)[None])
        assert decoder.draw_positions(tiny(), jax.random.key(0), jnp.arange(3)[None]) is None
