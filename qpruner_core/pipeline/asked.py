"""What a spec asks for, as words of the command line: a card says how to make its model again."""

from __future__ import annotations

import shlex
from dataclasses import replace

from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.spec import RunSpec, SearchSpec

_NOT_LAYER_BY_LAYER = (
    "--model",
    "--tasks",
    "--heldout-tokens",
    "--items-per-task",
    "--criteria",
    "--objective",
    "--cost",
    "--signal",
    "--information",
    "--strategy",
    "--strategy-option",
    "--trials",
    "--patience",
    "--rungs",
    "--signal-tokens",
    "--recover-steps",
    "--joint",
    "--joint-ratios",
    "--layer-precision",
    "--task-names",
    "--format",
    "--merge-adapter",
    "--merge-tolerance",
)
"""Options that have no say layer by layer, or are asked in another way. The texts of other uses
have one: a source that several name is divided among them."""
_OF_A_BUDGET = ("--memory-budget", "--precisions", "--tie")


def _of_the_search(spec: SearchSpec) -> dict[str, tuple[object, object]]:
    """Return the options of a search beside budget and precisions, with their usual values."""
    usual = SearchSpec()
    return {
        "--objective": (spec.objective, usual.objective),
        "--cost": (spec.cost, usual.cost),
        "--signal": (spec.signal, usual.signal),
        "--information": (spec.information, usual.information),
        "--strategy": (spec.strategy, usual.strategy),
        "--trials": (spec.n_trials, None),
        "--patience": (spec.patience, usual.patience),
        "--rungs": (spec.rungs, usual.rungs),
        "--signal-tokens": (spec.signal_tokens, usual.signal_tokens),
        "--recover-steps": (spec.recover_steps, usual.recover_steps),
        "--joint": (spec.joint, usual.joint),
        "--joint-ratios": (",".join(map(str, spec.ratios)), ""),
    }


def recovery_options_of(spec: RecoverySpec) -> list[str]:
    """Return the options that ask for a recovery, default settings left out.

    Its seed is that of all steps, and the number of a plan belongs to one command.
    """
    usual = RecoverySpec()
    options = {
        "--recovery-training": (spec.training, usual.training),
        "--recovery-length": (spec.sequence_length, usual.sequence_length),
        "--batch-size": (spec.batch_size, usual.batch_size),
        "--lora-rank": (spec.rank, usual.rank),
        "--lora-alpha": (spec.alpha, usual.alpha),
        "--lora-dropout": (spec.dropout, usual.dropout),
        "--targets": (",".join(spec.targets), ""),
        "--initialization": (spec.initialization, usual.initialization),
        "--recovery-steps": (spec.steps, usual.steps),
        "--learning-rate": (spec.learning_rate, usual.learning_rate),
        "--schedule": (spec.schedule, usual.schedule),
        "--warm-up": (spec.warm_up, usual.warm_up),
        "--optimizer": (spec.optimizer, usual.optimizer),
        "--weight-decay": (spec.weight_decay, usual.weight_decay),
        "--micro-batch-size": (spec.micro_batch_size, usual.micro_batch_size),
        "--checkpoint-steps": (spec.checkpoint_steps, usual.checkpoint_steps),
    }
    switches = {
        "packing": (spec.packing, usual.packing),
        "train-on-prompt": (spec.train_on_prompt, usual.train_on_prompt),
        "gradient-checkpointing": (spec.gradient_checkpointing, usual.gradient_checkpointing),
    }
    words = [f"{option}={value}" for option, (value, known) in options.items() if value != known]
    words += [f"--layer-rank={layer}={rank}" for layer, rank in spec.layer_ranks.items()]
    words += [
        f"--initialization-option={name}={value}"
        for name, value in spec.initialization_options.items()
    ]
    return words + [
        f"--{name}" if value else f"--no-{name}"
        for name, (value, known) in switches.items()
        if value != known
    ]


