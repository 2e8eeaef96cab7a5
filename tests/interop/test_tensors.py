"""Folders of safetensors: as the safetensors library reads and writes them, and nothing is taken on trust."""

import json
import struct
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxlm.core.errors import ConfigError
from jaxlm.interop.tensors import INDEX, SINGLE, Planned, open_folder, write_folder

DTYPES = ["float64", "float32", "float16", "bfloat16", "int8", "int16", "int32", "int64",
          "uint8", "uint16", "uint32", "uint64", "bool"]  # fmt: skip


def values(seed=0):
    """Arrays of every dtype and of odd shapes: of no dimension, of no element, of an odd number of bytes."""
    rng = np.random.default_rng(seed)
    out = {f"w.{dtype}": (rng.standard_normal((3, 5)) * 8).astype(jnp.dtype(dtype)) for dtype in DTYPES}
    return out | {
        "scalar": np.float32(2.5).reshape(()),
        "empty": np.zeros((0, 4), np.float16),
        "odd": rng.integers(0, 256, 7).astype(np.uint8),
        "名 \"quoted\"": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    }  # fmt: skip


def plan(arrays):
    return {name: Planned(a.shape, a.dtype.name, lambda a=a: a) for name, a in arrays.items()}


def same(tensors, arrays):
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        got = tensors.read(name)
        assert got.dtype == array.dtype and (tensors[name].shape, tensors[name].dtype) == (
            array.shape,
            array.dtype.name,
        )
        np.testing.assert_array_equal(got, array)


