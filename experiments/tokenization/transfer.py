"""What studies share that train a hypernetwork to make embeddings for new tokens of a small model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from experiments import study as frame
from experiments.tokenization.frame import Study
from experiments.tokenization.language_model import SmallModel
from jaxlm.core.config import require
from jaxlm.model.embedding_hypernetwork import EmbeddingHypernetwork
from jaxlm.train.tokenizer_transfer import Transfer


@dataclasses.dataclass(frozen=True)
class TransferStudy(Study):
    """A study with such a network.

    Attributes:
      model: the transformer and its training.
      network: that predicts embeddings.
      network_steps: of its training, each on texts under a tokenizer drawn at random.
      fresh_every: steps for which a drawn tokenizer is kept.
      drawn: least and most ids of a drawn tokenizer.
      train_bytes, test_bytes: of text.
    """

    model: SmallModel = SmallModel()
    network: EmbeddingHypernetwork = EmbeddingHypernetwork()
    network_steps: int = 600
    fresh_every: int = 5
    drawn: tuple[int, int] = (512, 4096)
    train_bytes: int = 3_000_000
    test_bytes: int = 50_000

    def check(self) -> None:
        super().check()
        kind = type(self).__name__
        require(min(self.network_steps, self.fresh_every) > 0, f"{kind}: steps must be positive")
        _ = self.transfer  # says what else does not fit

    @property
    def transfer(self) -> Transfer:
        """The run that trains the network, on as many bytes a step as the model."""
        return Transfer(
            network=self.network,
            steps=self.network_steps,
            batch_size=self.model.batch_size,
            text_bytes=self.model.row_bytes,
            drawn=self.drawn,
            fresh_every=self.fresh_every,
        )


def report_to(progress: frame.Report) -> Callable[[int, Any], None]:
    """Tells a study's progress what a `Transfer` reports."""
    return lambda steps, metrics: progress.steps(steps, {name: metrics[name][None] for name in ("tokens", "loss")})
