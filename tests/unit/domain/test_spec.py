from math import inf, nan

import pytest

from qpruner_core.domain.spec import (
    DataSpec,
    ImportanceSpec,
    PruningSpec,
    RecoverySpec,
    SearchSpec,
)
from qpruner_core.errors import BadInputError


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: PruningSpec(ratio=1.0), r"ratio is 1\.0"),
        (lambda: PruningSpec(ratio=-0.1), "ratio"),
        (lambda: PruningSpec(scope="everywhere"), "Choose one of per-layer, global"),
        (lambda: PruningSpec(shape="round"), "Choose one of per-layer, uniform"),
        (lambda: PruningSpec(protect_first=-1), "protect_first is -1"),
        (lambda: PruningSpec(width_multiple=0), "width multiple is 0"),
        (lambda: DataSpec(sequence_length=4), "At least 8"),
        (lambda: DataSpec(heldout_tokens=10), "less than one sequence"),
        (lambda: DataSpec(items_per_task=-1), "items_per_task is -1"),
        (lambda: ImportanceSpec(criteria=()), "Choose at least one"),
        (lambda: SearchSpec(precisions=()), "Choose at least one"),
        (lambda: SearchSpec(precisions=("nf4", "nf4")), "Name each once"),
        (lambda: SearchSpec(n_trials=0), "at least 1"),
        (lambda: SearchSpec(tie="head"), "Choose one of layer"),
        (lambda: SearchSpec(objective="speed"), "Choose one of loss"),
        (lambda: RecoverySpec(steps=-1), "0 or more"),
        (lambda: RecoverySpec(rank=0), "rank is 0"),
        (lambda: RecoverySpec(learning_rate=0.0), "above 0"),
        (lambda: RecoverySpec(dropout=1.0), "dropout"),
        (lambda: RecoverySpec(sequence_length=1), "8 or more"),
        (lambda: RecoverySpec(learning_rate=inf), "finite"),
        (lambda: RecoverySpec(learning_rate=nan), "finite"),
        (lambda: RecoverySpec(alpha=inf), "finite"),
        (lambda: RecoverySpec(alpha=nan), "finite"),
        (lambda: RecoverySpec(weight_decay=inf), "finite"),
        (lambda: RecoverySpec(weight_decay=nan), "finite"),
        (lambda: RecoverySpec(layer_ranks={"00": 3}), "layer '00'"),
        (lambda: RecoverySpec(layer_ranks={"\u0663": 3}), "index of a layer"),
        (lambda: RecoverySpec(layer_ranks={"-1": 3}), "layer '-1'"),
        (lambda: PruningSpec(layer_ratios={"01": 0.5}), "layer '01'"),
        (lambda: PruningSpec(layer_ratios={"\u0663": 0.5}), "index of a layer"),
        (lambda: PruningSpec(layer_ratios={"1": nan}), "layer '1'"),
        (lambda: SearchSpec(fixed={"00": "nf4"}), "layer '00'"),
        (lambda: SearchSpec(fixed={"\u0663": "nf4"}), "index of a layer"),
    ],
)
def test_a_value_out_of_range_is_refused_with_a_sentence(build, words):
    with pytest.raises(BadInputError, match=words):
        build()
