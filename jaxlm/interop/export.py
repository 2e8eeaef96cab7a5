"""A model as an artifact that runs without jaxlm: serialized StableHLO of its prefill and its decode step.

The functions are exported by `jax.export`, whose calling convention outlives the jax that wrote it, for several
platforms at once: lowering for CUDA or a TPU needs neither. Layers are unrolled and each has its own cache, as in
`jaxlm.decode.loop`. The folder holds

    prefill.stablehlo    (weights, tokens [B, L], lengths [B]) -> (logits [B, V], state)
    decode.stablehlo     (weights, token [B], state) -> (logits [B, V], state)
    weights.npz          the weights by name, an argument of both functions: one copy, which may be replaced
    manifest.json        shapes, dtypes and names of all of it, platforms and versions
    README.md            how to run it with jax and numpy alone

Weights are in numpy's own format, because a reader with jax has it; it knows no bfloat16, whose bits are kept as uint16
(the manifest has the true dtype, as which the reader views them).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import config
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.types import Params
from jaxlm.interop.replace import replace_folder
from jaxlm.model import decoder
from jaxlm.model.language_model import LanguageModel

FORMAT = "jaxlm.export/1"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

README = """# A language model as StableHLO

Made by jaxlm {version}; it runs without it, on {platforms}, and needs `pip install jax flatbuffers`.
`manifest.json` has every shape, dtype and name. Greedy continuation of {batch} prompts of up to {prompt_length} tokens,
padded on the right:

