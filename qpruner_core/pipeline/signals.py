"""What a search needs of the step *quantize*, refused with a sentence where it is something
else.
"""

from __future__ import annotations

from qpruner_core.domain.record import QuantizationOutcome, RunRecord
from qpruner_core.errors import BadInputError, NotReadyError
from qpruner_core.pipeline.fingerprint import Fingerprints
from qpruner_core.pipeline.joint import check_levels


def required_signals(record: RunRecord, prints: Fingerprints) -> QuantizationOutcome:
    """Return the slot of *quantize*, where a search can go by it.

    Args:
        record: The run.
        prints: Tell the weights that its trials would be measured on.

    Raises:
        NotReadyError: Nothing was measured, or no times where latency is weighed.
        BadInputError: It was measured for other choices, or on other weights.
    """
    outcome = record.quantize
    if outcome is None:
        raise NotReadyError(
            "This run has no sensitivities yet. Run its quantising step first: it measures what "
            "every precision costs in every layer."
        )
    spec = record.spec.search
    if outcome.tie != spec.tie or set(spec.precisions) - set(outcome.precisions):
        raise BadInputError(
            f"The sensitivities were measured for ties by {outcome.tie} and "
            f"{', '.join(outcome.precisions)}, but the search asks for ties by {spec.tie} and "
            f"{', '.join(spec.precisions)}. Run the quantising step again with these choices."
        )
    if outcome.information != spec.information:
        raise BadInputError(
            f"The layer signal was measured by {outcome.information}, but the search asks for "
            f"{spec.information}. Run the quantising step again with this choice."
        )
    check_levels(record.spec, outcome)
    _check_weights(record, outcome, prints)
    if spec.cost == "latency" and any(cell.seconds is None for cell in outcome.sensitivities):
        raise NotReadyError(
            "The search weighs latency, but the Linears of this run were not timed. Run the "
            "quantising step again: with the cost latency it times them."
        )
    return outcome


def _check_weights(record: RunRecord, outcome: QuantizationOutcome, prints: Fingerprints) -> None:
    """Refuse sensitivities of other weights than a trial would be measured on."""
    if not outcome.weights:
        return  # from before it was kept
    found = prints.weights(record)
    if found != outcome.weights:
        raise BadInputError(
            f"The sensitivities were measured on the weights {outcome.weights}, but the model "
            f"now holds {found}. Run the quantising step again, or prune again, after which the "
            f"search measures them anew."
        )
