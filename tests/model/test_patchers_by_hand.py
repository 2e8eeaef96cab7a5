"""Every patcher against its formulae on one text, patch by patch, each in a loop of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model import decoder, patch_stacks
from jaxlm.model.patcher import entropy_table
from jaxlm.model.spec import ModelSpec
from tests.model.test_patchers import CASES, LOCAL, spec_of
from tests.tiny import close, params_of

# Words of 3 bytes, so that few shapes are compiled; the last two are one run that is cut.
TEXT = np.asarray([*b"abc de fg ab\t", *"c dé".encode()], np.int32)


@functools.cache
def runner(spec: ModelSpec) -> Any:
    return jax.jit(lambda p, x: decoder.forward(spec, p, inputs_embeds=x[None], logits=False).hidden[0])


class Hand:
    """The parts of a model, one row at a time, in numpy but for its layers."""

    def __init__(self, name: str, **more: Any) -> None:
        self.spec: ModelSpec = spec_of(name, **more)
        self.params = params_of(self.spec)
        self.p = jax.tree.map(np.asarray, self.params["patcher"])
        self.patcher = self.spec.patcher
        self.embedded = np.asarray(self.params["embed"]["table"])[TEXT]

    def stack(self, name: str, x: Any) -> Any:
        return np.array(runner(patch_stacks.stack_specs(self.spec)[name])(self.params["patcher"][name], x))

    def layers(self, z: Any) -> Any:
        return np.asarray(runner(patch_stacks.global_spec(self.spec))(self.params, np.stack(z)))

    def norm(self, name: str, x: Any) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.patcher.norm.eps) * self.p[name]["scale"]

    def cross(self, name: str, query: Any, keys: Any) -> Any:
        """One query [d] over keys [n, d], head by head."""
        p, out = self.p[name], 0
        for h in range(p["query"].shape[1]):
            q, k, v = query @ p["query"][:, h], keys @ p["key_value"][:, 0, h], keys @ p["key_value"][:, 1, h]
            weight = np.exp(k @ q / np.sqrt(len(q)))
            out += weight @ v / weight.sum() @ p["out"][h]
        return out

    def logits(self, x: Any) -> Any:
        return x @ np.asarray(self.params["head"]["kernel"]) + np.asarray(self.params["head"]["bias"])


def fixed_stride() -> tuple[Hand, Any]:
    hand = Hand("fixed_stride")
    stride, p, e = hand.patcher.stride, hand.p, hand.embedded
    whole = [range(i, i + stride) for i in range(0, len(TEXT) - stride + 1, stride)]
    y = hand.layers([sum(e[t] @ p["down"][i] for i, t in enumerate(patch)) for patch in whole])
    x, block = [], []
    for t in range(len(TEXT)):
        done, place = (t + 1) // stride, (t + 1) % stride
        size = hand.spec.width // stride
        said = y[done - 1, place * size : (place + 1) * size] @ p["up"] if done else p["first"][place]
        block.append(e[t] + said)
        if (t + 2) % stride == 0 or t + 1 == len(TEXT):  # the next byte completes a patch, and begins a block
            x.append(hand.stack("decoder", np.stack(block)))
            block = []
    return hand, np.concatenate(x)


def space_byte() -> tuple[Hand, Any]:
    hand = Hand("space_byte")
    h = hand.stack("encoder", hand.embedded)
    like = [not (chr(b).isascii() and chr(b).isalnum()) and not 0x80 <= b < 0xC0 for b in TEXT]
    places = [t for t in range(len(TEXT)) if t == 0 or (like[t] and not like[t - 1])]
    y = hand.layers([hand.norm("norm", h[t]) @ hand.p["down"] for t in places])
    for j, t in enumerate(places):
        h[t] += y[j] @ hand.p["up"]
    return hand, hand.stack("decoder", h)


def routing() -> tuple[Hand, Any]:
    hand = Hand("routing")
    h = hand.stack("encoder", hand.embedded)
    chance = [1.0]
    for t in range(1, len(TEXT)):
        q, k = h[t - 1] @ hand.p["query"], h[t] @ hand.p["key"]
        chance.append(float((1 - q @ k / np.linalg.norm(q) / np.linalg.norm(k)) / 2))
    places = [t for t in range(len(TEXT)) if chance[t] > 0.5]
    y = hand.layers([hand.norm("norm", h[t]) @ hand.p["down"] for t in places])
    e, x = np.zeros(hand.spec.width), []
    for t in range(len(TEXT)):
        if t in places:
            share = min(max(chance[t], 1e-4), 1 - 1e-4)
            e = share * y[places.index(t)] + (1 - share) * e
        x.append(h[t] + e @ hand.p["up"])
    return hand, hand.stack("decoder", np.stack(x))


def of_table(hand: Hand) -> list[float]:
    """Nats after each byte: those of the longest context that the table knows."""
    own, table, found = hand.patcher, hand.p["entropies"], []
    for t in range(len(TEXT)):
        found.append(max(float(table[0, 0]), 0.0))
        for j in range(1, min(own.order, t + 1) + 1):
            last = [TEXT[t - i : t - i + 1] for i in range(j)]
            if (nats := float(table[j, entropy_table.bucket(last, own.buckets)[0]])) >= 0:
                found[-1] = nats
    return found


def of_model(hand: Hand) -> list[float]:
    """Nats after each byte, of the language model by itself."""
    own = decoder.Decoder(hand.patcher.model)(hand.params["patcher"]["entropies"], jnp.asarray(TEXT[None])).logits
    assert own is not None
    p = np.exp(np.asarray(own[0], np.float64))
    p /= p.sum(-1, keepdims=True)
    return (-p * np.log(p)).sum(-1).tolist()


def entropy(name: str, threshold: float, entropies: Callable[[Hand], list[float]]) -> tuple[Hand, Any]:
    hand = Hand(name, threshold=threshold)
    own, p = hand.patcher, hand.p
    embedded = []
    for t in range(len(TEXT)):
        e = hand.embedded[t]
        for n in own.ngrams:
            if t >= n - 1:
                row = entropy_table.bucket([TEXT[t - i : t - i + 1] for i in range(n)], own.ngram_buckets)[0]
                e = e + p[f"ngram_{n}"][row]
        embedded.append(e / (len(own.ngrams) + 1))
    h = hand.stack("encoder", np.stack(embedded))
    patches, current = [], []
    for t, nats in enumerate(entropies(hand)):
        current.append(t)
        if t == 0 or nats > own.threshold or len(current) == own.max_bytes:
            patches.append(current)
            current = []
    assert len({len(patch) for patch in patches}) > 2
    z = []
    for patch in patches:
        most = h[np.asarray(patch)].max(0)
        keys = hand.norm("pool_norm", h[np.asarray(patch)])
        z.append(most @ p["down"] + hand.cross("pool", hand.norm("pool_norm", most), keys))
    y = hand.layers(z)
    x = []
    for t in range(len(TEXT)):
        done = sum(patch[-1] <= t for patch in patches)
        pieces = np.einsum("d,dne->ne", y[done - 1], p["up"])
        x.append(h[t] + hand.cross("read", hand.norm("read_norm", h[t]), pieces))
    return hand, hand.stack("decoder", np.stack(x))


def words_of(marks: bool, longest: int) -> list[list[int]]:
    """White space begins a word with what follows it; with ``marks`` so does a change to or from punctuation."""
    kind = lambda b: "space" if chr(b) in " \t\n" else "word" if b >= 0x80 or chr(b).isalnum() else "mark"
    words: list[list[int]] = [[0]]
    for t in range(1, len(TEXT)):
        before, now = kind(TEXT[t - 1]), kind(TEXT[t])
        new = (now == "space" and before != "space") or (marks and "space" not in (before, now) and before != now)
        if new or len(words[-1]) == longest:
            words.append([])
        words[-1].append(t)
    return words


def _words(name: str) -> tuple[Hand, list[Any], Any]:
    hand = Hand(name, max_bytes=4)
    n, words = hand.patcher.vectors, words_of(hand.patcher.marks, 4)
    z = []
    for word in words[:-1]:  # the last one never ends
        h = hand.stack("encoder", np.concatenate([hand.p["vectors"], hand.embedded[np.asarray(word)]]))
        z.append(np.einsum("nd,nde->e", hand.norm("norm", h[:n]), hand.p["down"]))
    return hand, words, hand.layers(z)


def word_pooled() -> tuple[Hand, Any]:
    hand, words, y = _words("word_pooled")
    x = []
    for j, word in enumerate(words):
        e = hand.embedded[np.asarray(word)]
        if j:
            pieces = np.einsum("d,dne->ne", y[j - 1], hand.p["up"])
            e = np.stack([one + hand.cross("cross", hand.norm("cross_norm", one), pieces) for one in e])
        x.append(hand.stack("decoder", e))
    return hand, np.concatenate(x)


def hierarchical() -> tuple[Hand, Any]:
    hand, words, y = _words("hierarchical")
    x = []
    for j, word in enumerate(words):
        e = hand.embedded[np.asarray(word)]
        first = y[j - 1] @ hand.p["up"] if j else hand.p["first"]
        x.append(hand.stack("decoder", np.concatenate([e[:1] + first, e[1:]])))
    return hand, np.concatenate(x)


BY_HAND = {f.__name__: f for f in (fixed_stride, space_byte, routing, word_pooled, hierarchical)}
BY_HAND |= {
    "entropy": lambda: entropy("entropy", 0.35, of_table),
    "entropy of a model": lambda: entropy("entropy of a model", 5.073, of_model),
}


def test_the_list_has_every_registered_patcher() -> None:
    assert set(BY_HAND) == set(CASES)
    assert LOCAL < spec_of("routing").width


@pytest.mark.parametrize("name", BY_HAND)
def test_it_is_what_the_formulae_say(name: str) -> None:
    hand, x = BY_HAND[name]()
    forward = jax.jit(lambda params, tokens: decoder.forward(hand.spec, params, tokens).logits)
    close(forward(hand.params, jnp.asarray(TEXT[None])), hand.logits(x)[None])