def pack(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refused(folder, match):
    with pytest.raises(ConfigError, match=match) as error:
        open_folder(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_round_trip_and_the_library_reads_ours(tmp_path):
    arrays = values()
    assert write_folder(tmp_path, plan(arrays)) == [tmp_path / SINGLE] and not (tmp_path / INDEX).exists()
    same(open_folder(tmp_path), arrays)
    theirs = load_file(tmp_path / SINGLE)
    assert set(theirs) == set(arrays)
    for name, array in arrays.items():
        assert theirs[name].dtype == array.dtype
        np.testing.assert_array_equal(theirs[name], array)
    with safe_open(tmp_path / SINGLE, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_the_library(tmp_path):
    arrays = values(1)
    save_file({name: np.array(a, order="C") for name, a in arrays.items()}, tmp_path / SINGLE)
    same(open_folder(tmp_path), arrays)


def test_tensors_are_aligned(tmp_path):
    write_folder(tmp_path, plan(values()))
    tensors = open_folder(tmp_path)
    assert all(t.offset % jnp.dtype(t.dtype).itemsize == 0 for t in tensors.values())


def test_shards_and_index(tmp_path):
    """Greedy, in order; a tensor above the size has a file of its own; the index is transformers'."""
    arrays = {"a": 100, "b": 100, "huge": 1000, "c": 50, "d": 50, "e": 101}
    arrays = {name: np.full(size, i, np.uint8) for i, (name, size) in enumerate(arrays.items())}
    files = write_folder(tmp_path, plan(arrays), shard_size=200)
    assert [file.name for file in files] == [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    index = json.loads((tmp_path / INDEX).read_text())
    shard = {name: int(file[6:11]) for name, file in index["weight_map"].items()}
    assert shard == {"a": 1, "b": 1, "huge": 2, "c": 3, "d": 3, "e": 4}
    assert index["metadata"] == {"total_size": 1401}
    same(open_folder(tmp_path), arrays)


def test_memory_is_one_tensor(tmp_path):
    size = 4 << 20
    plans = {f"w{i}": Planned((size,), "uint8", lambda i=i: np.full(size, i, np.uint8)) for i in range(6)}
    tracemalloc.start()
    write_folder(tmp_path, plans)
    tensors = open_folder(tmp_path)
    for i in range(6):
        assert tensors.read(f"w{i}")[-1] == i
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * size  # one, and the next while the last is still bound to its name


def test_shards_may_be_links(tmp_path):
    """As in the cache of the Hugging Face hub."""
    arrays = values()
    (tmp_path / "blobs").mkdir(), (tmp_path / "snapshot").mkdir()
    write_folder(tmp_path / "blobs", plan(arrays), shard_size=100)
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    same(open_folder(tmp_path / "snapshot"), arrays)


def test_what_the_index_forgets_is_still_listed(tmp_path):
    arrays = values()
    write_folder(tmp_path, plan(arrays), shard_size=100)
    index = json.loads((tmp_path / INDEX).read_text())
    del index["weight_map"]["w.bool"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    same(open_folder(tmp_path), arrays)


def test_folders_without_weights(tmp_path):
    refused(tmp_path / "none", "no such folder")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is a file")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, f"no weights; expected a folder with {SINGLE}, or {INDEX} and its shards, found nothing")
    (empty / "config.json").touch()
    (empty / "other.safetensors").touch()
    refused(empty, "found config.json, other.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "a.pth", "last.ckpt", "x.pkl"])
def test_pickles_are_refused_with_advice(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refused(tmp_path, rf"pickles \({name}\).*save_pretrained\(new_folder, safe_serialization=True\)")


GOOD = pack({"w": entry()}, bytes(8))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated or not safetensors: 0 bytes"),
        (b"\x80\x02}q\x00.", "truncated or not safetensors: 6 bytes"),
        (b"PK\x03\x04 an archive that torch.save made", "truncated or not safetensors"),
        (GOOD[:40], "truncated or not safetensors: 40 bytes, header of"),
        (GOOD[:-1], "truncated: "),
        (GOOD + b"\0", "1 bytes after the last tensor"),
        (pack(b"{]", bytes(8)), "header is not JSON"),
        (pack(b'{"w": \xff\xff}'), "header is not JSON"),
        (pack(b"[" * 100_000), "header is not JSON"),
        (pack([1, 2]), "header is not a JSON object"),
        (pack({"w": entry()}, bytes(8), length=1 << 60), "header of 1152921504606846976"),
        (pack({"w": 3}), "tensor 'w': expected dtype, shape and two data_offsets"),
        (pack({"w": entry(shape=(-2,))}, bytes(8)), "expected dtype, shape and two"),
        (pack({"w": entry(shape=(2.0,))}, bytes(8)), "expected dtype, shape and two"),
        (pack({"w": entry(shape=(True, 2))}, bytes(8)), "expected dtype, shape and two"),
        (pack({"w": entry(offsets=(0, 8, 8))}, bytes(8)), "expected dtype, shape and two"),
        (pack({"w": entry(dtype=None)}, bytes(8)), "expected dtype, shape and two"),
        (pack({"w": entry(shape=(3,))}, bytes(8)), r"F32 of shape \[3\] has 12 bytes, its data_offsets say 8"),
        (pack({"w": entry(offsets=(8, 0))}, bytes(8)), "data_offsets say -8"),
        (pack({"w": entry(shape=(1 << 62,))}, bytes(8)), "data_offsets say 8"),
        (pack({"w": entry(offsets=(4, 12))}, bytes(12)), "'w' leaves bytes before it unused"),
        (pack({"v": entry(), "w": entry(offsets=(4, 12))}, bytes(12)), "'w' overlaps the one before"),
        (pack({"v": entry(), "w": entry()}, bytes(8)), "'w' overlaps the one before"),
        (pack({"w": entry("F8_E4M3", (8,))}, bytes(8)), "dtype 'F8_E4M3', which is not supported; these are: F64, F32"),
        (pack({"w": entry("Q4", (8,))}, bytes(8)), "dtype 'Q4', which is not supported"),
        (pack(b'{"w": %b, "w": %b}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)), "a name stands twice"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path, data, message):
    (tmp_path / SINGLE).write_bytes(data)
    refused(tmp_path, message)


def test_the_smallest_good_file(tmp_path):
    """The one that the damaged ones are made of."""
    (tmp_path / SINGLE).write_bytes(GOOD)
    same(open_folder(tmp_path), {"w": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"{", "is not JSON"),
        (b"[]", "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ({"weight_map": {"w": "/etc/x.safetensors"}}, "'/etc/x.safetensors' is not the name of a .safetensors file"),
        ({"weight_map": {"w": "../a.safetensors"}}, "'../a.safetensors' is not the name"),
        ({"weight_map": {"w": "sub/a.safetensors"}}, "is not the name"),
        ({"weight_map": {"w": "..\\a.safetensors"}}, "is not the name"),
        ({"weight_map": {"w": "a.bin"}}, "'a.bin' is not the name"),
        ({"weight_map": {"w": 3}}, "shard 3 is not the name"),
        ({"weight_map": {"w": "a.safetensors", "x": "c.safetensors", "y": "d.safetensors"}},
         "shards that are not there: c.safetensors, d.safetensors"),
        ({"weight_map": {"w": "a.safetensors", "x": "a.safetensors"}}, "a.safetensors does not hold tensor 'x'"),
        ({"weight_map": {"w": "b.safetensors", "v": "a.safetensors"}},
         "b.safetensors does not hold tensor 'w'; it is in a.safetensors"),
        ({"weight_map": {"w": "a.safetensors", "v": "b.safetensors", "u": "b2.safetensors"}},
         "tensor 'v' is in both b.safetensors and b2.safetensors"),
    ],
)  # fmt: skip
def test_bad_indices(tmp_path, index, message):
    folder = tmp_path / "model"
    folder.mkdir()
    for path, name in [("a", "w"), ("b", "v"), ("b2", "v"), ("../a", "w")]:
        (folder / f"{path}.safetensors").write_bytes(pack({name: entry()}, bytes(8)))
    (folder / INDEX).write_bytes(index if isinstance(index, bytes) else json.dumps(index).encode())
    refused(folder, message)


def test_a_file_that_changes_after_it_was_opened(tmp_path):
    (tmp_path / SINGLE).write_bytes(GOOD)
    tensors = open_folder(tmp_path)
    (tmp_path / SINGLE).write_bytes(GOOD[:-2])
    with pytest.raises(ConfigError, match="has become shorter"):
        tensors.read("w")
    (tmp_path / SINGLE).unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        tensors.read("w")


def test_what_cannot_be_written(tmp_path):
    one = plan({"w": np.zeros(2, np.float32)})
    for arguments, match in [
        (({}, 1), "no tensors to write"),
        ((one, 0), "shard_size: expected a positive number of bytes, got 0"),
        (({"w": Planned((2,), "complex64", lambda: np.zeros(2, np.complex64))}, 1), "tensor w: dtype complex64"),
    ]:
        with pytest.raises(ConfigError, match=match):
            write_folder(tmp_path, arguments[0], shard_size=arguments[1])
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        write_folder(tmp_path / "none", one)
    for wrong in (np.zeros(2), np.zeros((1, 2), np.float32)):
        with pytest.raises(ValueError, match=r"tensor w: planned as \(\(2,\), 'float32'\), made as"):
            write_folder(tmp_path, {"w": Planned((2,), "float32", lambda wrong=wrong: wrong)})
