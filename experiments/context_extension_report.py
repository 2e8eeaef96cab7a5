"""Tables and figures of the context-extension study, from its CSV files alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from experiments import study

UNIT = 4  # the multiple of L that the table is sorted by


class Row(NamedTuple):
    """One line of results.csv: mean loss in nats per token over a ``part`` of windows of ``length`` tokens: all,
    the last 32 ("tail"), or an eighth ("1/8" is the first).
    """

    arm: str
    seed: int
    length: int
    part: str
    loss: float


class Passkey(NamedTuple):
    """One line of passkey.csv: the share of passkey symbols found, at a depth of the row."""

    arm: str
    seed: int
    length: int
    depth: int
    rows: int
    accuracy: float


class Decoding(NamedTuple):
    """One line of decoding.csv: a step of one token after ``length`` of them, one row, and the caches' bytes."""

    arm: str
    length: int
    milliseconds: float
    state_bytes: int


class Stream(NamedTuple):
    """One line of streaming.csv: after ``tokens`` of a stream, the mean loss of the last L of them, the time of a step
    of all rows, and the caches' bytes.
    """

    arm: str
    seed: int
    tokens: int
    loss: float
    milliseconds: float
    state_bytes: int


class Sinks(NamedTuple):
    """One line of sinks.csv: the share of attention that the first four tokens get within L, in a layer of the base."""

    seed: int
    layer: int
    share: float


FILES: dict[Any, str] = {
    Row: study.FILE,
    Passkey: "passkey.csv",
    Decoding: "decoding.csv",
    Stream: "streaming.csv",
    Sinks: "sinks.csv",
}


class Results(Protocol):
    """The rows of a workdir."""

    losses: list[Row]
    passkeys: list[Passkey]
    decoding: list[Decoding]
    streams: list[Stream]
    sinks: list[Sinks]


def one_line(rows: Sequence[Row]) -> str:
    """The loss of the tail at each length."""
    return " ".join(f"{r.length}:{r.loss:.2f}" for r in sorted(rows) if r.part == "tail")


def by_seed(rows: Sequence[Row], arm: str, length: int, part: str) -> dict[int, float]:
    return {r.seed: r.loss for r in rows if (r.arm, r.length, r.part) == (arm, length, part)}


def excess(rows: Sequence[Row], arm: str, length: int, original: int) -> list[float]:
    """Loss of the tail at ``length`` minus the same arm's at the training length, for each seed."""
    there, here = by_seed(rows, arm, length, "tail"), by_seed(rows, arm, original, "tail")
    return [there[seed] - here[seed] for seed in sorted(there) if seed in here]


def table(
    rows: Sequence[Row],
    passkeys: Sequence[Passkey],
    decoding: Sequence[Decoding],
    original: int,
    groups: Mapping[str, Sequence[str]],
) -> str:
    """Arms under their headings, sorted by the loss at 4x."""
    lengths = sorted({r.length for r in rows})
    longest, key = lengths[-1], UNIT * original if UNIT * original in lengths else lengths[-1]
    seeds = len({r.seed for r in rows})
    lines = [
        f"loss of the last 32 tokens in nats, by length in units of L = {original}; mean of {seeds} seeds; "
        f"'+{key // original}x' is the rise from 1x to {key // original}x, (least, most of the seeds);",
        f"passkey: found at {key // original}x, mean over depths; a decoding step after {longest} tokens and its state",
    ]
    head = f"{'':<24}" + "".join(f"{f'{n / original:g}x':>7}" for n in lengths)
    lines.append(head + f"{f'+{key // original}x':>22}{'passkey':>9}{'ms':>8}{'kB':>8}")
    mean = lambda values: float(np.mean(values)) if len(values) else float("nan")
    for heading, arms in groups.items():
        held = [arm for arm in arms if by_seed(rows, arm, key, "tail")]
        if not held:
            continue
        lines.append(heading)
        for arm in sorted(held, key=lambda arm: mean([*by_seed(rows, arm, key, "tail").values()])):
            losses = "".join(f"{mean([*by_seed(rows, arm, n, 'tail').values()]):>7.2f}" for n in lengths)
            rise = excess(rows, arm, key, original)
            span = f"{mean(rise):+.2f} ({min(rise):+.2f} {max(rise):+.2f})"
            found = [p.accuracy for p in passkeys if p.arm == arm and p.length == key]
            cost = [d for d in decoding if d.arm == arm and d.length == longest]
            price = f"{cost[0].milliseconds:>8.2f}{cost[0].state_bytes / 1000:>8.0f}" if cost else f"{'-':>8}{'-':>8}"
            lines.append(f"  {arm:<22}{losses}{span:>22}{mean(found):>9.2f}{price}")
    return "\n".join(lines) + "\n"


