"""transformers loads what we write, and its logits are the recorded ones (extra ``torch``, with transformers)."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import jaxlm
from tests.interop.architectures import CASES, generates
from tests.interop.test_families import DATA, TOLERANCE, loaded, recorded

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("from_model_alone", [False, True], ids=["as imported", "from the model alone"])
def test_export(name, from_model_alone, tmp_path):
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, params = loaded(name)
    kind = json.loads((DATA / name / "config.json").read_text())["model_type"]
    jaxlm.save_hf(jaxlm.LanguageModel(model.spec) if from_model_alone else model, params, tmp_path / "out", family=kind)
    # Falcon's eager path adds ALiBi twice (transformers 5.23).
    path = "sdpa" if name == "falcon_alibi" else "eager"
    kind = transformers.AutoModelForCausalLM if generates(name) else transformers.AutoModelForMaskedLM
    theirs, report = kind.from_pretrained(tmp_path / "out", attn_implementation=path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    expected, cache = recorded(name), {"use_cache": False} if generates(name) else {}
    with torch.no_grad():
        logits = theirs.float().eval()(torch.from_numpy(expected["input_ids"]).long(), **cache).logits
    np.testing.assert_allclose(logits.numpy(), expected["logits"], rtol=0, atol=TOLERANCE)
