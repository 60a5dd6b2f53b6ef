"""Text and tasks as token ids and items; calibration, training and held-out text are kept
apart.
"""

from qpruner_core.data.corpus import Corpus, load_corpus
from qpruner_core.data.tasks import Item, read_tasks

__all__ = ["Corpus", "Item", "load_corpus", "read_tasks"]
