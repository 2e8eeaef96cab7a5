"""What `experiments.state_space` measures of a model: accuracy by length, by episode, step by step, and surprisal."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.small_models import training_batch
from experiments.state_space_plan import CONDITIONS, Arm, RunConfig
from jaxlm.cache.full import Full
from jaxlm.data.batch import pad_batch
from jaxlm.data.tasks.base import EOS, Example
from jaxlm.data.tasks.episodes import Episodes
from jaxlm.data.tasks.vignettes import Vignettes
from jaxlm.mixer.recurrent import Recurrent
from jaxlm.model import decoder
from jaxlm.model.decoder import Decoder

Batch = dict[str, np.ndarray]
STEPS_ROWS = 4  # rows on which a pass over whole rows is compared with single steps
DRAWS = 1000  # of the bootstrap


class Found(NamedTuple):
    """One number.

    Attributes:
      setting: how the model was read; ``""`` where there is but one way.
      at: where: a length, an episode, a gap; 0 where there is but one place.
      measure: what it is. ``score`` is what learning rates are chosen by.
      value: of it.
    """

    setting: str
    at: int
    measure: str
    value: float


def batch_of(arm: Arm, examples: Sequence[Example], places: int) -> Batch:
    """A batch of one size. One that looks ahead is given no more than the prompt, and no padding."""
    if arm.causal:
        return training_batch(list(examples), places)
    batch = pad_batch(examples, places)
    batch.pop("positions")
    for row, example in enumerate(examples):
        for name in ("tokens", "segment_ids", "weights"):
            batch[name][row, example.prompt_length :] = 0
    return batch


@jax.jit(static_argnums=0)
def predictions(model: Decoder, params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Whether the model's first choice is the target, boolean [B, L], and the target's surprisal in nats [B, L]."""
    where = {"segment_ids": batch["segment_ids"]} if "segment_ids" in batch else {}
    logits = model(params, batch["tokens"], ordered=True, **where).logits
    assert logits is not None
    picked = jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    return jnp.argmax(logits, -1) == batch["targets"], jax.nn.logsumexp(logits, -1) - picked


