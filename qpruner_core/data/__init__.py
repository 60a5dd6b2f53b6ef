"""Text and tasks as token ids and items; calibration, training and held-out text are kept
apart.
"""

from qpruner_core.data.corpus import Corpus, load_corpus
from qpruner_core.data.loading import load_training
from qpruner_core.data.tasks import Item, read_tasks
from qpruner_core.data.training import TrainingSet

__all__ = ["Corpus", "Item", "TrainingSet", "load_corpus", "load_training", "read_tasks"]
