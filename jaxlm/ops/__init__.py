"""Public array functions, each with several implementations tried in order."""

from jaxlm.ops.attention import attention, merge

__all__ = ["attention", "merge"]
