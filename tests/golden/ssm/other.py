"""LSTM, PoNet, Mamba-3, and the formats of multi-query recall and ListOps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.data.tasks.list_ops import evaluate
from jaxlm.data.tasks.mqar import Mqar, bound_values
from jaxlm.ops import ponet
from jaxlm.ops.lstm import lstm
from jaxlm.ops.mamba3 import Memory, mamba3
from jaxlm.ops.segments import rows_of
from tests.golden.ssm.data import check_values_and_gradients, close, files
from tests.tiny import slow


def test_lstm(golden):
    for data in files(golden, "lstm_"):
        layers = len(data["in_h0"])
        x, hs, cs = jnp.asarray(data["in_x"]), [], []
        for i in range(layers):
            w, r = (data[f"param_weight_{kind}_l{i}"] for kind in ("ih", "hh"))  # [4 N, in]
            size = r.shape[1]
            w, r = (a.reshape(4, size, -1).transpose(2, 0, 1) for a in (w, r))
            bias = (data[f"param_bias_ih_l{i}"] + data[f"param_bias_hh_l{i}"]).reshape(4, size)
            state = jnp.asarray(data["in_h0"][i]), jnp.asarray(data["in_c0"][i])
            x, (h, c) = jax.jit(lstm)(x, w, r, bias, state=state)
            hs.append(h)
            cs.append(c)
        close(x, data["out_y"], name="y")
        close(np.stack(hs), data["out_h"], name="h")
        close(np.stack(cs), data["out_c"], name="c")


@pytest.mark.parametrize(("chunk", "implementation"), [(7, "xla"), (64, "xla"), *slow((1, "xla"), (64, "reference"))])
def test_mamba3(golden, chunk, implementation):
    """The biases, the skip and the gate around the recurrence are the mixer's; here they are written out."""
    for data in files(golden, "mamba3_siso"):
        heads = data["in_V"].shape[2]
        repeats = heads // data["in_Q"].shape[2]

        def run(x, repeats=repeats):
            q, k = (jnp.repeat(x[name], repeats, 2) + x[f"{name}_bias"] for name in "QK")
            along = lambda a: jnp.moveaxis(a, 1, 2)  # [B, H, L] -> [B, L, H]
            memory = Memory(x["s_angle"], jnp.swapaxes(x["s_ssm"], 2, 3), x["s_k"], x["s_v"])
            out, memory = mamba3(
                q,
                k,
                x["V"],
                along(x["ADT"]),
                along(x["DT"]),
                along(x["Trap"]),
                x["Angles"],
                memory=memory,
                chunk=chunk,
                implementation=implementation,
            )
            y = out + x["D"][:, None] * x["V"]
            return {
                "y": y * x["Z"] / (1 + jnp.exp(-x["Z"])),
                "angle_state": memory.angle,
                "ssm_state": jnp.swapaxes(memory.state, 2, 3),
                "k_state": memory.k,
                "v_state": memory.v,
            }

        names = ["Q", "K", "V", "ADT", "DT", "Trap", "Q_bias", "K_bias", "Angles", "D", "Z"]
        check_values_and_gradients(data, run, [*names, "s_angle", "s_ssm", "s_k", "s_v"])


def test_ponet(golden):
    for data in files(golden, "ponet_pooling"):
        q, k, o = (jnp.asarray(np.swapaxes(data[f"in_{name}"], 1, 2)) for name in "qko")  # [B, L, H, K]
        length = q.shape[1] // int(data["arg_segments"]) + 1
        segment, local = (data[f"in_{name}"].reshape(q.shape) for name in ("segment", "local"))

        def run(q, k, o, segment, local, rows, length=length):
            pooled = ponet.whole_global(q, k, rows) + ponet.whole_segments(segment, length, rows)
            out = pooled * o + ponet.whole_local(local, 3, rows)
            return out.reshape(*out.shape[:2], -1)

        close(jax.jit(run, static_argnums=5)(q, k, o, segment, local, None), data["out_nomask"])
        out = jax.jit(run)(q, k, o, segment, local, rows_of(jnp.asarray(data["in_mask"], jnp.int32)))
        close(out * data["in_mask"][..., None], data["out_mask"])


def labelled(labels: np.ndarray) -> np.ndarray:
    return labels != -100


def test_mqar_samples(golden):
    """Every label is the value that our evaluator finds bound to the word it stands at."""
    for data in files(golden, "mqar_sample"):
        pairs = int(data["arg_num_kv"])
        for row, labels in zip(data["inputs"], data["labels"], strict=True):
            found = bound_values([str(word) for word in row], pairs, labelled(labels))
            assert found == [str(label) if label != -100 else "" for label in labels]
            wrong = np.roll(row, 1)  # an evaluator that finds anything finds nothing here
            assert found != bound_values([str(word) for word in wrong], pairs, labelled(labels))


def test_mqar_format(golden):
    """Rows of ours are as those of the file: the same words in the same places, queries as near to the pairs."""
    for data in files(golden, "mqar_sample"):
        pairs, values, (count, size) = int(data["arg_num_kv"]), int(data["arg_vocab"]), data["inputs"].shape
        # The filler is what stands where neither a pair nor a query does.
        free = ~labelled(data["labels"])
        free[:, : 2 * pairs] = False
        filler = "random" if (data["inputs"][free] != 0).any() else "zero"
        task = Mqar(
            row_size=size,
            values=values,
            power=float(data["arg_power_a"]),
            filler=filler,
            train_lengths=(pairs, pairs),
            eval_lengths=(pairs - 1, pairs - 1),
        )
        rows = [task[i] for i in range(20 * count)]
        inputs = np.array([[int(word) for word in task.row(example)] for example in rows])
        labels = np.array([[int(word or -100) for word in task.asked(example)] for example in rows])

        def facts(inputs, labels, pairs=pairs, values=values, filler=filler):
            asked = labelled(labels)
            at = np.argwhere(asked)
            keys, bound = inputs[:, : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2]
            outside = ~asked
            outside[:, : 2 * pairs] = False
            return {
                "keys": bool(((keys >= 1) & (keys < values // 2)).all()),
                "values": bool(((bound >= values // 2) & (bound < values)).all()),
                "distinct": all(len(set(row)) == pairs for row in [*keys.tolist(), *bound.tolist()]),
                "each key once": all(
                    sorted(row[here]) == sorted(row[: 2 * pairs : 2]) for row, here in zip(inputs, asked, strict=True)
                ),
                "even places": bool((at[:, 1] % 2 == 0).all() and at[:, 1].min() >= 2 * pairs),
                "filler": filler == "random" or not inputs[outside].any(),
            }

        ours = facts(inputs, labels)
        assert ours == facts(data["inputs"], data["labels"]) == dict.fromkeys(ours, True)
        one, other = (np.argwhere(labelled(a))[:, 1] for a in (labels, data["labels"]))
        assert abs(one.mean() - other.mean()) < 4 * other.std() / len(other) ** 0.5


def test_list_ops_samples(golden):
    for data in files(golden, "listops_samples"):
        source = bytes(data["source"]).decode().split("\n")
        targets = data["target"].tolist()
        assert [evaluate(line.split()) for line in source if line] == targets
        assert len(set(targets)) > 1
