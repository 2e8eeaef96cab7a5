"""Meshes and logical axis rules: names in the code, placement in one table."""

from jaxlm.dist.batch import global_batch
from jaxlm.dist.lasp import convolve, lasp
from jaxlm.dist.mesh import Mesh, make_mesh
from jaxlm.dist.rules import RULES, Axes, constrain, divides, is_active, param_shardings, per_device, sharding, use_mesh

__all__ = [
    "RULES",
    "Axes",
    "Mesh",
    "constrain",
    "convolve",
    "divides",
    "global_batch",
    "is_active",
    "lasp",
    "make_mesh",
    "param_shardings",
    "per_device",
    "sharding",
    "use_mesh",
]
