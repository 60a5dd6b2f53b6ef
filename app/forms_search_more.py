"""What a search asks beyond budget, precisions, strategy and trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import wording
from app.glossary import tip
from app.tables_signals import SIGNAL_WORDS
from qpruner_core.catalog import CRITERIA
from qpruner_core.domain.spec import SearchSpec

TIE_WORDS = {
    "layer": "Whole layers",
    "block": "Attention and MLP apart",
    "fused": "q/k/v and gate/up together",
    "linear": "Every Linear by itself",
}
OBJECTIVE_WORDS = {"loss": "Loss", "accuracy": "Accuracy"}
COST_WORDS = {
    "weight_bytes": "Packed weights",
    "training_memory": "Memory of fine-tuning",
    "latency": "Latency per token",
}
JOINT_WORDS = {
    "none": "As the run is pruned",
    "global": "One ratio for the model",
    "per-layer": "Every layer its own",
}
RATIO_STEPS = tuple(range(0, 85, 5))
"""Pruning ratios that are offered; percent."""


def fields(spec: SearchSpec, key: str, own_ratio: float) -> dict[str, Any]:
    """Draw the fields and return name -> value, to be put into a `SearchSpec`.

    Args:
        spec: As the run is asked for now.
        key: Start of the fields' keys.
        own_ratio: Pruning ratio of the run; in [0, 1).
    """
    made: dict[str, Any] = {
        "tie": _choice("Share one precision", TIE_WORDS, spec.tie, tip("tie"), f"{key}/tie"),
        "objective": _choice(
            "Weigh", OBJECTIVE_WORDS, spec.objective, tip("objective"), f"{key}/objective"
        ),
        "cost": _choice("Against", COST_WORDS, spec.cost, tip("cost"), f"{key}/cost"),
        "signal": _choice("Predict by", SIGNAL_WORDS, spec.signal, tip("signal"), f"{key}/signal"),
        "information": _choice(
            "QPruner-2 goes by",
            _layer_signals(),
            spec.information,
            tip("information"),
            f"{key}/information",
        ),
    }
    left, right = st.columns(2)
    made["patience"] = int(
        left.number_input(
            "Patience", 0, 10_000, spec.patience, help=tip("patience"), key=f"{key}/wait"
        )
    )
    made["rungs"] = int(
        right.number_input("Rungs", 1, 6, spec.rungs, help=tip("rungs"), key=f"{key}/rungs")
    )
    made["recover_steps"] = int(
        st.number_input(
            "Recovery steps in each trial",
            0,
            1_000_000,
            spec.recover_steps,
            help=tip("recover_steps"),
            key=f"{key}/recover_steps",
        )
    )
    made["signal_tokens"] = int(
        st.number_input(
            "Tokens for sensitivities, 0 for as many as needed",
            0,
            10_000_000,
            spec.signal_tokens,
            help=tip("signal_tokens"),
            key=f"{key}/signal_tokens",
        )
    )
    return made | _joint(spec, key, own_ratio)


def _choice(label: str, words: Mapping[str, str], now: str, help_text: str, key: str) -> str:
    known = list(words)
    return str(
        st.selectbox(
            label,
            known,
            known.index(now),
            format_func=words.__getitem__,
            help=help_text,
            key=key,
        )
    )


def _layer_signals() -> dict[str, str]:
    """Return the signals of whole layers that QPruner-2 can go by, with their titles."""
    return {entry.name: entry.title for entry in CRITERIA if entry.facts["scores"] == "layers"}


def _joint(spec: SearchSpec, key: str, own_ratio: float) -> dict[str, Any]:
    """Ask whether pruning ratios are searched with the precisions, and which."""
    joint = _choice("Pruning ratio", JOINT_WORDS, spec.joint, tip("joint"), f"{key}/joint")
    if joint == "none":
        return {"joint": joint, "ratios": ()}
    offered = {step / 100 for step in RATIO_STEPS} | set(spec.ratios)
    others = sorted(ratio for ratio in offered if abs(ratio - own_ratio) > 1e-9)
    nearest = sorted(others, key=lambda ratio: (abs(ratio - own_ratio - 0.1), ratio))[:1]
    chosen = st.multiselect(
        f"Ratios beside {wording.percent(own_ratio, 0)}",
        others,
        list(spec.ratios) or nearest,
        format_func=lambda ratio: wording.percent(ratio, 0),
        help=tip("ratios"),
        key=f"{key}/ratios",
    )
    return {"joint": joint, "ratios": tuple(sorted(chosen))}
