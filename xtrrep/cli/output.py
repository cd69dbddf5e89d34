"""What verbs print: JSON, plans, paths."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.console import DataError, UsageError, typed

if TYPE_CHECKING:
    from xtrrep.pipeline import Plan
    from xtrrep.plan.preflight import Forecast

PLAN_LINES = 20  # steps that a dry run lists one by one; of more it counts those of each stage


def print_json(value: Any) -> None:
    print(jsonlib.dumps(value, indent=1, ensure_ascii=False))


def print_plan(
    plans: Sequence[Plan],
    json: bool,
    final: tuple[str, bool, Path] | None = None,
    calibration: Path | None = None,
    verbose: bool = False,
) -> None:
    """What would run, what is re-used, what is fetched and missing. verbose: every step, however many there are."""
    from xtrrep.plan import cost, preflight

    lines = preflight.forecast(plans)
    if final is not None:
        stage, reuse, folder = final
        lines.append(preflight.Forecast(stage, "reuse" if reuse else "run", folder, "", 0.0 if reuse else None, ""))
    fetch = preflight.downloads(plans)
    problems = preflight.missing(plans)
    paper = any(plan.cfg.scale == "paper" for plan in plans)
    if calibration is not None and not paper:
        raise UsageError("--calibration changes only plans at scale=paper", hint="add scale=paper, or leave it out")
    costs = cost.cost(plans, cost.calibration(calibration)) if paper else None
    todo = [line for line in lines if line.action == "run"]
    known = sum(line.seconds or 0.0 for line in todo)
    unknown = sum(line.seconds is None for line in todo)
    if json:
        print_json(
            {
                "steps": [{**vars(line), "folder": str(line.folder)} for line in lines],
                "run": len(todo),
                "reuse": len(lines) - len(todo),
                "downloads_mb": fetch,
                "seconds": known,
                "steps_of_unknown_time": unknown,
                "missing": problems,
                "builds_in_one_piece": preflight.in_one_piece(plans),
                **({"cost": costs.as_json()} if costs else {}),
            }
        )
        return
    listed = verbose or len(lines) <= PLAN_LINES
    if listed:
        for line in lines:
            told = line.action == "reuse" or (costs and line.seconds is None)  # by the tables below
            time = "" if told else f"{preflight.duration(line.seconds)} {line.source}".strip()
            print(f"{line.action:<6} {line.stage:<10} {line.units:<24} {time:<26} {relative(line.folder)}")
    elif costs is None:  # whose tables count them too
        print("\n".join(_grouped(lines)))
    counted = f"{len(todo)} to run, {len(lines) - len(todo)} re-used"
    if costs:
        for table in costs.tables():
            print(table.terminal(), end="\n\n")
        print(f"{counted}{'' if listed else '; -v lists every step'}")
    else:
        for name, size in fetch.items():
            print(f"fetch  {name}  {f'{size:,} MB' if size else 'size not known'}")
        times = [f"about {preflight.duration(known)}"] if known or not unknown else []
        times += [f"{unknown} of unknown time"] if unknown else []
        print(f"{counted}; {', and '.join(times)}{'' if listed else '; -v lists every step'}")
    if places := preflight.precisions(plans):
        print(f"precision: {'; '.join(places)}")
    if paper and (whole := preflight.in_one_piece(plans)):
        print(f"builds in one piece: {', '.join(whole)}. An interrupted build of these begins again; vectors are kept.")
    for problem in [*problems, *(cost.too_large(plans, cost.machine_memory()) if paper else [])]:
        print(f"missing: {problem}")


def _grouped(lines: Sequence[Forecast]) -> list[str]:
    """A line for each stage and action: how many steps, of what size where they are alike, and their time together."""
    from xtrrep.plan import preflight

    groups: dict[tuple[str, str], list[Forecast]] = {}
    for line in lines:
        groups.setdefault((line.stage, line.action), []).append(line)
    shown = []
    for (stage, action), members in groups.items():
        units = {line.units for line in members}
        same = units.pop() if len(units) == 1 else ""
        size = f"each {same}" if same and len(members) > 1 else same
        known = [line.seconds for line in members if line.seconds is not None]
        time = preflight.duration(sum(known)) if known else "time not known"
        unknown = f", {len(members) - len(known)} of unknown time" if known and len(known) < len(members) else ""
        shown.append(
            f"{action:<6} {len(members):>4} {stage:<12} {size:<28} {'' if action == 'reuse' else time + unknown}"
        )
    return [line.rstrip() for line in shown]


def relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def writable(out: Path) -> Path:
    """A file to write, `~` expanded. Raises DataError where its folder is not there, UsageError for a folder."""
    out = out.expanduser()
    if out.is_dir():
        raise UsageError(f"{out} is a folder", hint=f"--out {typed(out / 'NAME')}")
    if not out.parent.is_dir():
        raise DataError(f"there is no folder {out.parent}", hint=f"mkdir -p {typed(out.parent)}")
    return out
