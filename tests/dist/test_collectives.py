"""What a block and a step send between devices, read from the text of the compiled program.

Under tensor sharding (Shoeybi et al. 2019, Megatron-LM) a block needs one all-reduce after each of its two output
projections, and in the backward pass one for each of its two inputs. A fused projection whose parts do not lie along
the sharded axis would add collective-permutes, silently and at every layer.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from jaxlm import dist
from jaxlm.core import registry
from jaxlm.core.params import ParamSpec, map_specs
from jaxlm.core.types import Context
from jaxlm.ffn.glu import Glu
from jaxlm.ffn.mlp import Mlp
from jaxlm.ffn.moe import Moe
from jaxlm.ffn.router import Router
from jaxlm.mixer.attention import Attention
from jaxlm.model import decoder
from jaxlm.model.spec import Block, Group, ModelSpec
from tests.dist.runs import batch, mesh_of, trainer

ROWS, LENGTH, WIDTH = 8, 128, 32  # long enough for attention to cut its queries
KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|ragged-all-to-all|collective-broadcast"


def collectives(program: jax.stages.Lowered) -> list[tuple[str, str]]:
    """(kind, type) of every array a collective of the compiled program makes; the compiler may join several in one."""
    text = program.compile().as_text()
    assert text
    found = re.findall(rf" = (.*?) ({KINDS})(?:-start)?\(", text)
    return [(kind, array) for result, kind in found for array in re.findall(r"\w+\[[\d,]*\]", result)]


def block_forward_and_backward(block: Block, mesh: jax.sharding.Mesh) -> list[tuple[str, str]]:
    """The collectives of one block on [8, 128, 32] and of its gradients by parameters and input."""
    specs = decoder.param_specs(ModelSpec(vocab_size=64, width=WIDTH, layers=(Group((block,)),)))

    def shape(_: str, spec: ParamSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            spec.full_shape, jnp.float32, sharding=dist.sharding(mesh, spec.full_axes, spec.full_shape)
        )

    def run(params, x, y):
        with dist.use_mesh(mesh):
            shared = {registry.name_of("position", block.mixer.position): {}} | params.get("position", {})
            ctx = Context(positions=jnp.arange(LENGTH)[None], shared=shared)

            def apply(params, x):
                p = jax.tree.map(lambda a: a[0], params["group_0"]["block_0"])
                return decoder.apply_block(block, p, x, ctx, None, rate=0.0, multiplier=1.0)[0]

            out, pull = jax.vjp(apply, params, x)
            return out, pull(y)

    place = dist.sharding(mesh, ("batch", None, None), (ROWS, LENGTH, WIDTH))
    x = jax.ShapeDtypeStruct((ROWS, LENGTH, WIDTH), jnp.float32, sharding=place)
    gradients = (dist.param_shardings(mesh, specs), place)
    return collectives(jax.jit(run, out_shardings=(place, gradients)).lower(map_specs(shape, specs), x, x))


# What an encoding sends beside them: the gradient of what its heads share.
SHARED = {"cope": ["f32[64,4]"], "fire": ["f32[32]", "f32[32]", "f32[]", "f32[]"]}
# Its gate reads the input by itself, and its sums lie beside the segment of each token, so at odd places.
POSITIONS = [name for name in registry.methods("position") if name != "forgetting"]
QUICK = "none", "rotary", "alibi", "t5_bias", "fire", "self_extend"


@pytest.mark.parametrize(
    ("mesh", "position", "mixer", "ffn"),
    [
        pytest.param(*("1x1x4", name, {"kv_heads": 4}, Glu(hidden=64)), marks=() if name in QUICK else pytest.mark.slow)
        for name in POSITIONS
    ]
    + [("1x1x8", "rotary", {"qkv_bias": True, "out_bias": True}, Mlp(hidden=64))],
    ids=[*POSITIONS, "eight-mlp-biases"],
)
def test_a_tensor_sharded_block_sums_its_projections_and_sends_nothing_else(mesh, position, mixer, ffn):
    block = Block(mixer=Attention(heads=8, position=position, **mixer), ffn=ffn)
    found = block_forward_and_backward(block, mesh_of(mesh))
    arrays = [f"f32[{ROWS},{LENGTH},{WIDTH}]"] * 4 + SHARED.get(position, [])
    assert Counter(found) == Counter(("all-reduce", array) for array in arrays)


def test_forgetting_sends_no_queries_keys_or_values():
    block = Block(mixer=Attention(heads=8, kv_heads=4, position="forgetting"), ffn=Glu(hidden=64))
    found = block_forward_and_backward(block, mesh_of("1x1x4"))
    assert Counter(sizes(array)[-1] for kind, array in found if kind == "all-reduce") == {WIDTH: 5}
    moved = [sizes(array) for kind, array in found if kind != "all-reduce"]
    assert moved and all(len(shape) == 3 and shape[-1] <= 3 for shape in moved)  # numbers of a token and head


@pytest.mark.parametrize("capacity", [0.0, 1.0], ids=["sorted", "buffered"])
def test_neither_tokens_nor_experts_travel(capacity):
    """A block with experts sums what one without sums, and the gradient of each token's weights."""
    ffn = Moe(experts=8, expert=Glu(hidden=64, bias=True), router=Router(top_k=3), capacity=capacity)
    found = block_forward_and_backward(Block(mixer=Attention(heads=8), ffn=ffn), mesh_of("1x1x4"))
    rows = [f"f32[{ROWS},{LENGTH},{width}]" for width in (*[WIDTH] * 4, 3)]
    assert Counter(found) == Counter(("all-reduce", array) for array in rows)
    several = block_forward_and_backward(Block(mixer=Attention(heads=8), ffn=ffn), mesh_of("2x1x4"))
    assert {kind for kind, _ in several} == {"all-reduce"}


def test_an_fsdp_sharded_block_gathers_each_matrix_and_scatters_its_gradient():
    found = block_forward_and_backward(Block(mixer=Attention(heads=8), ffn=Glu(hidden=64)), mesh_of("1x8x1"))
    gathered = Counter(math.prod(sizes(array)) for kind, array in found if kind == "all-gather")
    # the weights, once for each pass (ZeRO-3), and never an activation
    matrices = Counter(math.prod(n) for n in [(WIDTH, 8, 3, 4), (8, 4, WIDTH), (WIDTH, 64, 2), (64, WIDTH)])
    assert gathered == matrices + matrices
    # The CPU compiler makes an all-reduce and a slice of each reduce-scatter.
    assert sum(kind in ("all-reduce", "reduce-scatter") for kind, _ in found) == 6  # four matrices and two norms
    assert {kind for kind, _ in found} <= {"all-gather", "all-reduce", "reduce-scatter"}


def sizes(array: str) -> list[int]:
    """[64, 32] of ``"f32[64,32]"``."""
    return [int(n) for n in array[array.index("[") + 1 : -1].split(",")]


@pytest.mark.parametrize("mesh", ["1x2x4", "2x2x2"])
def test_no_step_moves_what_it_could_sum(mesh, first):
    """Embedding, head, loss, accumulation and optimizer included."""
    train = trainer(mesh_of(mesh), accumulate={"1x2x4": 1, "2x2x2": 2}[mesh])
    state = jax.device_put(first, train.shardings())
    found = collectives(jax.jit(train.step, donate_argnums=0).lower(state, batch(train.mesh, 0)))
    assert {kind for kind, _ in found} <= {"all-reduce", "all-gather", "reduce-scatter"}
