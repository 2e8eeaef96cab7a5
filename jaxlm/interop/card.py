"""The model card of an exported checkpoint."""

from __future__ import annotations

from pathlib import Path

from jaxlm.interop.family import Family
from jaxlm.model.describe import parameter_count
from jaxlm.model.language_model import Model

CARD = "README.md"

TEXT = """\
---
library_name: transformers
pipeline_tag: {task}
tags:
- jaxlm
---

# {name}

A {family} model of {parameters:,} parameters ({blocks} layers of width {width}, {vocabulary:,} tokens), exported by
jaxlm.

```python
from transformers import {auto}
model = {auto}.from_pretrained("{name}")
```

```python
import jaxlm
model, params = jaxlm.load_hf("{name}")
```

Architecture: {paper}.
"""


def write_card(path: Path, model: Model, family: Family, origin: Path | None) -> None:
    """Writes what the folder holds and how to load it, above the card the model came with, if it came with one."""
    forms = {
        "ForMaskedLM": ("fill-mask", "MaskedLM"),
        "ForConditionalGeneration": ("text2text-generation", "Seq2SeqLM"),
    }
    ours = (form for end, form in forms.items() if family.architectures[0].endswith(end))
    task, auto = next(ours, ("text-generation", "CausalLM"))
    stacks = model.pure.stacks.values()
    text = TEXT.format(
        task=task,
        auto=f"AutoModelFor{auto}",
        name=origin.name if origin is not None else f"{family.model_type} model",
        family=family.model_type,
        parameters=parameter_count(model),
        blocks=sum(spec.depth for spec in stacks),
        width=model.pure.writer.width,
        vocabulary=model.pure.writer.vocab_size,
        paper=family.paper,
    )
    if origin is not None and (origin / CARD).is_file():
        text += (
            f"\n## The card of the imported model\n\n{(origin / CARD).read_text(encoding='utf-8', errors='replace')}"
        )
    path.write_text(text, encoding="utf-8")
