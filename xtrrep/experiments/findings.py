"""What a grid's differences come to, in three sentences that are made from its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from xtrrep.experiments.result import DIFFERS, Effect, Result


def findings(result: Result) -> list[str]:
    """The best row, how many differ from their baselines and by how much at most, and the same for changes since other
    rows. Nothing of a result without tests."""
    tested = [effect for effect in result.effects if effect.column and effect.p is not None]
    if not tested:
        return []
    plain = [effect for effect in tested if effect.baseline in result.rows]
    changes = [effect for effect in tested if effect.baseline not in result.rows]
    return [*_best(result, tested[0].column), *_summed("differences", plain), *_summed("changes", changes)]


def _best(result: Result, column: str) -> list[str]:
    known = {row: value for row in result.rows if (value := result.now(row, column)) is not None}
    if not known:
        return []
    best, worst = max(known, key=lambda row: known[row]), min(known, key=lambda row: known[row])
    return [f"{column} is highest for {best}, at {known[best]:.1f}, and lowest for {worst}, at {known[worst]:.1f}."]


def _summed(what: str, effects: Sequence[Effect]) -> list[str]:
    if not effects:
        return []
    sure = [effect for effect in effects if effect.verdict == DIFFERS]
    counted = f"Of {len(effects)} {what} tested, {len(sure)} {'is' if len(sure) == 1 else 'are'} significant."
    if not sure:
        return [counted]
    most = max(sure, key=lambda effect: abs(effect.effect or 0.0))
    return [
        f"{counted} The largest: {most.column} of {most.row} against {most.baseline}, {most.effect:+.1f} points "
        f"[{most.low:.1f}, {most.high:.1f}]."
    ]
