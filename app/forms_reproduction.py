"""Widgets in, domain values out, for what the paper's table asks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import streamlit as st

from app import services, tables_reproduction, wording
from app.glossary import tip
from qpruner_core.catalog import INITIALIZATIONS, OPTIMIZERS
from qpruner_core.domain.footprint import dense_bytes
from qpruner_core.domain.record import RunRecord
from qpruner_core.domain.recovery import PRESETS, RecoverySpec
from qpruner_core.domain.reproduction import (
    SETTINGS,
    VARIANTS,
    ReproductionSpec,
    usual_recover_steps,
    usual_recovery,
    usual_startup,
)
from qpruner_core.domain.spec import DataSpec
from qpruner_core.errors import QPrunerError
from qpruner_core.inspection import demo_folder
from qpruner_core.store.home import check_allowed

SETTING_WORDS = {
    "paper": (
        "As the paper says",
        "Taylor pruning; nf4 or int8 for whole layers by mutual information, refined by a "
        "Gaussian process.",
    ),
    "script": (
        "As its script does it",
        "The first and last layers stay at 16 bit and 8-bit layers hold 16-bit weights in "
        "memory, so that less is saved.",
    ),
    "ours": (
        "As this studio does it",
        "Its own defaults for pruning, precisions, search and recovery, within the same memory "
        "budget.",
    ),
}
"""Setting -> its title, and one sentence."""
RATIO_STEPS = tuple(range(0, 85, 5))
"""Pruning ratios that are offered; percent."""
TABLE, SUITED, OWN = "table", "suited", "own"
PRESET_WORDS = {
    TABLE: "As in the table",
    SUITED: "As suits the model",
    OWN: "As this run is asked for",
    "usual": "Usual",
    "paper": "The paper's",
    "low memory": "Low memory",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the form asks for."""

    spec: ReproductionSpec
    task_names: tuple[str, ...]
    """As in `DataSpec.task_names`."""


def reproduction_form(record: RunRecord) -> Asked | None:
    """Ask for setting, ratios, tasks, search and recovery; None where they do not go together,
    with the reason drawn.
    """
    made = record.reproduction.spec if record.reproduction is not None else None
    known = made or ReproductionSpec()
    key = f"reproduce/{record.run_id}"
    setting = _setting(known.setting, key)
    ratios = _ratios(known.ratios, key)
    tasks = _tasks(record.spec.data, key)
    recovery = _recovery(record, made, key)
    trials, share = _trials_and_share(known, key)
    more = _more(known, _suited(made, setting, recovery, trials), key)
    try:
        spec = ReproductionSpec(
            setting=setting,
            ratios=ratios,
            # One seed of everything random, as on the command line.
            recovery=replace(recovery, seed=more["seed"]),
            n_trials=trials,
            int8_share=share,
            **more,
        )
        spec.check_startup()
    except QPrunerError as error:
        st.error(str(error), icon=":material/error:")
        return None
    return Asked(spec=spec, task_names=tasks)


def workload(record: RunRecord, spec: ReproductionSpec) -> str:
    """Return how much work a table is, in a sentence or two."""
    n_ratios, n_rows = len(spec.ratios), len(spec.ratios) * len(VARIANTS)
    shared = f" ({spec.n_trials} at each of {n_ratios} ratios)" if n_ratios > 1 else ""
    words = (
        f"{n_rows} rows are trained for {spec.recovery.steps:,} steps each, after "
        f"{n_ratios * spec.n_trials:,} plans were tried{shared}"
    )
    words += f", each trained for {spec.recover_steps} steps." if spec.recover_steps else "."
    each = [t.metrics.seconds for t in services.trials(record) if t.metrics is not None]
    if not each or spec.recover_steps or not median(each):
        return words
    tried = wording.seconds(n_ratios * spec.n_trials * median(each))
    return (
        f"{words} A plan of this run took {wording.seconds(median(each))} to measure, so trying "
        f"them takes about {tried} (estimated); training comes on top."
    )


def recovery_words(spec: RecoverySpec) -> str:
    """Return how rows are trained, in one sentence."""
    at_once = f", {spec.micro_batch_size} at a time" if spec.micro_batch_size else ""
    saving = ", with gradient checkpointing" if spec.gradient_checkpointing else ""
    return (
        f"{spec.steps:,} steps of {spec.batch_size} sequences of {spec.sequence_length} "
        f"tokens{at_once}{saving}; LoRA rank {spec.rank}, alpha {spec.alpha:g}, learning rate "
        f"{spec.learning_rate:g}; optimiser: {OPTIMIZERS.entry(spec.optimizer).title}; start: "
        f"{INITIALIZATIONS.entry(spec.initialization).title}."
    )


def task_choices(data: DataSpec) -> list[str]:
    """Return the tasks that a run's source holds, by name; empty where it has none or cannot be
    read.
    """
    if data.tasks == "none":
        return []
    try:
        own = data.tasks != "demo"
        folder = check_allowed(Path(data.tasks)) if own else demo_folder() / "data" / "tasks"
    except QPrunerError:
        return sorted(data.task_names)
    return sorted(path.stem for path in folder.glob("*.jsonl"))


