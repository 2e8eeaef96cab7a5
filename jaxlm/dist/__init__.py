"""Meshes and logical axis rules: names in the code, placement in one table."""

from jaxlm.dist.batch import global_batch
from jaxlm.dist.lasp import convolve, divided, in_pieces, lasp
from jaxlm.dist.mesh import Mesh, make_mesh
from jaxlm.dist.rules import RULES, Axes, constrain, divides, is_active, param_shardings, per_device, sharding, use_mesh

__all__ = [
    "RULES",
    "Axes",
    "Mesh",
    "constrain",
    "convolve",
    "divided",
    "divides",
    "global_batch",
    "in_pieces",
    "is_active",
    "lasp",
    "make_mesh",
    "param_shardings",
    "per_device",
    "sharding",
    "use_mesh",
]
