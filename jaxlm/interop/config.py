"""A config.json as families read it: look-ups that check types, name what is wrong and remember what was looked at."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxlm.core.errors import ConfigError, shown

REQUIRED = object()

# Keys that change nothing about the network: training, sampling, bookkeeping, and choices among equal implementations.
HARMLESS = frozenset(
    """_name_or_path architectures model_type transformers_version dtype torch_dtype use_cache is_decoder id2label
    label2id bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id
    initializer_range initializer_factor init_std auto_map attn_implementation _attn_implementation
    _attn_implementation_internal return_dict output_attentions output_hidden_states pretraining_tp
    attention_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob resid_pdrop embd_pdrop attn_pdrop
    attn_dropout embed_dropout embed_pdrop resid_dropout residual_dropout embedding_dropout classifier_dropout
    activation_dropout dropout layerdrop cls_dropout head_pdrop ffn_pdrop
    gradient_checkpointing router_aux_loss_coef output_router_logits router_jitter_noise task_specific_params
    summary_type summary_use_proj summary_activation summary_first_dropout summary_proj_to_labels
    summary_activation_function finetuning_task problem_type tokenizer_class prefix torchscript use_bfloat16
    chunk_size_feed_forward is_encoder_decoder cache_implementation cross_attention_hidden_size add_cross_attention
    scale_attention_softmax_in_fp32 attention_softmax_in_fp32 slow_but_exact torch_compile use_mems
    initial_context_length transformers.js_config unsloth_version quantization_version name_or_path
    emb_pdrop init_device
    max_window_layers sliding_window_pattern _sliding_window_pattern no_rope_layer_interval""".split()
)  # those of the last line are shorthands for lists, and read where the list is absent


class Config(Mapping[str, Any]):
    """The settings of a checkpoint folder.

    A key whose value is null counts as absent, unless a look-up says what null means. Every method that reads a key
    raises `ConfigError` naming it if it is absent without a default, or of another type.
    """

    def __init__(self, data: Mapping[str, Any]):
        self._data = {key: value for key, value in data.items() if value is not None}
        self._nulls = {key for key, value in data.items() if value is None}
        self._read: set[str] = set()

    @classmethod
    def from_folder(cls, folder: Path) -> Config:
        """config.json of a folder. Raises `ConfigError` if it is not there or is not a JSON object."""
        path = folder / "config.json"
        if not path.is_file():
            raise ConfigError(f"{folder} has no config.json; expected a Hugging Face checkpoint folder")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{path}: expected a JSON object, got {type(data).__name__} {shown(data)}")
        return cls(data)

    def __getitem__(self, key: str) -> Any:
        self._read.add(key)
        return self._data[key]

    def __iter__(self):
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def look_up(
        self, names: str | tuple[str, ...], kind: type | tuple[type, ...], default: Any = REQUIRED, null: Any = REQUIRED
    ) -> Any:
        """The value under the first of ``names`` that is there, of type ``kind`` (an int passes for a float).

        ``null`` is what an explicit null stands for; by default it stands for the default.
        """
        names = (names,) if isinstance(names, str) else names
        kinds = kind if isinstance(kind, tuple) else (kind,)
        for name in names:
            if name in self._data:
                value = self[name]
                self._read.update(other for other in names if self._data.get(other) == value)  # said twice
                if float in kinds and isinstance(value, int) and not isinstance(value, bool):
                    value = float(value)
                if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                    expected = " or ".join(k.__name__ for k in kinds)
                    raise ConfigError(f"config.json: {name} should be {expected}, got {shown(value)}")
                return value
        if null is not REQUIRED and self._nulls & set(names):
            return null
        if default is REQUIRED:
            raise ConfigError(f"config.json has no {' or '.join(names)}, which this architecture needs")
        return default

    def integer(self, *names: str, default: Any = REQUIRED) -> Any:
        return self.look_up(names, int, default)

    def number(self, *names: str, default: Any = REQUIRED) -> Any:
        return self.look_up(names, float, default)

    def flag(self, *names: str, default: Any = REQUIRED) -> Any:
        return self.look_up(names, bool, default)

    def text(self, *names: str, default: Any = REQUIRED) -> Any:
        return self.look_up(names, str, default)

    def sequence(self, *names: str, default: Any = REQUIRED) -> Any:
        return self.look_up(names, list, default)

    def section(self, *names: str, default: Any = REQUIRED) -> Any:
        """A nested object, as a plain dict."""
        return self.look_up(names, dict, default)

    def only(self, key: str, allowed: Collection[Any], why: str) -> None:
        """Raises `ConfigError` naming ``key`` and ``why`` unless it is absent or one of ``allowed``."""
        if key in self._data and self[key] not in allowed:
            options = " or ".join(shown(value) for value in allowed)
            raise ConfigError(f"config.json: {key} = {shown(self[key])} is not supported ({why}); allowed: {options}")

    def unread(self) -> list[str]:
        """Keys nobody looked at that might matter, sorted."""
        return sorted(set(self._data) - self._read - HARMLESS)
