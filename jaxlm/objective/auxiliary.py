"""What layers report beside their outputs (the balance of experts), as objectives take it up.

A report is a mean over the batch, and an objective's sums come with the batch's weight; so a report enters times that
weight, and the mean of an accumulated batch is the weighted mean of its parts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.ffn.base import AUXILIARY_LOSS, Aux


def loss(aux: Aux, weight: jax.Array) -> jax.Array:
    """What to add to a summed loss whose weight is ``weight``."""
    return weight * aux[AUXILIARY_LOSS] if AUXILIARY_LOSS in aux else jnp.float32(0)


def metrics(aux: Aux, weight: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """``{name: (sum, weight)}`` of every report."""
    return {name: (weight * value, weight) for name, value in aux.items()}