def options_of(spec: RunSpec) -> list[str]:
    """Return the options of ``qpruner run`` that ask for a spec, default settings left out."""
    default = RunSpec(model=spec.model)
    options = {
        "--model": (spec.model.source, None),
        "--revision": (spec.model.revision, None),
        "--calibration": (spec.data.calibration, default.data.calibration),
        "--heldout": (spec.data.heldout, default.data.heldout),
        "--training": (spec.data.training, default.data.training),
        "--tasks": (spec.data.tasks, default.data.tasks),
        "--sequence-length": (spec.data.sequence_length, default.data.sequence_length),
        "--calibration-tokens": (spec.data.calibration_tokens, default.data.calibration_tokens),
        "--heldout-tokens": (spec.data.heldout_tokens, default.data.heldout_tokens),
        "--items-per-task": (spec.data.items_per_task, default.data.items_per_task),
        "--task-names": (",".join(spec.data.task_names), ""),
        "--criteria": (
            ",".join(spec.importance.criteria),
            ",".join(default.importance.criteria),
        ),
        "--pruning-ratio": (spec.pruning.ratio, None),
        "--criterion": (spec.pruning.criterion, default.pruning.criterion),
        "--scope": (spec.pruning.scope, default.pruning.scope),
        "--shape": (spec.pruning.shape, default.pruning.shape),
        "--pruning-kinds": (",".join(spec.pruning.kinds), ",".join(default.pruning.kinds)),
        "--drop-layers": (spec.pruning.drop_layers, default.pruning.drop_layers),
        "--pruning-iterations": (spec.pruning.iterations, default.pruning.iterations),
        "--compensation": (spec.pruning.compensation, default.pruning.compensation),
        "--protect-first": (spec.pruning.protect_first, None),
        "--protect-last": (spec.pruning.protect_last, None),
        "--width-multiple": (spec.pruning.width_multiple, default.pruning.width_multiple),
        "--memory-budget": (spec.search.memory_budget, None),
        "--precisions": (",".join(spec.search.precisions), ",".join(default.search.precisions)),
        "--tie": (spec.search.tie, default.search.tie),
        **_of_the_search(spec.search),
        "--format": (spec.export.format, default.export.format),
        "--seed": (spec.search.seed, None),
    }
    words = [
        f"{option}={value}"
        for option, (value, usual) in options.items()
        if value is not None and value != usual
    ]
    words += [
        f"--layer-ratio={layer}={ratio}" for layer, ratio in spec.pruning.layer_ratios.items()
    ]
    words += [f"--layer-precision={layer}={name}" for layer, name in spec.search.fixed.items()]
    words += [
        f"--criterion-option={criterion}.{name}={value}"
        for criterion, options in spec.importance.options.items()
        for name, value in options.items()
    ]
    words += [f"--strategy-option={name}={value}" for name, value in spec.search.options.items()]
    words += recovery_options_of(spec.recovery)
    if spec.export.merge_adapter:
        words += ["--merge-adapter", f"--merge-tolerance={spec.export.merge_tolerance}"]
    return [*words, "--trust-remote-code"] if spec.model.trust_remote_code else words


def compress_command(spec: RunSpec) -> str:
    """Return the command line that compresses layer by layer what a spec asks for."""
    precision = spec.search.precisions
    left_out: tuple[str, ...] = _NOT_LAYER_BY_LAYER
    chosen: list[str] = []
    if spec.export.format == "hf_16bit":
        precision = ("bf16",)
    if len(precision) == 1:
        left_out, chosen = (*left_out, *_OF_A_BUDGET), [f"--precision={precision[0]}"]
    # Of all seeds only that of the scores has a say: there is no search and no training.
    search = replace(spec.search, seed=spec.importance.seed)
    asked = replace(spec, search=search, recovery=RecoverySpec())
    kept = [word for word in options_of(asked) if word.partition("=")[0] not in left_out]
    return shlex.join(["qpruner", "compress", spec.model.source, *kept, *chosen, "--out=FOLDER"])
