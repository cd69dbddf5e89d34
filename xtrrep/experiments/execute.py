"""Run the plans of an experiment: here, one after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from xtrrep import pipeline
from xtrrep.console import explained, say

K = TypeVar("K")


@dataclass
class Outcome(Generic[K]):
    """folders: of the stages of what ran. failures: why the rest did not."""

    folders: dict[K, Mapping[str, Path]] = field(default_factory=dict)
    failures: dict[K, str] = field(default_factory=dict)


def run_plans(plans: Mapping[K, pipeline.Plan], *, jobs: int | None = None, on: str | None = None) -> Outcome[K]:
    outcome: Outcome[K] = Outcome()
    try:
        outcome.folders = dict(zip(plans, pipeline.run(list(plans.values())).folders, strict=True))
        return outcome
    except Exception as error:
        if explained(error) is None:
            raise
        say(f"note: {explained(error)}; cell by cell from here")
    for key, plan in plans.items():
        try:
            again = pipeline.plan_stages(plan.cfg, [step.stage.name for step in plan.steps])
            outcome.folders[key] = pipeline.run([again]).folders[0]
        except Exception as error:
            known = explained(error)
            if known is None:
                raise
            outcome.failures[key] = str(known)
    return outcome