def streams(found: Sequence[Stream], sinks: Sequence[Sinks], original: int) -> str:
    """What endless text costs and loses, by method, in tenths of the stream; empty if there is none."""
    if not found:
        return ""
    last = max(s.tokens for s in found)
    parts = min(10, last // original)
    edges = [last // original * n // parts * original for n in range(parts + 1)]
    mean = lambda rows, field: float(np.mean([getattr(r, field) for r in rows])) if rows else float("nan")
    head = "".join(f"{f'{stop / original:g}x':>7}" for stop in (original, *edges[1:]))
    lines = [
        "",
        "one token at a time through a cache of constant size: loss of the first L tokens, then of each tenth;",
        "milliseconds of a step in the second and the last tenth; the state",
        f"{'':<24}{head}{'ms':>14}{'kB':>6}",
    ]
    for arm in sorted({s.arm for s in found}):
        rows = [s for s in found if s.arm == arm]
        tenths = [[s for s in rows if low < s.tokens <= high] for low, high in itertools.pairwise(edges)]
        losses = "".join(f"{mean(part, 'loss'):>7.2f}" for part in ([s for s in rows if s.tokens == original], *tenths))
        times = f"{mean(tenths[1], 'milliseconds'):.2f} {mean(tenths[-1], 'milliseconds'):.2f}"
        lines.append(f"  {arm:<22}{losses}{times:>14}{rows[0].state_bytes / 1000:>6.0f}")
    layers = sorted({s.layer for s in sinks})
    shares = ", ".join(f"{mean([s for s in sinks if s.layer == n], 'share'):.3f} in layer {n}" for n in layers)
    lines.append(f"  attention that the first 4 tokens get within L, from the second half of it: {shares}")
    return "\n".join(lines) + "\n"


def write(results: Results, workdir: Path, original: int, groups: Mapping[str, Sequence[str]]) -> str:
    """Writes table.txt and, where matplotlib is installed, the figures; returns what to print."""
    rows, passkeys = results.losses, results.passkeys
    text = table(rows, passkeys, results.decoding, original, groups)
    text += streams(results.streams, results.sinks, original)
    (workdir / "table.txt").write_text(text, encoding="utf-8")
    held = {h: [arm for arm in arms if any(r.arm == arm for r in rows)] for h, arms in groups.items()}
    held = {heading: arms for heading, arms in held.items() if arms}
    figures = [
        lambda: _curves(rows, original, held, workdir),
        lambda: _by_position(rows, held, workdir),
        lambda: _heat_maps(passkeys, original, [arm for arms in held.values() for arm in arms], workdir),
    ]
    if results.streams:
        figures.append(lambda: _streams(results.streams, original, workdir))
    return text + study.figures(*figures)


def _streams(found: Sequence[Stream], original: int, workdir: Path) -> Path:
    """Loss along the stream: mean over seeds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for arm in sorted({s.arm for s in found}):
        units = sorted({s.tokens for s in found if s.arm == arm})
        means = [np.mean([s.loss for s in found if (s.arm, s.tokens) == (arm, n)]) for n in units]
        axes.plot([n / original for n in units], means, label=arm)
    axes.set(xlabel=f"tokens so far, in units of L = {original}", ylabel="loss of the last L, nats")
    axes.legend(fontsize=8)
    return study.saved(figure, workdir / "streaming.png")


def _curves(rows: Sequence[Row], original: int, groups: Mapping[str, Sequence[str]], workdir: Path) -> Path:
    """Loss of the tail against length, a panel for each group: mean over seeds, band from the least to the most."""
    import matplotlib.pyplot as plt

    lengths = sorted({r.length for r in rows})
    figure, panels = plt.subplots(
        1, len(groups), figsize=(5.2 * len(groups), 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (heading, arms) in zip(panels[0], groups.items(), strict=True):
        for i, arm in enumerate(arms):
            found = [[*by_seed(rows, arm, n, "tail").values()] for n in lengths]
            style: dict[str, Any] = {"color": f"C{i % 10}", "ls": ("-", "--", ":")[i // 10 % 3]}
            axes.plot(lengths, [np.mean(x) for x in found], marker=".", label=arm, **style)
            axes.fill_between(
                lengths, [min(x) for x in found], [max(x) for x in found], color=style["color"], alpha=0.12, lw=0
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{n / original:g}x" for n in lengths])
        axes.set(title=heading, xlabel=f"context, in units of L = {original}")
        axes.legend(fontsize=6, ncols=2)
    panels[0][0].set_ylabel("loss of the last 32 tokens, nats")
    return study.saved(figure, workdir / "loss_by_length.png")


def _by_position(rows: Sequence[Row], groups: Mapping[str, Sequence[str]], workdir: Path) -> Path:
    """Loss along the longest windows."""
    import matplotlib.pyplot as plt

    longest = max(r.length for r in rows)
    parts = sorted({r.part for r in rows if "/" in r.part}, key=lambda part: int(part.partition("/")[0]))
    figure, panels = plt.subplots(
        1, len(groups), figsize=(5.2 * len(groups), 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (heading, arms) in zip(panels[0], groups.items(), strict=True):
        for i, arm in enumerate(arms):
            found = [np.mean([*by_seed(rows, arm, longest, part).values()]) for part in parts]
            axes.plot(range(1, len(parts) + 1), found, color=f"C{i % 10}", ls=("-", "--", ":")[i // 10 % 3], label=arm)
        axes.set(title=heading, xlabel=f"eighth of {longest} tokens")
        axes.legend(fontsize=6, ncols=2)
    panels[0][0].set_ylabel("loss, nats")
    return study.saved(figure, workdir / "loss_by_position.png")


def _heat_maps(passkeys: Sequence[Passkey], original: int, arms: Sequence[str], workdir: Path) -> Path:
    """A panel for each arm: length across, depth down, mean accuracy over seeds as colour."""
    import matplotlib.pyplot as plt

    lengths, depths = sorted({p.length for p in passkeys}), sorted({p.depth for p in passkeys})
    columns = 8
    lines = -(-len(arms) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(1.5 * columns, 1.5 * lines), sharex=True, sharey=True, squeeze=False
    )
    image: Any = None
    for axes, arm in zip(grid.flat, arms, strict=False):
        cells = [
            [[p.accuracy for p in passkeys if p[:1] == (arm,) and p[2:4] == (n, d)] for n in lengths] for d in depths
        ]
        values = np.array([[np.mean(cell) if cell else np.nan for cell in line] for line in cells])
        image = axes.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto", interpolation="nearest")
        axes.set_title(arm, fontsize=7)
        axes.set_xticks(range(len(lengths)), [f"{n / original:g}x" for n in lengths], fontsize=5)
        axes.set_yticks([0, len(depths) - 1], ["start", "end"], fontsize=6)
    for axes in grid.flat[len(arms) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=grid.ravel().tolist(), label="passkey found, by depth")
    return study.saved(figure, workdir / "passkey_by_depth.png")
