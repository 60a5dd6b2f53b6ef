"""The only process that computes for the browser: takes jobs off the queue and runs the line.

A worker may be killed at any moment. Every step of a job is recorded by the job engine when it has
ended, and a worker that starts again under the same name takes its own unfinished jobs up at the
first step that is not recorded. A step whose slot is filled already is not run again, so the
moment between filling the slot and recording the step is covered too.
"""

from qpruner_core.worker.process import Place, main, serve

__all__ = ["Place", "main", "serve"]
