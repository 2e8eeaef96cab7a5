"""Tokenization: what tokens hide from a model, and what it costs.

One study per preset of configs/tokenization.py, and one file per study in experiments/tokenization: sources with and
without tokens, digits and the direction of their groups, counting, byte-exact prediction at random cuts, the mixture
behind a tokenizer's merges, the size of a vocabulary, kinds of segmentation, and exchanged tokenizers.

Writes to --workdir: config.json, provenance.json, results.csv (part, arm, seed, measure, at, setting, value),
table.txt, and a figure as PNG. Finished runs are kept, so an interrupted study continues where it stopped; --replot
only redraws.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from experiments import flags as config_flags
from experiments.small_models import REPLOT
from experiments.tokenization import frame
from experiments.tokenization.frame import Study

flags.declare_key_flag("replot")  # so that --help shows them
flags.declare_key_flag("share")


def main(config: Study, workdir: Path) -> None:
    frame.main(config, workdir, REPLOT.value)


if __name__ == "__main__":
    config_flags.run(main, default="configs/tokenization.py:markov_study")
