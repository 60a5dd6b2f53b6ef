"""What a reader of the paper's table has to know beside its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from qpruner_core.domain.paired import LEVEL
from qpruner_core.domain.recovery import RecoverySpec
from qpruner_core.domain.reproduction import VARIANTS, Reproduction, ratio_words
from qpruner_core.domain.reproduction_lines import (
    CLAIMED_SAVING,
    REFERENCE,
    SUBJECT,
    lines,
    task_names,
    weights_words,
)

ON_CPU = (
    "Training memory measured on the CPU is that of all tensors alive at a time in a forward and "
    "backward pass, temporary ones too; what an operation or the optimiser's step takes for "
    "itself, and what an allocator adds, is not counted."
)
HELD_ON_CPU = (
    "Training memory measured on the CPU is that of all tensors held at the end of a forward pass "
    "or of computing a layer again; temporary ones, such as the gradient of the logits or a "
    "dequantised weight, are not counted, so that it stays below the estimate, and its savings "
    "may differ from those of a card."
)
"""Said of rows that count no temporary tensors."""


def notes(table: Reproduction) -> tuple[str, ...]:
    """Return what a reader has to know beside the numbers, a sentence or two each."""
    found = [*_made(table), *_read(table), *_savings(table)]
    if table.spec.setting == "script":
        found.append(
            "As in the public script, the first and last layers of every QPruner row stay at "
            "16 bit, and 8-bit layers hold 16-bit weights; memory is counted as it is held."
        )
    if not table.is_complete:
        found.append(f"{len(table.rows)} of {table.n_rows} rows are measured so far.")
    return (*found, *table.remarks)


def _devices(table: Reproduction) -> tuple[str, ...]:
    return tuple(dict.fromkeys(line.metrics.device for line in lines(table)))


def _made(table: Reproduction) -> Iterator[str]:
    """Say what was done."""
    spec, devices = table.spec, _devices(table)
    where = f", on {', '.join(devices)}" if devices else ""
    begun = f", begun {table.begun_at[:10]}" if table.begun_at else ""
    version = f" with QPruner Studio {table.version}" if table.version else ""
    yield f"{table.model or 'The model'} in the setting {spec.setting}{version}{begun}{where}."
    trained = f", each recovered for {spec.recover_steps} steps" if spec.recover_steps else ""
    first = (
        f" (startup: the Gaussian process does not choose the first {spec.n_startup})"
        if spec.has_startup
        else ""
    )
    yield (
        f"Search: {spec.n_trials} trials a ratio{first}{trained}; {SUBJECT} and {VARIANTS[2]} "
        f"share a memory budget of nf4 everywhere and {100.0 * spec.int8_share:g} % of the way to "
        f"int8; seed {spec.seed}."
    )
    if spec.setting == "ours" or not task_names(table):
        yield (
            f"{SUBJECT} was chosen by the loss on the text that the rows' losses are measured on, "
            f"so that its loss leans towards that text (selection)."
        )
    else:
        yield (
            f"{SUBJECT} was chosen by the accuracy of its trials on items that are among those "
            f"that judge the rows, so that its accuracy leans towards these items (selection); "
            f"the test does not correct for that."
        )
    yield f"Recovery: {_recovery_words(spec.recovery)}."


def _read(table: Reproduction) -> Iterator[str]:
    """Say what the columns are."""
    has_tasks = bool(task_names(table))
    if has_tasks:
        yield (
            "Accuracies are percent with one standard error, by the rule acc of "
            "lm-evaluation-harness: the right choice has the largest summed log-likelihood; "
            "acc_norm, per character of the choice, stands in the CSV and JSON forms."
        )
    yield (
        "Training memory is measured (estimated in brackets); savings are those of the measured "
        f"training memory against {REFERENCE} at the same ratio (of the estimated in brackets)."
    )
    on_cpu = [row for row in table.rows if row.recovery.after.device == "cpu"]
    for counts, words in ((True, ON_CPU), (False, HELD_ON_CPU)):
        if any(row.counts_temporaries == counts for row in on_cpu):
            yield words
    yield (
        f"Inference is the {weights_words(table)} weights and the adapter as it is stored, in "
        f"float32; the dense model has 16-bit weights and no adapter."
    )
    if has_tasks:
        yield (
            f"The last column is the mean accuracy of {SUBJECT} minus that of the row, in points; "
            f"the p-value is that of the exact McNemar test over all items together, where tasks "
            f"of more items weigh more; * marks p < {LEVEL:g} where both point the same way."
        )


def _savings(table: Reproduction) -> Iterator[str]:
    """Say of every ratio whether the saving is what the paper claims."""
    for line in lines(table):
        if line.variant != SUBJECT or line.saving is None:
            continue
        words = f"{100.0 * abs(line.saving):.1f} %"
        took = f"saves {words}" if line.saving >= 0.0 else f"takes {words} more"
        held = "as" if line.saving >= CLAIMED_SAVING else "which is not what"
        yield (
            f"At a pruning ratio of {ratio_words(line.ratio)}, {SUBJECT} {took} of the training "
            f"memory of {REFERENCE}, {held} the paper claims (at least "
            f"{100.0 * CLAIMED_SAVING:g} %)."
        )


def _recovery_words(spec: RecoverySpec) -> str:
    if spec.steps == 0:
        return "none"
    pieces = f" in micro-batches of {spec.micro_batch_size}" if spec.micro_batch_size else ""
    checkpointing = ", gradient checkpointing" if spec.gradient_checkpointing else ""
    return (
        f"{spec.steps} steps of LoRA, rank {spec.rank}, alpha {spec.alpha:g}, dropout "
        f"{spec.dropout:g}, learning rate {spec.learning_rate:g} ({spec.schedule}), batches of "
        f"{spec.batch_size} sequences{pieces} of {spec.sequence_length} tokens, optimiser "
        f"{spec.optimizer}, initialisation {spec.initialization}{checkpointing}"
    )
