"""A hypernetwork that reads how the old tokenizer spells a token and predicts the token's embeddings.

Paper: Minixhofer et al. 2024, Zero-Shot Tokenizer Transfer. For a token of any tokenizer, spelt by pieces of the
original one (at most ``max_pieces``):

    z_i = [E_in[piece_i], E_out[piece_i]], each dimension rescaled to mean 0 and deviation 1 over the vocabulary
    h   = mean over i of encoder(z W)_i               a small bidirectional transformer over the pieces
    E_in(t)  = mean_i E_in[piece_i]  + deviation * project_in(h)          and likewise E_out; tied models have one

The projectors' last matrices start at zero, so an untrained hypernetwork is the mean of pieces, and a token that the
original vocabulary has starts as itself. Learned: the encoder and the projectors; the model stays as it is. Biases of
the logits are means of pieces. Claimed: close to the original model's quality with a new tokenizer, untrained on it.

The paper adds the prediction to nothing, starts by imitating the identity, and pools by the first position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxlm.core.config import Spec, require
from jaxlm.core.params import ParamSpec, zeros
from jaxlm.core.types import Params, Specs
from jaxlm.ffn.mlp import Mlp
from jaxlm.mixer.attention import Attention
from jaxlm.model import decoder
from jaxlm.model.decoder import Output
from jaxlm.model.spec import Block, Group, ModelSpec
from jaxlm.ops.activation import activation
from jaxlm.ops.dense import dense
from jaxlm.position.learned import Learned

NO_TOKEN = -1e9  # logit of rows that are there for the shape alone

Tables = dict[str, jax.Array]  # "table" [V, D], "bias" [V], and "kernel" [D, V] where the head is not tied


@dataclasses.dataclass(frozen=True)
class EmbeddingHypernetwork(Spec):
    """The network.

    Attributes:
      width, layers, heads: of the encoder.
      max_pieces: P, the most pieces of a token that are read; of longer tokens the first.
    """

    paper: ClassVar[str] = "Minixhofer et al. 2024, Zero-Shot Tokenizer Transfer"

    width: int = 128
    layers: int = 1
    heads: int = 4
    max_pieces: int = 7

    def check(self) -> None:
        for name in ("width", "layers", "heads", "max_pieces"):
            value = getattr(self, name)
            require(value >= 1, f"EmbeddingHypernetwork.{name}: expected 1 or more, got {value}")
        require(
            self.width % self.heads == 0,
            f"EmbeddingHypernetwork.heads: {self.heads} does not divide the width {self.width}",
        )

    @property
    def encoder(self) -> ModelSpec:
        """The transformer over pieces, whose own embeddings and head are left out of `params`."""
        attention = Attention(heads=self.heads, position=Learned(size=self.max_pieces), mask="bidirectional")
        block = Block(mixer=attention, ffn=Mlp(bias=True), norm="layer")
        return ModelSpec(
            vocab_size=1,
            width=self.width,
            layers=(Group((block,), self.layers),),
            norm="layer",
            tied_head=True,
            remat="none",
        )

    def params(self, base: ModelSpec) -> Specs:
        """The parameters for a model of this specification."""
        inner, parts = base.embed_width or base.width, _parts(base)
        specs = {name: value for name, value in decoder.param_specs(self.encoder).items() if name != "embed"}
        specs["in"] = ParamSpec((inner * len(parts), self.width), (None, "embed"))
        for name in parts:
            specs[f"project_{name}"] = {
                "in": ParamSpec((self.width, 2 * self.width), ("embed", "mlp")),
                "in_bias": ParamSpec((2 * self.width,), ("mlp",), zeros, decay=False),
                "out": ParamSpec((2 * self.width, inner), ("mlp", "embed"), zeros),
                "out_bias": ParamSpec((inner,), (None,), zeros, decay=False),
            }
        return specs

    def predict(
        self, p: Params, base: ModelSpec, tables: Mapping[str, jax.Array], pieces: jax.Array, mask: jax.Array
    ) -> Tables:
        """Embeddings of N tokens.

        Args:
          p: of `params`.
          base, tables: the model, and its own rows (`tables_of`).
          pieces: int32 [N, P], ids of the original tokenizer.
          mask: bool [N, P], which of them are there. A row without any is no token: its logit is `NO_TOKEN`.

        Returns:
          float32 ``table`` [N, D], ``bias`` [N], and ``kernel`` [D, N] where the head is not tied.
        """
        share = mask / jnp.maximum(mask.sum(1, keepdims=True), 1)
        rows = {name: tables[name].T if name == "kernel" else tables[name] for name in _parts(base)}
        means, deviations, read = {}, {}, []
        for name, table in rows.items():
            table = table.astype(jnp.float32)
            found = table[pieces]
            deviations[name] = jnp.std(table, 0)
            means[name] = jnp.einsum("np,npd->nd", share, found, precision="highest")
            read.append((found - jnp.mean(table, 0)) / (deviations[name] + 1e-6))
        x = dense(jnp.concatenate(read, -1), p["in"])
        hidden = decoder.forward(
            self.encoder, p, inputs_embeds=x, segment_ids=mask.astype(jnp.int32), logits=False
        ).hidden
        pooled = jnp.einsum("np,npd->nd", share, hidden)
        out: Tables = {}
        for name in rows:
            own = p[f"project_{name}"]
            inner = activation("gelu")(dense(pooled, own["in"]) + own["in_bias"])
            out[name] = means[name] + deviations[name] * (dense(inner, own["out"]) + own["out_bias"])
        if "kernel" in out:
            out["kernel"] = out["kernel"].T
        bias = jnp.einsum("np,np->n", share, tables["bias"][pieces]) if "bias" in tables else jnp.zeros(len(pieces))
        return out | {"bias": jnp.where(mask.any(1), bias, NO_TOKEN)}


def _parts(base: ModelSpec) -> tuple[str, ...]:
    return ("table",) if base.tied_head else ("table", "kernel")


def tables_of(base: ModelSpec, params: Params) -> Tables:
    """A model's arrays with a row for each token: its embeddings, head and bias, as far as it has them."""
    head = params.get("head", {})
    kept = {name: head[name] for name in ("kernel", "bias") if name in head}
    return {"table": params["embed"]["table"], **kept}


