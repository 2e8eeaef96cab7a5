"""Meshes and logical axis rules: names in the code, placement in one table."""

from jaxlm.dist.batch import global_batch
from jaxlm.dist.mesh import Mesh, make_mesh
from jaxlm.dist.rules import RULES, constrain, param_shardings, per_device, sharding, use_mesh

__all__ = [
    "RULES",
    "Mesh",
    "constrain",
    "global_batch",
    "make_mesh",
    "param_shardings",
    "per_device",
    "sharding",
    "use_mesh",
]