def predicted(config: RunConfig, model: Decoder, params: Any, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """`predictions`, some rows at a time."""
    total = len(batch["tokens"])
    parts = [
        predictions(model, params, {name: x[i : i + config.eval_rows] for name, x in batch.items()})
        for i in range(0, total, config.eval_rows)
    ]
    right, nats = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
    return right, nats


def counted(batch: Batch) -> np.ndarray:
    """Boolean [B, L]: the targets that accuracy is about, ``<eos>`` not among them."""
    return (batch["weights"] > 0) & (batch["targets"] != EOS)


def by_length(config: RunConfig, arm: Arm, model: Decoder, params: Any) -> Iterator[Found]:
    """Accuracy over the asked words at each length, and what always saying the commonest answer would have."""
    low, high = arm.task.train_lengths
    trained = []
    for length in arm.lengths:
        examples = [arm.task.at(length, i) for i in range(config.eval_examples)]
        places = arm.task.tokens_bound(length) - 1
        batch = batch_of(arm, examples, 1 << (places - 1).bit_length())  # few sizes, and so few compilations
        asked = counted(batch)
        accuracy = float(predicted(config, model, params, batch)[0][asked].mean())
        trained += [accuracy] if low <= length <= high else []
        yield Found("", length, "accuracy", accuracy)
        yield Found("", length, "majority", float(np.bincount(batch["targets"][asked]).max() / asked.sum()))
    yield Found("", 0, "score", float(np.mean(trained)) if trained else accuracy)


def by_step(config: RunConfig, arm: Arm, model: Decoder, params: Any) -> Iterator[Found]:
    """`by_length`, and how far single steps come from the pass over whole rows, relative to the largest logit."""
    yield from by_length(config, arm, model, params)
    if not arm.causal or not isinstance(arm.blocks[0].mixer, Recurrent):
        return
    length = max(arm.lengths)
    rows = [arm.task.at(length, i) for i in range(STEPS_ROWS)]
    tokens = jnp.asarray(training_batch(rows, arm.task.tokens_bound(length) - 1)["tokens"])
    full = np.asarray(jax.jit(lambda p, t: model(p, t).logits)(params, tokens))
    steps = np.asarray(jax.jit(functools.partial(stepwise, model))(params, tokens))
    yield Found("", length, "step_difference", float(np.abs(full - steps).max() / np.abs(full).max()))


def stepwise(model: Decoder, params: Any, tokens: jax.Array) -> jax.Array:
    """The logits [B, L, V] of tokens [B, L] fed one by one."""
    batch, length = tokens.shape
    state = decoder.init_state(model.spec, batch, length, Full())

    def step(state: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        out = model(params, token[:, None], state=state)
        assert out.logits is not None
        return out.state, out.logits[:, 0]

    return jnp.moveaxis(jax.lax.scan(step, state, tokens.T)[1], 0, 1)


def by_episode(config: RunConfig, arm: Arm, model: Decoder, params: Any) -> Iterator[Found]:
    """Accuracy in each episode of rows of the longest length, in every setting."""
    length = max(arm.lengths)
    examples = [arm.task.at(length, i) for i in range(config.eval_examples)]
    batch = training_batch(examples, arm.task.tokens_bound(length) - 1)
    for setting in config.settings:
        changed = dataclasses.replace(model, spec=setting.model(model.spec))
        one = apart(arm.task, batch) if setting.reset else batch
        right = predicted(config, changed, params, one)[0]
        means = right[counted(one)].reshape(len(examples), length, -1).mean((0, 2))
        yield from (Found(setting.label, k, "accuracy", float(mean)) for k, mean in enumerate(means, 1))
        if setting == config.settings[0]:
            yield Found("", 0, "score", float(means[: arm.task.train_lengths[1]].mean()))
        if setting.reset:
            yield Found(setting.label, 0, "difference", difference(arm.task, changed, params, one))


def apart(task: Episodes, batch: Batch) -> Batch:
    """The episodes of each row as documents of their own, each behind the words that begin a row, packed into a row."""
    head, size = task.tokens_bound(1) - 1 - task.episode_size, task.episode_size
    count = (batch["tokens"].shape[1] - head) // size

    def packed(name: str) -> np.ndarray:
        rows = batch[name]
        episodes = rows[:, head:].reshape(len(rows), count, size)
        heads = np.broadcast_to(rows[:, None, :head], (len(rows), count, head))
        return np.concatenate((heads, episodes), 2).reshape(len(rows), -1)

    out = {name: packed(name) for name in ("tokens", "targets", "weights")}
    ids = np.repeat(np.arange(1, count + 1, dtype=np.int32), head + size)
    return {**out, "segment_ids": np.broadcast_to(ids, out["tokens"].shape)}


def difference(task: Episodes, model: Decoder, params: Any, packed: Batch) -> float:
    """The most that resets inside a row differ from runs of each episode alone, in nats of a target's surprisal."""
    few = {name: array[:STEPS_ROWS] for name, array in packed.items()}
    size = task.tokens_bound(1) - 1
    alone = {name: few[name].reshape(-1, size) for name in ("tokens", "targets", "weights")}
    together, each = (np.asarray(predictions(model, params, batch)[1]) for batch in (few, alone))
    return float(np.abs(together.reshape(each.shape) - each).max())


def by_list(config: RunConfig, arm: Arm, model: Decoder, params: Any) -> Iterator[Found]:
    """Surprisal of a second list in percent of that of the first, by condition, nouns and gap: the median over lists of
    the ratio of medians, the first noun of each list left out, and its 95 % bootstrap interval."""
    rng, loss = np.random.default_rng(0), []
    for gap in config.gaps:
        for condition in CONDITIONS:
            task = dataclasses.replace(arm.task, condition=condition, gap=(gap, gap))
            places = task.tokens_bound(max(arm.lengths)) - 1
            for nouns in arm.lengths:
                examples = [task.at(nouns, i) for i in range(config.eval_examples)]
                batch = training_batch(examples, places)
                nats = predicted(config, model, params, batch)[1]
                loss.append(float(nats[batch["weights"] > 0].mean()))
                ratios = np.array([ratio(task, one, its) for one, its in zip(examples, nats, strict=True)])
                draws = np.median(rng.choice(ratios, (DRAWS, len(ratios))), 1)
                low, high = np.quantile(draws, (0.025, 0.975))
                for measure, value in (("surprisal", np.median(ratios)), ("low", low), ("high", high)):
                    yield Found(f"{condition} {nouns}", gap, measure, float(value))
    yield Found("", 0, "score", -float(np.mean(loss)))


def ratio(task: Vignettes, example: Example, nats: np.ndarray) -> float:
    """Of one document, from the surprisals [places] of its tokens but the first."""
    first, second = (float(np.median(nats[span[1:] - 1])) for span in task.spans(example))
    return 100 * second / max(first, 1e-9)


READERS: dict[str, Callable[[RunConfig, Arm, Decoder, Any], Iterator[Found]]] = {
    "recall": by_length,
    "copying": by_length,
    "tracing": by_length,
    "collapse": by_episode,
    "passkey": by_length,
    "long_range": by_step,
    "list_ops": by_length,
    "verbatim": by_list,
    "translation": by_length,
}
