"""How far a search has come: trials done of those asked for, failed, stopped early, time left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from app import wording
from qpruner_core.domain.record import FIRST_BY_HAND, Trial

FAILED, STOPPED, RUNNING, COMPLETE = "failed", "stopped", "running", "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a study stands."""

    n_asked: int
    """Trials asked for, baselines apart."""
    done: tuple[Trial, ...]
    """Measured on all the text."""
    failed: tuple[Trial, ...]
    stopped: tuple[Trial, ...]
    """Dominated on a part of the text."""
    running: tuple[Trial, ...]
    n_baselines: int
    """Baselines measured."""

    @property
    def n_ended(self) -> int:
        """Trials that nothing more is measured of."""
        return len(self.done) + len(self.failed) + len(self.stopped)

    @property
    def n_left(self) -> int:
        """Trials still to be measured, those under way among them."""
        return max(0, self.n_asked - self.n_ended)


def standing(trials: Sequence[Trial], n_asked: int) -> Standing:
    """Return where a study stands; plans made by hand do not count."""
    own = [trial for trial in trials if 0 <= trial.number < FIRST_BY_HAND]

    def of(state: str) -> tuple[Trial, ...]:
        return tuple(trial for trial in own if trial.state == state)

    return Standing(
        n_asked=n_asked,
        done=of(COMPLETE),
        failed=of(FAILED),
        stopped=of(STOPPED),
        running=of(RUNNING),
        n_baselines=sum(t.number < 0 and t.metrics is not None for t in trials),
    )


def seconds_left(now: Standing, n_workers: int, pace: float = 0.0) -> float:
    """Return how long the rest takes; 0 until there is a measurement.

    Args:
        now: Where the study stands.
        n_workers: How many workers measure side by side.
        pace: Seconds from one report of a measured plan to the next, over all workers; 0 before
            there are two, when the median of the newest measurements stands in.
    """
    if pace > 0.0:
        return pace * now.n_left
    took = [trial.metrics.seconds for trial in now.done if trial.metrics is not None]
    each = median(took[-wording.N_PACE :]) if took else 0.0
    return each * now.n_left / max(1, n_workers)


def count_words(now: Standing) -> str:
    """Return what was measured, in a sentence."""
    trials = f"{len(now.done)} trials" if len(now.done) != 1 else "1 trial"
    baselines = f"{now.n_baselines} baselines" if now.n_baselines != 1 else "1 baseline"
    more = [
        f"{len(found)} {word}"
        for found, word in ((now.failed, "failed"), (now.stopped, "stopped early"))
        if found
    ]
    return f"{trials} and {baselines} measured{''.join(f', {each}' for each in more)}."


def reasons(ended: Sequence[Trial]) -> list[str]:
    """Return per reason the trials that ended by it, the most frequent first."""
    by_reason: dict[str, list[int]] = {}
    for trial in ended:
        by_reason.setdefault(trial.reason or "No reason was kept.", []).append(trial.number)
    ordered = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    return [f"{_numbers(numbers)}: {reason}" for reason, numbers in ordered]


def _numbers(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"trial {numbers[0]}"
    shown = ", ".join(map(str, numbers[:6]))
    return f"trials {shown}{' and more' if len(numbers) > 6 else ''}"
