"""What a delete gate saves: an encoder-decoder in the shape of ByT5 on 1024 bytes, by the share that is deleted.

The tokens that go are drawn at random, so that the share is exact; they are gone for good (hard deletion), and the
layers behind the gate, and the decoder's reading of them, are that much shorter. The baseline has no gate.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.race import race
from experiments.race import table as race_table
from jaxlm.ffn.glu import Glu
from jaxlm.mixer.attention import Attention
from jaxlm.mixer.cross_attention import CrossAttention
from jaxlm.model.delete_gate import DeleteGate
from jaxlm.model.encode import encode
from jaxlm.model.encoder_decoder import EncoderDecoder, forward
from jaxlm.model.encoder_decoder_spec import EncoderDecoderSpec
from jaxlm.model.language_model import init
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.position.t5_bias import T5Bias

# Three times as many layers in the encoder as in the decoder, as ByT5 has.
SHAPE = {"width": 128, "heads": 4, "hidden": 352, "encoder": 9, "decoder": 3, "gate": 3, "vocab": 384}
BATCH, SOURCE, TARGET = 4, 1024, 256
RATES = (0.0, 0.25, 0.5, 0.75)


def spec_of(gate: bool) -> EncoderDecoderSpec:
    """The model, with a gate or without."""
    heads, ffn = SHAPE["heads"], Glu(hidden=SHAPE["hidden"], activation="gelu_tanh")
    reads = Block(Attention(heads=heads, scale=1.0, mask="bidirectional", position=T5Bias(bidirectional=True)), ffn)
    writes = Block(Attention(heads=heads, scale=1.0, position=T5Bias()), None)
    crosses = Block(CrossAttention(heads=heads, scale=1.0), ffn)
    stack = functools.partial(ModelSpec, vocab_size=SHAPE["vocab"], width=SHAPE["width"], tied_head=True)
    layers = tuple(Group((reads,), n) for n in (SHAPE["gate"], SHAPE["encoder"] - SHAPE["gate"]))
    return EncoderDecoderSpec(
        stack(layers=layers),
        stack(layers=(Group((writes, crosses), SHAPE["decoder"]),)),
        gate=DeleteGate(layer=SHAPE["gate"]) if gate else None,
    )


class Reads:
    """The encoder alone, or with one pass of the decoder over a target, at one share of deleted tokens."""

    def __init__(self, name: str, params: Any, rate: float | None, decodes: bool):
        self.name, spec = name, spec_of(rate is not None)
        rng = np.random.default_rng(0)
        source = rng.integers(0, SHAPE["vocab"], (BATCH, SOURCE), np.int32)
        target = rng.integers(0, SHAPE["vocab"], (BATCH, TARGET), np.int32)
        kept = SOURCE - round((rate or 0.0) * SOURCE)
        keep = rng.permuted(np.tile(np.arange(SOURCE) < kept, (BATCH, 1)), axis=1)

        def run(params: Any, source: jax.Array, target: jax.Array, keep: jax.Array) -> jax.Array:
            if rate is None:
                encoded = encode(spec, params, source)
            else:
                encoded = encode(spec, params, source, delete="hard", capacity=kept, keep=keep)
            if not decodes:
                return encoded.memory.hidden
            return forward(spec, params, None, target, encoded=encoded, logits=False).hidden

        arguments = jax.device_put((params, source, target, keep))
        self._run = functools.partial(jax.jit(run), *arguments)

    def run(self, steps: int) -> list[Any]:
        return [jax.block_until_ready(self._run()).shape for _ in range(steps)]

    def memory(self) -> None:
        return None


def run(rounds: int, steps: int, threads: int) -> dict[str, Any]:
    """Two races, of the encoder and of both stacks; ``threads`` is for peers, of which there are none."""
    params = init(EncoderDecoder(spec_of(True)), jax.random.key(0))
    races: dict[str, Any] = {}
    for title, decodes in (("encoder", False), (f"both, target {TARGET}", True)):
        contestants = [Reads("no gate", params, None, decodes)]
        contestants += [Reads(f"{rate:.0%} deleted", params, rate, decodes) for rate in RATES]
        races[title], shapes = race(contestants, rounds, steps)
        for name, entry in races[title].items():
            entry["source_bytes_per_second"] = BATCH * SOURCE / entry["wall_seconds"]
            entry["places"] = shapes[name][0][1]
    return {
        "shape": SHAPE,
        "dtype": "float32",
        "batch": BATCH,
        "source": SOURCE,
        "target": TARGET,
        "device": str(jnp.zeros(()).device),
        "rounds": rounds,
        "steps_per_round": steps,
        "races": races,
    }


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = []
    for title, entries in results["races"].items():
        lines += race_table(
            title,
            entries,
            {
                "ms": lambda e: f"{1e3 * e['wall_seconds']:.1f}",
                "CPU ms": lambda e: f"{1e3 * e['cpu_seconds']:.1f}",
                "source bytes/s": lambda e: f"{e['source_bytes_per_second']:,.0f}",
                "of no gate, wall": lambda e: f"{1 / e['ours_over_this_wall']:.2f}",
                "of no gate, CPU": lambda e: f"{1 / e['ours_over_this_cpu']:.2f}",
            },
        )
    return "\n".join(lines) + "\n"
