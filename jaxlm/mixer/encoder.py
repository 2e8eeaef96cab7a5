"""What attention mixers have in common whose tokens see what comes later: one pass over whole rows, and no state.

Learned: the projections of `jaxlm.mixer.heads`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax

from jaxlm.core import registry
from jaxlm.core.errors import ConfigError, choose
from jaxlm.core.mask import Mask
from jaxlm.core.types import Context, Dims, Params
from jaxlm.mixer.attend import attend, hold, own_params
from jaxlm.mixer.heads import Heads
from jaxlm.ops.attention import IMPLEMENTATIONS


@dataclasses.dataclass(frozen=True)
class EncoderHeads(Heads):
    """Heads that look ahead; the base of a mixer, whose fields these are.

    Attributes:
      heads, kv_heads, head_dim, position, scale, soft_cap, qk_norm, ...: of `Heads`.
      implementation: a back end of `jaxlm.ops.attention`, or ``"auto"``.
    """

    streaming: ClassVar[bool] = False
    causal: ClassVar[bool] = False

    implementation: str = "auto"

    def check(self) -> None:
        super().check()
        choose(f"{type(self).__name__}.implementation", self.implementation, ("auto", *IMPLEMENTATIONS))

    def init_state(self, dims: Dims, batch: int, max_length: int, dtype: Any, cache: Any) -> Any:
        """Raises `ConfigError`: tokens that see what comes later cannot be had one by one."""
        name = registry.name_of("mixer", self)
        raise ConfigError(f"mixer {name!r} looks ahead: it has no state, and its model does not generate")

    def read(
        self, p: Params, projections: Params, x_BLD: jax.Array, ctx: Context, mask: Mask, **more: Any
    ) -> jax.Array:
        """What each head reads of the keys that ``mask`` shows, [B, L, H, K].

        Args:
          p: the mixer's parameters.
          projections: where qkv is, ``p`` or like it.
          x_BLD: [B, L, D].
          ctx, mask: as everywhere.
          more: of `jaxlm.mixer.attend.attend`.
        """
        q, k, v = self.project(projections, x_BLD)
        where = own_params(self.position, p, ctx)
        held, _ = hold(self.position, where, x_BLD, k, v, ctx, None)
        return attend(
            self.position,
            where,
            q,
            held,
            held.v,
            ctx,
            mask=mask,
            join=functools.partial(self.scored, p),
            scale=self.scale or None,
            soft_cap=self.soft_cap,
            own=True,
            implementation=None if self.implementation == "auto" else self.implementation,
            **more,
        )
