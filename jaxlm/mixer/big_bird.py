"""BigBird's attention (Zaheer et al. 2020, Big Bird: Transformers for Longer Sequences, appendix D).

Tokens are taken in blocks. The first and the last block of a row see all and are seen by all; each other block sees
itself, its two neighbours and a few random blocks. Rows too short for that are attended in full.

Learned: the projections of `jaxlm.mixer.heads`. Claimed: full attention's quality on long documents in linear time.

Which blocks are random is a choice made once and for all, and with trained weights it matters whose. ``"drawn"`` is the
paper's: different blocks among those that a block does not see already. ``"first"`` is what transformers computes
outside training, where its lists of random blocks are all zeros: the first block counts once more for each of them. A
key listed twice has twice the weight in the softmax, so this is not what the other blocks alone would give.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax

from jaxlm.attention.mask import Bidirectional, BlockBand, Blocks
from jaxlm.attention.patterns import random_blocks
from jaxlm.core.config import require
from jaxlm.core.errors import choose
from jaxlm.core.mask import Mask
from jaxlm.core.types import Context, Dims, Params
from jaxlm.mixer.encoder import EncoderHeads


@dataclasses.dataclass(frozen=True)
class BigBird(EncoderHeads):
    """Block-sparse attention over ends, neighbours and random blocks.

    Attributes:
      heads, kv_heads, head_dim, position, scale, ..., implementation: of `EncoderHeads`.
      block: tokens of a block.
      random: how many random blocks a block sees.
      choice: which: ``"drawn"`` or ``"first"``, as above.
      seed: of the draw.
    """

    paper: ClassVar[str] = "Zaheer et al. 2020, Big Bird: Transformers for Longer Sequences"

    block: int = 64
    random: int = 3
    choice: str = "drawn"
    seed: int = 0

    def check(self) -> None:
        super().check()
        require(
            self.block > 0 and self.random >= 0,
            f"BigBird: expected block > 0 and random >= 0, got {self.block} and {self.random}",
        )
        choose("BigBird.choice", self.choice, ("drawn", "first"))

    def masks(self, length: int) -> tuple[Mask, tuple[tuple[Mask, int], ...]]:
        """What a query of a row of ``length`` sees; and what counts again, each with how many times."""
        if length <= (5 + 2 * self.random) * self.block:
            return Bidirectional(), ()
        blocks = -(-length // self.block)
        band = BlockBand(self.block, blocks)
        if not self.random:
            return band, ()
        if self.choice == "drawn":
            return band | Blocks(self.block, random_blocks(blocks, self.random, seed=self.seed)), ()
        first = ((-1,), *((0,),) * (blocks - 2), (-1,))
        return band, ((Blocks(self.block, first), self.random),)

    def flops(self, dims: Dims, length: int) -> float:
        """Scores and weighted sum: 4 H K per key that a token looks at."""
        own, (mask, again) = self.dims(dims), self.masks(length)
        keys = mask.mean_keys(length) + sum(more.mean_keys(length) for more, _ in again)
        return 4.0 * own.heads * own.head_dim * keys

    def __call__(self, p: Params, x_BLD: jax.Array, ctx: Context, state: None = None) -> tuple[jax.Array, None]:
        """[B, L, D] -> [B, L, D]. The last block is that of position L - 1, in rows that end earlier too."""
        mask, again = self.masks(x_BLD.shape[1])
        return self.unproject(p, self.read(p, p, x_BLD, ctx, mask, again=again)), None