@dataclasses.dataclass(frozen=True)
class TransferModel:
    """A model whose embeddings a hypernetwork makes, as `jaxlm.objective.tokenizer_transfer` takes it.

    Its parameters are ``{"base": of the model, "hypernetwork": of the network}``; what is trained is the second.
    """

    base: ModelSpec
    hypernetwork: EmbeddingHypernetwork

    def __post_init__(self) -> None:
        require(self.base.edit is None, "tokenizer transfer: a model with a sequence edit has tokens of its own")
        for name, (encoding, _) in decoder.position_encodings(self.base).items():
            require(not encoding.reads_tokens, f"tokenizer transfer: position {name!r} knows token ids")

    @property
    def spec(self) -> ModelSpec:
        """The model with predicted embeddings; its biases keep rows that are no token out of the distribution."""
        return dataclasses.replace(self.base, head_bias=True)

    def param_specs(self) -> Specs:
        return {"base": decoder.param_specs(self.base), "hypernetwork": self.hypernetwork.params(self.base)}

    def predict(self, params: Params, batch: Mapping[str, Any]) -> Tables:
        """The embeddings of a batch's vocabulary: ``pieces`` int32 [N, P], ``piece_mask`` bool [N, P] and ``copied``
        bool [N], tokens that keep their mean of pieces (special tokens, whose one piece is their counterpart)."""
        tables = tables_of(self.base, params["base"])
        found = self.hypernetwork.predict(
            params["hypernetwork"], self.base, tables, batch["pieces"], batch["piece_mask"]
        )
        first = batch["pieces"][:, 0]
        found["table"] = jnp.where(batch["copied"][:, None], tables["table"][first], found["table"])
        if "kernel" in found:
            found["kernel"] = jnp.where(batch["copied"][None], tables["kernel"][:, first], found["kernel"])
        return found

    def own(self, params: Params, ids: jax.Array) -> Tables:
        """The model's own rows of token ids [N] in the form of `predict` (without biases)."""
        tables = tables_of(self.base, params["base"])
        return {name: tables[name][ids] if name == "table" else tables[name][:, ids] for name in _parts(self.base)}

    def with_tables(self, params: Params, tables: Tables) -> Params:
        """The parameters of `spec` with these embeddings."""
        base = params["base"]
        head = {name: value for name, value in tables.items() if name != "table"}
        return {**base, "embed": {**base["embed"], "table": tables["table"]}, "head": {**base.get("head", {}), **head}}

    def __call__(self, params: Params, tokens: jax.Array | None = None, **options: Any) -> Output:
        """The forward pass with the parameters that `with_tables` gives."""
        return decoder.forward(self.spec, params, tokens, **options)

    def unembed(self, params: Params, hidden: jax.Array) -> jax.Array:
        return decoder.unembed(self.spec, params, hidden)
