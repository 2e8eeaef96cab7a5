"""The hypernetwork of the studies that make embeddings for new tokens: how it is trained, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from experiments import study as frame
from experiments.tokenization.language_model import SmallModel
from jaxlm.model.embedding_hypernetwork import EmbeddingHypernetwork
from jaxlm.train.tokenizer_transfer import Transfer


class Trained(Protocol):
    """What such a study says of its network (the fields are told of there)."""

    @property
    def model(self) -> SmallModel: ...

    @property
    def network(self) -> EmbeddingHypernetwork: ...

    @property
    def network_steps(self) -> int: ...

    @property
    def fresh_every(self) -> int: ...

    @property
    def drawn(self) -> tuple[int, int]: ...


def transfer_of(study: Trained) -> Transfer:
    """The run that trains the network, on as many bytes a step as the model."""
    return Transfer(
        network=study.network,
        steps=study.network_steps,
        batch_size=study.model.batch_size,
        text_bytes=study.model.row_bytes,
        drawn=study.drawn,
        fresh_every=study.fresh_every,
    )


def report_to(progress: frame.Report) -> Callable[[int, Any], None]:
    """Tells a study's progress what a `Transfer` reports."""
    return lambda steps, metrics: progress.steps(steps, {name: metrics[name][None] for name in ("tokens", "loss")})