```python
import json, pathlib
import jax, jax.numpy as jnp, numpy as np
from jax import export

folder = pathlib.Path(".")  # this one
prompts = [[1, 2, 3]] * {batch}
new_tokens = 16

manifest = json.loads((folder / "manifest.json").read_text())
stored = np.load(folder / "weights.npz")
weights = {{name: jnp.asarray(stored[name].view(w["dtype"])) for name, w in manifest["weights"].items()}}
prefill, decode = (export.deserialize(bytearray((folder / f"{{name}}.stablehlo").read_bytes()))
                   for name in ("prefill", "decode"))
step = jax.jit(decode.call, donate_argnums=2)  # the state is used up, so its memory is used again

lengths = np.array([len(prompt) for prompt in prompts], np.int32)
tokens = np.zeros((manifest["batch"], manifest["prompt_length"]), np.int32)
for row, prompt in zip(tokens, prompts):
    row[: len(prompt)] = prompt
logits, state = jax.jit(prefill.call)(weights, tokens, lengths)
new = []
for _ in range(new_tokens):  # the padded prompt and what is read of the new tokens fit into max_length
    new.append(jnp.argmax(logits, -1).astype(jnp.int32))
    logits, state = step(weights, new[-1], state)
print(json.dumps(np.stack(new, 1).tolist()))
```
"""


def export(
    model: LanguageModel,
    params: Params,
    folder: str | os.PathLike[str],
    *,
    batch: int = 1,
    prompt_length: int,
    max_length: int,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    cache: Any = "full",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the artifact and returns its manifest.

    Args:
      model, params: the model; ``params`` stacked or unstacked, of any dtype.
      folder: new or empty, unless ``overwrite``; written beside it and renamed.
      batch, prompt_length: B and L, fixed; shorter prompts are padded on the right.
      max_length: the padded prompt and every further token that is read.
      platforms: some of `PLATFORMS`.
      cache: a registered cache policy.

    Raises:
      ConfigError: an unknown platform, sizes that do not fit each other or the model, positions drawn at random (there
        would be nobody to draw them), or a folder that is not empty.
    """
    require(importlib.util.find_spec("flatbuffers"), "export needs flatbuffers: pip install 'jaxlm[export]'")
    spec, policy = model.spec, config.make("cache", cache, where="cache")
    require(platforms, f"export: name at least one platform of {', '.join(PLATFORMS)}")
    for platform in platforms:
        choose("platform", platform, PLATFORMS)
    require(batch >= 1 and prompt_length >= 1, f"export: expected positive sizes, got {batch} and {prompt_length}")
    require(max_length >= prompt_length, f"export: max_length {max_length} does not hold the prompt of {prompt_length}")
    for name, (encoding, _) in decoder.position_encodings(spec).items():
        plain = jnp.zeros((1, 1), jnp.int32)
        require(
            encoding.draw(jax.random.key(0), plain) is plain,
            f"export: position {name!r} draws positions at random, which the artifact cannot",
        )
    names, values, tree = _named(jax.jit(decoder.unstack)(params))
    state = jax.eval_shape(lambda: decoder.init_state(spec, batch, max_length, policy))
    leaves, state_tree = jax.tree.flatten(state)

    def prefill(weights: dict[str, jax.Array], tokens: jax.Array, lengths: jax.Array) -> tuple[jax.Array, Any]:
        params = jax.tree.unflatten(tree, [weights[name] for name in names])
        real = jnp.arange(prompt_length) < lengths[:, None]
        empty = decoder.init_state(spec, batch, max_length, policy)
        out = decoder.forward(spec, params, tokens, segment_ids=real.astype(jnp.int32), state=empty, logits=False)
        return decoder.unembed(spec, params, out.hidden[jnp.arange(batch), lengths - 1]), jax.tree.leaves(out.state)

    def decode(weights: dict[str, jax.Array], token: jax.Array, state: list[jax.Array]) -> tuple[jax.Array, Any]:
        params = jax.tree.unflatten(tree, [weights[name] for name in names])
        out = decoder.forward(spec, params, token[:, None], state=jax.tree.unflatten(state_tree, state), logits=False)
        return decoder.unembed(spec, params, out.hidden[:, 0]), jax.tree.leaves(out.state)

    weights = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in zip(names, values, strict=True)}
    tokens, one = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch, prompt_length), (batch,)))
    functions = {
        "prefill": jax.export.export(jax.jit(prefill), platforms=platforms)(weights, tokens, one),
        "decode": jax.export.export(jax.jit(decode), platforms=platforms)(weights, one, leaves),
    }
    manifest = {
        "format": FORMAT,
        "versions": {"jaxlm": _version(), "jax": jax.__version__},
        "calling_convention": functions["decode"].calling_convention_version,
        "platforms": list(functions["decode"].platforms),
        "batch": batch,
        "prompt_length": prompt_length,
        "max_length": max_length,
        "vocab_size": spec.vocab_size,
        "functions": {
            "prefill": {"inputs": ["weights", "tokens", "lengths"], "outputs": ["logits", "state"]},
            "decode": {"inputs": ["weights", "token", "state"], "outputs": ["logits", "state"]},
        },
        "arrays": {
            "tokens": _described(tokens),
            "lengths": _described(one),
            "token": _described(one),
            "logits": {"shape": [batch, spec.vocab_size], "dtype": "float32"},
            "state": [_described(leaf) for leaf in leaves],
        },
        "weights": {name: _described(value) for name, value in weights.items()},
        "model": json.loads(spec.to_json()),
    }
    with replace_folder(folder, overwrite) as new:
        for name, function in functions.items():
            (new / f"{name}.stablehlo").write_bytes(function.serialize())
        _save(new / "weights.npz", dict(zip(names, values, strict=True)))
        (new / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        text = README.format(
            version=_version(), platforms=", ".join(platforms), batch=batch, prompt_length=prompt_length
        )
        (new / "README.md").write_text(text, encoding="utf-8")
    return manifest


def _named(params: Params) -> tuple[list[str], list[jax.Array], Any]:
    """The leaves' paths (``"group_0/3/block_0/mixer/qkv"``), the leaves, and how they are put together."""
    pairs, tree = jax.tree_util.tree_flatten_with_path(params)
    names = ["/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in pairs]
    return names, [leaf for _, leaf in pairs], tree


def _described(array: Any) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": jnp.dtype(array.dtype).name}


def _save(path: Path, arrays: dict[str, jax.Array]) -> None:
    bits = {}
    for name, array in arrays.items():
        value = np.asarray(array)
        bits[name] = value.view(np.uint16) if value.dtype == jnp.bfloat16 else value
    np.savez(path, **bits)


def _version() -> str:
    try:
        return importlib.metadata.version("jaxlm")
    except importlib.metadata.PackageNotFoundError:  # a copy of the sources
        return "unknown"