def _setting(known: str, key: str) -> str:
    return str(
        st.radio(
            "Setting",
            SETTINGS,
            SETTINGS.index(known),
            format_func=lambda name: SETTING_WORDS[name][0],
            captions=[SETTING_WORDS[name][1] for name in SETTINGS],
            help=tip("table_setting"),
            key=f"{key}/setting",
        )
    )


def _ratios(known: tuple[float, ...], key: str) -> tuple[float, ...]:
    offered = sorted({step / 100 for step in RATIO_STEPS} | set(known))
    chosen = st.multiselect(
        "Pruning ratios",
        offered,
        list(known),
        format_func=tables_reproduction.ratio_words,
        help=tip("table_ratios"),
        key=f"{key}/ratios",
    )
    return tuple(sorted(chosen))


def _tasks(data: DataSpec, key: str) -> tuple[str, ...]:
    """Ask which tasks are answered; all of them is the empty tuple, as in `DataSpec`."""
    names = task_choices(data)
    if not names:
        if data.tasks == "none":
            st.caption("This run has no tasks: its rows are held against each other by the loss.")
        return data.task_names
    known = [name for name in data.task_names if name in names] or names
    chosen = st.multiselect(
        "Tasks of the table", names, known, help=tip("table_tasks"), key=f"{key}/tasks"
    )
    return () if len(chosen) == len(names) or not chosen else tuple(sorted(chosen))


def _recovery(record: RunRecord, known: ReproductionSpec | None, key: str) -> RecoverySpec:
    """Ask how rows are trained: a preset, and how many steps of it."""
    presets = _presets(record, known)
    left, right = st.columns(2)
    preset = str(
        left.selectbox(
            "Recovery of every row",
            list(presets),
            format_func=lambda name: PRESET_WORDS.get(name, name),
            help=tip("table_recovery"),
            key=f"{key}/preset",
        )
    )
    steps = right.number_input(
        "Steps of recovery",
        0,
        1_000_000,
        presets[preset].steps,
        help=tip("recovery_steps"),
        key=f"{key}/steps/{preset}",
    )
    made = replace(presets[preset], steps=int(steps), trial=None)
    st.caption(recovery_words(made))
    return made


def _presets(record: RunRecord, known: ReproductionSpec | None) -> dict[str, RecoverySpec]:
    """Return what rows can be trained by, what is likely wanted first; the text is the run's."""
    card = record.load or services.model_card(record.spec.model)
    found = {SUITED: usual_recovery(dense_bytes(card.layout)), OWN: record.spec.recovery}
    if known is not None:
        found = {TABLE: known.recovery, **found}
    training = record.spec.recovery.training
    return {name: replace(spec, training=training) for name, spec in {**found, **PRESETS}.items()}


def _trials_and_share(known: ReproductionSpec, key: str) -> tuple[int, float]:
    """Ask how many plans are tried, and what their budget pays for."""
    left, right = st.columns(2)
    trials = left.number_input(
        "Plans tried at every ratio",
        1,
        10_000,
        known.n_trials,
        help=tip("table_trials"),
        key=f"{key}/trials",
    )
    share = right.slider(
        "Budget, % of the way to int8",
        0,
        100,
        round(100 * known.int8_share),
        help=tip("table_share"),
        key=f"{key}/share",
    )
    return int(trials), share / 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Suited:
    """With what the fields start that depend on others."""

    n_startup: int | None
    """None where the setting has no first plans."""
    n_trials: int
    recover_steps: int


def _suited(
    made: ReproductionSpec | None, setting: str, recovery: RecoverySpec, n_trials: int
) -> _Suited:
    """Return what suits the choices: what the table has where they are its own."""
    startup, steps = usual_startup(n_trials), usual_recover_steps(setting, recovery)
    if made is not None and made.n_trials == n_trials:
        startup = min(made.n_startup, n_trials - 1)
    if made is not None and (made.setting, made.recovery) == (setting, recovery):
        steps = made.recover_steps
    has_startup = ReproductionSpec(setting=setting).has_startup
    return _Suited(
        n_startup=startup if has_startup else None, n_trials=n_trials, recover_steps=steps
    )


def _more(known: ReproductionSpec, suited: _Suited, key: str) -> dict[str, int]:
    """Ask for what is seldom changed; name -> value of the spec.

    Args:
        known: The table that there is, or the usual one.
        suited: With what the fields start that depend on others.
        key: Start of the fields' keys.
    """
    with st.expander("More settings of the table"):
        left, right = st.columns(2)
        startup = known.n_startup
        if suited.n_startup is not None:
            startup = left.number_input(
                "Plans before the model chooses",
                0,
                suited.n_trials - 1,
                suited.n_startup,
                help=tip("table_startup"),
                key=f"{key}/startup/{suited.n_trials}",
            )
        within = right.number_input(
            "Recovery steps in each trial",
            0,
            100_000,
            suited.recover_steps,
            help=tip("table_trial_steps"),
            key=f"{key}/within/{suited.recover_steps}",
        )
        items = left.number_input(
            "Items per task of a row, 0 for all",
            0,
            None,
            known.items_per_task,
            help=tip("items_per_task"),
            key=f"{key}/items",
        )
        seed = right.number_input(
            "Seed", 0, 2**31 - 1, known.seed, help=tip("seed"), key=f"{key}/seed"
        )
    return {
        "n_startup": int(startup),
        "recover_steps": int(within),
        "items_per_task": int(items),
        "seed": int(seed),
    }
