"""A real worker process whose search asks a real study and measures without a model."""

import sys

from counting_worker import CountingLine, main

from qpruner_core.domain.metrics import Metrics
from qpruner_core.models.architectures import llama
from qpruner_core.search.space import SearchSpace
from qpruner_core.search.study import Study
from qpruner_core.store.workers import is_gone

LAYOUT = llama.layout(
    {
        "model_type": "llama",
        "num_hidden_layers": 6,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": 128,
        "tie_word_embeddings": True,
    }
)


class StudyingLine(CountingLine):
    """Claims its trials as the real line does."""

    def search_next(self, owner, *, alone=False):
        record = self._store.read(self._run_id)
        spec = record.spec.search
        space = SearchSpace(LAYOUT, spec.precisions, spec.tie)
        url, name, budget = self._store.study_url(), record.study_name, space.largest_bytes
        with Study.open(url, name, space, spec, budget) as study:
            found = study.claim(
                owner, spec.n_trials, lambda other: alone or is_gone(self._store.home, other)
            )
            if found.exhausted:
                return None
            self._work(f"trial-{found.number}", "search")
            size = space.code_bytes(space.code(found.plan))
            metrics = Metrics(loss=1.0, accuracy=0.5, weight_bytes=size, device="cpu")
            study.record(found.number, metrics)
            self._count("by.txt", f"{found.number} {owner}")
            return found.number


if __name__ == "__main__":
    main(*sys.argv[1:], make_line=StudyingLine)
