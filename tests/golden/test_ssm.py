"""Golden vectors of state-space and recurrent mixers: values and gradients of every file, each in the part it is of.

A part is a module of `tests.golden.ssm` whose tests are imported here, so that this file is the whole suite.
"""

from tests.golden.ssm.scalar_decay import *  # noqa: F403
