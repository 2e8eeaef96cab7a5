"""Small models of bytes whose layers see patches: what the studies and the benchmark build of each patcher."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments.tokenization.language_model import SmallModel
from experiments.tokenization.texts import Texts
from jaxlm.core import registry
from jaxlm.core.config import slot
from jaxlm.core.params import initialize
from jaxlm.core.types import Params
from jaxlm.model.decoder import Decoder, param_specs
from jaxlm.model.patcher import entropy_table
from jaxlm.model.patcher.base import local_layers
from jaxlm.model.patcher.entropy import install
from jaxlm.model.patcher.words import word_layers
from jaxlm.model.spec import ModelSpec

WINDOW = 64  # of local attention that is not bound to a word or patch
STEP = 16  # in which widths are tried
# Patches that a byte has room for: about twice what text needs, since changed text has more of them.
ROOM = {"hierarchical": 0.6, "word_pooled": 0.4, "space_byte": 0.4, "entropy": 0.7, "routing": 0.6, "fixed_stride": 0.3}


@dataclasses.dataclass(frozen=True)
class Patched(SmallModel):
    """A small model of patches; its width is that of the layers that see them."""

    patcher: Any = slot("patcher", "space_byte")

    def spec(self, vocab_size: int) -> ModelSpec:
        return dataclasses.replace(super().spec(vocab_size), patcher=self.patcher)


def sized(small: SmallModel, width: int, patcher: Any = None) -> SmallModel:
    """The model at another width, of patches if there is a patcher."""
    fields = {field.name: getattr(small, field.name) for field in dataclasses.fields(SmallModel)} | {"width": width}
    return SmallModel(**fields) if patcher is None else Patched(**fields, patcher=patcher)


def nearest(small: SmallModel, patcher: Any, measure: Callable[[SmallModel], float], aim: float) -> SmallModel:
    """Of the widths that heads divide, up to 8 times the model's, the one whose ``measure`` is nearest to ``aim``."""
    widths = (width for width in range(STEP, 8 * small.width + 1, STEP) if width % small.heads == 0)
    return min((sized(small, width, patcher) for width in widths), key=lambda one: abs(measure(one) - aim))


def patcher_of(name: str, width: int, rows: jax.Array, vocab_size: int, texts: Texts) -> tuple[Any, float]:
    """A registered patcher with one local layer before the model's and one after, and the mean bytes of its patches.

    Entropy patches get the mean length of SpaceByte's in ``rows``, int32 [B, L] of text, by their threshold. Learned
    patches have the length that is asked of them.
    """
    method, fields = registry.get("patcher", name), {"width": width, "patches_per_byte": ROOM[name]}
    if name in ("hierarchical", "word_pooled"):
        layers = {"encoder": word_layers(causal=False), "decoder": word_layers(causal=True)}
    elif name == "fixed_stride":
        layers = {"decoder": word_layers(causal=True)}
    else:
        layers = {"encoder": local_layers(window=WINDOW), "decoder": local_layers(window=WINDOW)}
    patcher = method(**fields, **layers)
    if name == "routing":
        return patcher, patcher.ratio
    if name == "entropy":
        _, wanted = patcher_of("space_byte", width, rows, vocab_size, texts)
        back = [jnp.roll(rows, i, 1) for i in range(patcher.order)]
        after = entropy_table.look_up(jnp.asarray(_table(texts)), back, jnp.arange(rows.shape[1]))
        patcher = dataclasses.replace(patcher, threshold=float(jnp.quantile(after, 1 - 1 / wanted)))
    model = Decoder(Patched(width=STEP, heads=1, patcher=patcher).spec(vocab_size))
    return patcher, mean_patch(model, initial(model.spec, 0, texts), rows)


def initial(spec: ModelSpec, seed: int, texts: Texts) -> Params:
    """Parameters to begin with; entropies are those of the last three bytes in the training text."""
    params = initialize(param_specs(spec), jax.random.key(seed))
    return install(params, _table(texts)) if "entropies" in params.get("patcher", {}) else params


def mean_patch(model: Decoder, params: Params, rows: jax.Array) -> float:
    """Bytes a patch, in rows of text."""
    return float(_mean_patch(model, params, rows))


@functools.partial(jax.jit, static_argnums=0)
def _mean_patch(model: Decoder, params: Params, rows: jax.Array) -> jax.Array:
    return model(params, rows, logits=False).aux["bytes_per_patch"]


def _table(texts: Texts) -> NDArray[np.float32]:
    return _table_of(texts.source, texts.most)


@functools.cache
def _table_of(source: str, most: int) -> NDArray[np.float32]:
    return entropy_table.fit(Texts(source, most).train_texts)
