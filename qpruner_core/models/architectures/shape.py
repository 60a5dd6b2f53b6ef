"""The numbers of a config that decide shapes, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qpruner_core.domain.layout import BIASES_KEY, WIDTHS_KEY
from qpruner_core.errors import UnsupportedModelError

KEYS: Mapping[str, str] = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
    "vocab": "vocab_size",
}
"""What we call a number -> what most configs call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a config that decide tensor shapes, defaults filled in."""

    config: Mapping[str, Any]
    """The whole config with the family's defaults."""
    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    tied: bool
    widths: Mapping[str, int]
    """Group name -> units, where the config states a width of its own."""
    biases: frozenset[str]
    """Linears with a bias that the stock class does not build."""

    @property
    def query_rows(self) -> int:
        """Rows of the query projection that one KV head takes with it."""
        return self.heads // self.kv_heads * self.head_dim

    def units(self, group: str, dense: int) -> int:
        """Units of a group: its own width where the config states one."""
        return self.widths.get(group, dense)


def read_shape(
    config: Mapping[str, Any], keys: Mapping[str, str], defaults: Mapping[str, Mapping[str, Any]]
) -> Shape:
    """Read and check the numbers of a config; keys it leaves out get the family's default.

    Args:
        config: As in `config.json`.
        keys: What we call a number -> what the config calls it.
        defaults: ``model_type`` -> what `transformers` assumes for a key that is not stated.

    Raises:
        UnsupportedModelError: A number is missing, no count, or does not fit the others.
    """
    family = str(config.get("model_type"))
    filled = {**defaults.get(family, {}), **config}
    number = {
        name: positive(filled, keys[name])
        for name in ("hidden", "layers", "heads", "mlp", "vocab")
    }
    heads = number["heads"]
    kv_key, dim_key = keys["kv_heads"], keys["head_dim"]
    kv_heads = heads if filled.get(kv_key) is None else positive(filled, kv_key)
    if heads % kv_heads:
        raise UnsupportedModelError(
            f"The config states {heads} query heads and {kv_heads} KV heads, which do not "
            "divide them. Every KV head must serve the same number of query heads; correct "
            "config.json."
        )
    head_dim = (
        number["hidden"] // heads if filled.get(dim_key) is None else positive(filled, dim_key)
    )
    return Shape(
        config=filled,
        model_type=family,
        kv_heads=kv_heads,
        head_dim=head_dim,
        tied=bool(filled.get("tie_word_embeddings", False)),
        widths=_stated_widths(config),
        biases=_stated_biases(config),
        **number,
    )


def positive(config: Mapping[str, Any], key: str) -> int:
    """Return a number of a config.

    Raises:
        UnsupportedModelError: It is missing, no whole number, or below 1.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnsupportedModelError(
            f"The config states {key} as {value!r}, but a whole number of 1 or more is needed. "
            "Check that config.json belongs to this model and is complete."
        )
    return value


def _stated_widths(config: Mapping[str, Any]) -> dict[str, int]:
    stated = config.get(WIDTHS_KEY) or {}
    if not isinstance(stated, Mapping):
        raise UnsupportedModelError(
            f"The config key {WIDTHS_KEY!r} holds a {type(stated).__name__}, but a table of group "
            "name -> units is needed. Export the model again."
        )
    return {name: positive(stated, name) for name in stated}


def _stated_biases(config: Mapping[str, Any]) -> frozenset[str]:
    stated = config.get(BIASES_KEY) or []
    if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
        raise UnsupportedModelError(
            f"The config key {BIASES_KEY!r} holds {stated!r}, but a list of names of Linears is "
            "needed. Export the model again."
        )
    return frozenset(stated)
