"""The study's statements as hypotheses, tested on our own runs.

`configs/claims.yaml` holds them as data:

    numbers     {SCALE: values for {name} in a cell}
    cells       NAME: the overrides that compose a run
    best        NAME: {of: [cells], chosen: held_out | same}; the best of several by the mean of a claim's value
    claims      a list of
        id, says, where     the statement in our words, and where the study makes it
        value               what is read of every query: a measure, `seconds` or `candidates`; with `analysis`: a column
                            of that analysis' units.csv, by query or by document
        statistic           difference (sum of plus - sum of minus), ratio (of two means) or log_ratio (the geometric
                            mean over queries of plus / minus)
        plus, minus         cells, or bests; with `analysis`: models
        direction | within  superiority (above, below) or equivalence (an interval; null is no bound)
        overrides           of an analysis' runs
        needs, why          {scale or data: value} without which the claim does not run, and the reason. A claim without
                            plus has nothing to run in this version.

Superiority is judged two-sided, by p after Holm's correction over the claims that were tested so; equivalence by its
95 % interval. A claim that cannot run says why and stops no other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtrrep import artifacts, pipeline
from xtrrep import config as configs
from xtrrep.analyze import UNITS, analyses
from xtrrep.artifacts import Spec
from xtrrep.config import Config, Source
from xtrrep.console import MISSING, OK, DataError, UsageError, XtrrepError, explained, say, suggest
from xtrrep.evaluate import parse, read_by_query
from xtrrep.report.table import Table
from xtrrep.reproduce import carry_out, of_meaning, provenance, record_folder, recorded_root, seconds_of, write_table
from xtrrep.significance import Difference, holm, paired_over_seeds, ratio_over_seeds
from xtrrep.study import seed_words
from xtrrep.yamlfile import check_keys, need_different, need_list, need_mapping, read_yaml, words_in

if TYPE_CHECKING:
    import pandas
    from numpy.typing import NDArray

    Grid = NDArray[np.float64]  # (S, Q): one cell's value by training seed and query, or another unit of an analysis

ALPHA = 0.05
HOURS_APART = 1.0  # times measured further apart are not compared
OWN_TIME = 0.8  # of the time of its processors that a measuring process should have had
SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN = "supported", "contradicted", "inconclusive", "not run"
DIFFERENCE, RATIO, LOG_RATIO = STATISTICS = ("difference", "ratio", "log_ratio")
ABOVE, BELOW = DIRECTIONS = ("above", "below")
HELD_OUT, SAME = CHOSEN = ("held_out", "same")
STAGE_OF = {"seconds": "latency", "candidates": "retrieve"}  # whose CSV holds a value; a measure is of `evaluate`

Key = tuple[str, str, int]  # stage to run to, cell, training seed


@dataclass(frozen=True)
class Claim:
    """One statement; see the module's text for its fields. `within` is None where superiority is tested."""

    id: str
    says: str
    where: str
    value: str
    analysis: str | None = None
    statistic: str = DIFFERENCE
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    direction: str | None = None
    within: tuple[float, float] | None = None
    overrides: tuple[str, ...] = ()
    needs: tuple[tuple[str, str], ...] = ()
    why: str = ""

    @property
    def neutral(self) -> float:
        """The effect of no difference."""
        return 0.0 if self.statistic == DIFFERENCE else 1.0

    @property
    def expected(self) -> str:
        """The effect that the study leads one to expect, in signs."""
        if self.within is None:
            return {ABOVE: f"> {self.neutral:g}", BELOW: f"< {self.neutral:g}"}.get(str(self.direction), "")
        low, high = self.within
        if math.isinf(low) or math.isinf(high):
            return f"≥ {low:g}" if math.isinf(high) else f"≤ {high:g}"
        return f"{low:g} to {high:g}"

    @property
    def effect_is(self) -> str:
        """What the effect is of, in words."""
        return f"{self.value}, {'difference' if self.statistic == DIFFERENCE else 'ratio'}"


@dataclass(frozen=True)
class Best:
    """The best of several cells, chosen on the other half of the queries or on the same ones."""

    of: tuple[str, ...]
    chosen: str


@dataclass(frozen=True)
class Family:
    """The claims of a file at one scale, with the cells they stand on."""

    scale: str
    cells: Mapping[str, tuple[str, ...]]
    best: Mapping[str, Best]
    measures: tuple[str, ...]
    claims: tuple[Claim, ...]

    def members(self, name: str) -> tuple[str, ...]:
        """The cells behind a name of `plus` or `minus`."""
        return self.best[name].of if name in self.best else (name,)


@dataclass(frozen=True)
class Result:
    """A claim, what came out, and what to think of that. p is Holm's; None where no test was made."""

    claim: Claim
    effect: Difference | None
    p: float | None
    verdict: str
    note: str = ""
    runs: tuple[str, ...] = ()


# --- the file -------------------------------------------------------------------------------------------------------


def load(scale: str, only: Sequence[str] = ()) -> Family:
    """The project's claims, or those of `only` by id. Raises UsageError naming file and fault, or an unknown id."""
    family = parse_claims(configs.config_dir() / "claims.yaml", scale)
    known = [claim.id for claim in family.claims]
    for name in only:
        if name not in known:
            raise UsageError(
                f"no claim {name!r}", hint=suggest(name, known, listing="`xtrrep claims --list` lists them")
            )
    return replace(family, claims=tuple(claim for claim in family.claims if not only or claim.id in only))


def parse_claims(path: Path, scale: str) -> Family:
    """As `load`, from any file."""
    text = read_yaml(path)
    check_keys(path, "it", text, {"numbers", "cells", "best", "claims"}, {"numbers", "cells", "claims"})
    check_keys(path, "numbers", text["numbers"], set(configs.options("scale")), {scale})
    numbers = text["numbers"][scale]
    for what, part in (("numbers", numbers), ("cells", text["cells"]), ("best", text.get("best", {}))):
        need_mapping(path, what, part)
    named = {str(key): value for key, value in numbers.items()}
    cells = {}
    for name, words in text["cells"].items():
        try:
            cells[str(name)] = tuple(word.format(**named) for word in words_in(path, f"cell {name}", words))
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{path}: cell {name} uses {error}, which `numbers` does not give",
                hint=f"numbers of scale={scale}: {', '.join(named)}",
            ) from None
    best = {}
    for name, value in text.get("best", {}).items():
        check_keys(path, f"best {name}", value, {"of", "chosen"}, {"of", "chosen"})
        best[str(name)] = Best(words_in(path, f"best {name}", value["of"]), str(value["chosen"]))
        if value["chosen"] not in CHOSEN:
            raise UsageError(
                f"{path}: best {name} cannot be chosen by {value['chosen']!r}", hint=f"one of: {', '.join(CHOSEN)}"
            )
    claims = tuple(_claim(path, value) for value in need_list(path, "claims", text["claims"]))
    need_different(path, "claim", [claim.id for claim in claims])
    used = {name for claim in claims if claim.analysis is None for name in (*claim.plus, *claim.minus)}
    for name in sorted(used - best.keys() | {cell for value in best.values() for cell in value.of}):
        if name not in cells:
            raise UsageError(f"{path}: {name!r} is no cell", hint=suggest(name, [*cells, *best]))
    read = dict.fromkeys(claim.value for claim in claims if claim.analysis is None and claim.value not in STAGE_OF)
    return Family(scale, cells, best, tuple(read), claims)


def _claim(path: Path, value: Any) -> Claim:
    known = {"id", "says", "where", "value", "analysis", "statistic", "plus", "minus", "direction", "within"}
    check_keys(path, "a claim", value, known | {"overrides", "needs", "why"}, {"id", "says", "where", "value"})
    fault = f"{path}: claim {value['id']}"
    needs = value.get("needs", {})
    check_keys(path, f"needs of {value['id']}", needs, {"scale", "data"}, set())
    if bool(needs) != bool(value.get("why")):
        raise UsageError(
            f"{fault}: needs and why go together",
            hint="`needs` is what it would take, `why` the reason: give both or neither",
        )
    if "plus" not in value and not needs:
        raise UsageError(
            f"{fault} has no plus, and nothing that it needs",
            hint="plus: [CELL], or needs: and why: where it cannot be tested here",
        )
    lists = {
        key: words_in(path, f"{key} of {value['id']}", value.get(key, [])) for key in ("plus", "minus", "overrides")
    }
    claim = Claim(
        id=str(value["id"]),
        says=str(value["says"]),
        where=str(value["where"]),
        value=str(value["value"]),
        analysis=None if value.get("analysis") is None else str(value["analysis"]),
        statistic=str(value.get("statistic", DIFFERENCE)),
        direction=value.get("direction"),
        within=_within(fault, value.get("within")),
        needs=tuple((str(key), str(need)) for key, need in needs.items()),
        why=str(value.get("why", "")),
        **lists,
    )
    if claim.statistic not in STATISTICS:
        raise UsageError(f"{fault}: no statistic {claim.statistic!r}", hint=suggest(claim.statistic, STATISTICS))
    if claim.analysis is None and claim.value not in STAGE_OF:
        try:
            parse([claim.value])
        except UsageError as error:
            raise UsageError(f"{fault}: {error}", hint=error.hint) from None
    tested = [name for name, entry in analyses.entries().items() if entry.value.units]
    if claim.analysis not in (None, *tested):
        raise UsageError(
            f"{fault}: no analysis {claim.analysis!r} with values by unit", hint=suggest(str(claim.analysis), tested)
        )
    if not claim.plus:
        return claim
    if not claim.minus or (claim.statistic == RATIO and (len(claim.plus), len(claim.minus)) != (1, 1)):
        raise UsageError(
            f"{fault}: a difference needs plus and minus, a ratio one cell in each",
            hint="plus: [CELL] and minus: [CELL]",
        )
    if (claim.direction is None) == (claim.within is None):
        raise UsageError(
            f"{fault} needs either a direction or an interval to lie within",
            hint="direction: above, or within: [-0.005, 0.005]",
        )
    if claim.direction not in (None, *DIRECTIONS):
        raise UsageError(f"{fault}: no direction {claim.direction!r}", hint=f"one of: {', '.join(DIRECTIONS)}")
    return claim


def _is_bound(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300)


def _within(fault: str, value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_bound, value))):
        raise UsageError(f"{fault}: within={value!r} is not two bounds", hint="within: [-0.005, 0.005]; null is none")
    low, high = (-math.inf if value[0] is None else value[0]), (math.inf if value[1] is None else value[1])
    if low >= high or (math.isinf(low) and math.isinf(high)):
        raise UsageError(
            f"{fault}: within={value!r} holds everything or nothing", hint="the lower bound first, and at most one null"
        )
    return float(low), float(high)


# --- plans ----------------------------------------------------------------------------------------------------------


def check_extra(family: Family, extra: Sequence[str]) -> None:
    """Refuse an override of what the cells say themselves: a claim would say one thing and hold another."""
    used = {cell for claim in family.claims for name in (*claim.plus, *claim.minus) for cell in family.members(name)}
    told = [*(family.cells.get(cell, ()) for cell in used), *(claim.overrides for claim in family.claims)]
    fixed = {word.partition("=")[0] for words in told for word in words}
    fixed |= {"index", "scale", "data.measures", "latency.recipe", "analyze.name", "analyze.models"}
    fixed |= configs.keys_of("config") if "config" in fixed else set()
    for word in extra:
        key = word.partition("=")[0]
        if key in ("train.seed", "model.seed", "distill.seed"):
            raise UsageError(
                f"{word!r}: claims.seeds says under which seeds each model is trained", hint="claims.seeds=[42,43,44]"
            )
        if key in fixed or key.startswith("index."):
            raise UsageError(
                f"{word!r} cannot be given: configs/claims.yaml sets it for each claim",
                hint="leave it out; --only ID tests fewer claims",
            )


def base_config(family: Family, extra: Sequence[str]) -> Config:
    """What was typed, composed: the collection, the seeds. Raises UsageError as `check_extra` and composing do."""
    check_extra(family, extra)
    base = configs.compose([f"scale={family.scale}", *extra])
    if len(base.claims.seeds) > 1 and base.model.source is not Source.trained:
        raise UsageError(
            f"model.source={base.model.source.value} is not trained here, so several seeds mean nothing",
            hint="claims.seeds=[42]",
        )
    return base


def blocked(claim: Claim, base: Config) -> str | None:
    """Why a claim does not run, before anything is planned; None where nothing is known to stand in the way."""
    here = {"scale": base.scale, "data": base.data.id}
    for key, value in claim.needs:
        if here[key] != value:
            return f"needs {key}={value}: {claim.why}"
    return None if claim.plus else claim.why


def _common(family: Family, seed: int, extra: Sequence[str]) -> list[str]:
    return [f"scale={family.scale}", *seed_words(seed), *extra]


def words_of(family: Family, cell: str, seed: int, extra: Sequence[str]) -> list[str]:
    """The overrides of one cell under one training seed."""
    read = [f"data.measures=[{','.join(family.measures)}]"] if family.measures else []
    return [*family.cells[cell], *read, "latency.recipe=single", *_common(family, seed, extra)]


def analysis_words(family: Family, claim: Claim, seed: int, extra: Sequence[str]) -> list[str]:
    """The overrides of the analysis that a claim reads, under one training seed; by exact search."""
    models = ",".join(sorted({*claim.plus, *claim.minus}))
    own = [f"analyze.name={claim.analysis}", f"analyze.models=[{models}]", "index=exact", *claim.overrides]
    return [*own, *_common(family, seed, extra)]


def keys_of(family: Family, claim: Claim, seeds: Sequence[int]) -> list[Key]:
    """The runs that a claim on cells needs."""
    stage = "latency" if STAGE_OF.get(claim.value) == "latency" else "evaluate"
    cells = dict.fromkeys(cell for name in (*claim.plus, *claim.minus) for cell in family.members(name))
    return [(stage, cell, seed) for cell in cells for seed in seeds]


@dataclass
class Plans:
    """What is to run: cells by key, analyses by claim and seed, and why the others cannot."""

    cells: dict[Key, pipeline.Plan]
    analyses: dict[tuple[str, int], pipeline.AnalysisPlan]
    reasons: dict[Key, str]
    claims: dict[str, str]  # reasons by claim

    def all(self) -> list[pipeline.Plan]:
        """Every plan, the analyses' cells included."""
        return [*self.cells.values(), *(plan for whole in self.analyses.values() for plan in whole.plans)]


def plan(family: Family, base: Config, extra: Sequence[str], *, require: bool) -> Plans:
    """Compose and plan what the claims need; with `require`, leave out what this machine cannot finish."""
    from xtrrep import preflight

    found = Plans({}, {}, {}, {})
    for claim in family.claims:
        reason = blocked(claim, base)
        if reason is not None:
            found.claims[claim.id] = reason
        elif claim.analysis is not None:
            try:
                wholes = {
                    (claim.id, seed): pipeline.plan_analysis(analysis_words(family, claim, seed, extra))
                    for seed in base.claims.seeds
                }
                if require:
                    preflight.require([part for whole in wholes.values() for part in whole.plans])
                found.analyses |= wholes
            except XtrrepError as error:
                found.claims[claim.id] = str(error)
        else:
            for key in keys_of(family, claim, base.claims.seeds):
                if key in found.cells or key in found.reasons:
                    continue
                try:
                    part = pipeline.plan(configs.compose(words_of(family, key[1], key[2], extra)), key[0])
                    if require:
                        preflight.require([part])
                    found.cells[key] = part
                except XtrrepError as error:
                    found.reasons[key] = str(error)
    return found


def named_plans(family: Family, extra: Sequence[str]) -> tuple[dict[str, pipeline.Plan], dict[str, str]]:
    """Every run that the claims read, by a name of its own, and why the others have none."""
    made = plan(family, base_config(family, extra), extra, require=False)
    found = {f"claims: {cell}, {stage}, seed {seed}": part for (stage, cell, seed), part in made.cells.items()}
    for (claim, seed), whole in made.analyses.items():
        for cell, part in zip(whole.cells, whole.plans, strict=True):
            found[f"{claim}: {' '.join(cell.overrides)}, seed {seed}"] = part
    lacking = {f"claims: {cell}, {stage}, seed {seed}": why for (stage, cell, seed), why in made.reasons.items()}
    return found, lacking | {f"claim {claim}": why for claim, why in made.claims.items()}


# --- values and statistics ------------------------------------------------------------------------------------------


def values_of(claim: Claim, folders: Mapping[str, Path]) -> pandas.Series[float]:
    """A run's value by query. Raises DataError where the run does not hold it."""
    stage = STAGE_OF.get(claim.value, "evaluate")
    name = {"latency": "latency.csv", "retrieve": "candidates.csv"}.get(stage, "per_query.csv")
    column = "wall" if stage == "latency" else claim.value
    frame = read_by_query(folders[stage] / name)
    if column not in frame or frame[column].isna().any():
        raise DataError(
            f"{folders[stage] / name} does not give {claim.value} for every query",
            hint=f"is {claim.value} among data.measures? If so, rm -r {folders[stage]} and run again",
        )
    return frame[column].astype(float)


def grid_of(series: Sequence[pandas.Series[float]], queries: Sequence[str]) -> Grid:
    """One cell's seeds as (S, Q) in the order of `queries`. Raises DataError where theirs are others."""
    for one in series:
        if set(one.index) != set(queries):
            raise DataError(
                f"its runs are not over the same queries or documents ({len(one)} and {len(queries)})",
                hint="one data= for all cells of a claim",
            )
    return np.stack([one.reindex(list(queries)).to_numpy() for one in series])


def best_of(grids: Sequence[Grid], chosen: str) -> Grid:
    """The (S, Q) values of the grid with the best mean, chosen anew for each seed.

    held_out: every second query is answered by what is best on the others, so choosing gains nothing from it. Raises
    DataError where there are no two queries to part.
    """
    stack = np.stack(grids)
    seeds, queries = np.arange(stack.shape[1]), np.arange(stack.shape[2])
    if chosen == SAME:
        return np.asarray(stack[stack.mean(axis=2).argmax(axis=0), seeds])
    if len(queries) < 2:
        raise DataError(
            "the best is chosen on other queries than it is judged on, and there is only one query",
            hint="a collection with two judged queries or more",
        )
    out = np.empty(stack.shape[1:])
    for half in (queries % 2 == 0, queries % 2 == 1):
        pick = stack[:, :, ~half].mean(axis=2).argmax(axis=0)
        out[:, half] = stack[pick, seeds][:, half]
    return out


def effect_of(statistic: str, plus: Sequence[Grid], minus: Sequence[Grid], resamples: int) -> Difference:
    """The effect of a claim over (S, Q) grids: of a log_ratio the ratio itself. Raises DataError as the tests do, and
    for a logarithm of what is not positive."""
    if statistic == RATIO:
        return ratio_over_seeds(plus[0], minus[0], resamples=resamples)
    if statistic == DIFFERENCE:
        return paired_over_seeds(np.sum(plus, axis=0), np.sum(minus, axis=0), resamples=resamples)
    if min(float(grid.min()) for grid in (*plus, *minus)) <= 0:
        raise DataError("a ratio of values that are not all positive says nothing", hint="statistic: difference")
    logs = (np.log(plus).sum(axis=0), np.log(minus).sum(axis=0))
    found = paired_over_seeds(*logs, resamples=resamples)
    return replace(found, mean=math.exp(found.mean), low=math.exp(found.low), high=math.exp(found.high))


def verdict_of(claim: Claim, effect: Difference, p: float | None) -> str:
    """The verdict on an effect; `p` is the corrected one, None where no test was made."""
    if claim.within is not None:
        low, high = claim.within
        if low <= effect.low and effect.high <= high:
            return SUPPORTED
        return CONTRADICTED if effect.high < low or effect.low > high else INCONCLUSIVE
    if p is None or p >= ALPHA or effect.mean == claim.neutral:
        return INCONCLUSIVE
    return SUPPORTED if (effect.mean > claim.neutral) == (claim.direction == ABOVE) else CONTRADICTED


def judge(
    claims: Sequence[Claim],
    effects: Mapping[str, Difference],
    reasons: Mapping[str, str],
    runs: Mapping[str, tuple[str, ...]],
    doubts: Mapping[str, str] | None = None,
) -> list[Result]:
    """Every claim with its verdict, the superiority tests that were made corrected as one family; inconclusive where
    there is a doubt of its values, which is its note."""
    tested = [claim.id for claim in claims if claim.within is None and claim.id in effects]
    corrected = dict(zip(tested, holm([effects[name].p for name in tested]), strict=True))
    results = []
    for claim in claims:
        effect = effects.get(claim.id)
        if effect is None:
            results.append(Result(claim, None, None, NOT_RUN, reasons[claim.id]))
            continue
        p = corrected.get(claim.id)
        note = f"over {analyses.get(claim.analysis).units}" if claim.analysis else ""
        doubt = (doubts or {}).get(claim.id, "")
        verdict = INCONCLUSIVE if doubt else verdict_of(claim, effect, p)
        results.append(Result(claim, effect, p, verdict, doubt or note, runs[claim.id]))
    return results


# --- run ------------------------------------------------------------------------------------------------------------


def _read_cells(
    family: Family, claim: Claim, seeds: Sequence[int], made: Mapping[Key, Mapping[str, Path]]
) -> dict[str, Grid]:
    """Grids by name of `plus` and `minus`, all over the same queries."""
    keys = keys_of(family, claim, seeds)
    series = {key: values_of(claim, made[key]) for key in keys}
    queries = list(series[keys[0]].index)
    cells = {key[1]: grid_of([series[key[0], key[1], seed] for seed in seeds], queries) for key in keys}
    names = dict.fromkeys((*claim.plus, *claim.minus))
    grids = {}
    for name in names:
        members = [cells[cell] for cell in family.members(name)]
        grids[name] = best_of(members, family.best[name].chosen) if name in family.best else members[0]
    return grids


def _read_analysis(claim: Claim, folders: Sequence[Path]) -> dict[str, Grid]:
    """(S, U) grids by model over the U units of an analysis, from its folders, one a seed, all over the same units.

    Raises DataError where the analysis does not hold the value, or not once for every unit.
    """
    import pandas

    series: dict[str, list[pandas.Series[float]]] = {name: [] for name in (*claim.plus, *claim.minus)}
    for path in (folder / UNITS for folder in folders):
        # A unit may be called "NA".
        frame = pandas.read_csv(path, dtype={"unit": str}, keep_default_na=False, na_values={claim.value: [""]})
        if claim.value not in frame:
            known = map(str, frame.columns)
            raise DataError(f"{path} has no column {claim.value!r}", hint=suggest(claim.value, known))
        if frame.duplicated(["model", "unit"]).any() or frame[claim.value].isna().any():
            raise DataError(
                f"{path} does not give {claim.value} once for every unit", hint=f"rm -r {path.parent} and run again"
            )
        for name, found in series.items():
            found.append(frame[frame["model"] == name].set_index("unit")[claim.value])
    units = list(series[claim.plus[0]][0].index)
    return {name: grid_of(found, units) for name, found in series.items()}


def measure(family: Family, base: Config, extra: Sequence[str]) -> list[Result]:
    """Run or re-use what the claims need, and judge them."""
    plans = plan(family, base, extra, require=True)
    made = carry_out(plans.cells, plans.reasons)
    seeds = base.claims.seeds
    effects: dict[str, Difference] = {}
    runs: dict[str, tuple[str, ...]] = {}
    doubts: dict[str, str] = {}
    reasons = dict(plans.claims)
    for claim in family.claims:
        if claim.id in reasons:
            continue
        try:
            if claim.analysis is not None:
                wholes = [plans.analyses[claim.id, seed] for seed in seeds]
                grids = _read_analysis(claim, [pipeline.run_analysis(whole)[0] for whole in wholes])
                runs[claim.id] = tuple(whole.spec.fingerprint for whole in wholes)
            else:
                keys = keys_of(family, claim, seeds)
                lost = next((key for key in keys if key not in made), None)
                if lost is not None:
                    reasons[claim.id] = f"{lost[1]}: {plans.reasons[lost]}"
                    continue
                grids = _read_cells(family, claim, seeds, made)
                stage = STAGE_OF.get(claim.value, "evaluate")
                runs[claim.id] = tuple(plans.cells[key].specs[stage].fingerprint for key in keys)
            sides = [[grids[name] for name in names] for names in (claim.plus, claim.minus)]
            effects[claim.id] = effect_of(claim.statistic, sides[0], sides[1], base.claims.resamples)
            if claim.value == "seconds":
                doubts[claim.id] = doubt_of_times([made[key]["latency"] for key in keys])
        except Exception as error:
            known = explained(error)
            if known is None:
                raise
            say(f"note: {claim.id}: {known}")
            reasons[claim.id] = str(known)
    return judge(family.claims, effects, reasons, runs, doubts)


def doubt_of_times(folders: Sequence[Path]) -> str:
    """Why the times of these latencies do not compare, or nothing: a test over queries cannot see that one process was
    disturbed, or that the machine was another one by then."""
    manifests = [artifacts.read_manifest(folder) for folder in folders]
    when = [datetime.fromisoformat(manifest["made"]) for manifest in manifests]
    hours = (max(when) - min(when)).total_seconds() / 3600
    if hours > HOURS_APART:
        return f"measured {hours:.1f} hours apart; to measure together remove results/runs/latency"
    shares = [manifest["facts"].get("cpu_per_wall", 1.0) / manifest["facts"]["threads"] for manifest in manifests]
    if min(shares) < OWN_TIME and max(shares) / min(shares) > 1 / OWN_TIME:
        return f"one of them had {min(shares):.2f} of a processor's time, another {max(shares):.2f}: busy with others"
    return ""


COLUMNS = ("claim", "statement", "effect of", "expected", "effect", "95 % low", "95 % high", "p (Holm)", "verdict")


def table(base: Config, results: Sequence[Result], extra: Sequence[str]) -> Table:
    """One line a claim; what the verdicts mean stands in the footer."""
    rows: list[list[object]] = []
    for r in results:
        found = (None, None, None) if r.effect is None else (r.effect.mean, r.effect.low, r.effect.high)
        effect = [value if value is not None and math.isfinite(value) else None for value in found]
        row: list[object] = [r.claim.id, r.claim.says, r.claim.effect_is, r.claim.expected, *effect]
        rows.append([*row, r.p, r.verdict, r.note, " ".join(r.runs)])
    counts = {v: sum(r.verdict == v for r in results) for v in dict.fromkeys(r.verdict for r in results)}
    seeds, tested = base.claims.seeds, sum(r.p is not None for r in results)
    if len(seeds) == 1:
        spread = f"One training seed ({seeds[0]}): intervals and p speak of queries, not of retraining."
    else:
        spread = (
            f"Training seeds {', '.join(map(str, seeds))}: intervals and p speak of retraining too, by Student's t of "
            "the seeds' means where that is the wider and the larger."
        )
    footer = [
        ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        + f". scale={base.scale}, {base.data.id}, protocol={base.protocol.name}: a verdict is on these runs"
        + ("." if base.scale == "paper" else ", in another setting than the study's."),
        f"> and <: two-sided sign-flip p over queries, Holm-corrected over {tested} tests; supported or contradicted, "
        f"by the sign, where p < {ALPHA:g}, else inconclusive.",
        "A stated interval: supported where the 95 % interval lies within it, contradicted where it lies outside, else "
        "inconclusive; not corrected for their number.",
        f"Intervals: percentile bootstrap, {base.claims.resamples:,} resamples. {spread}",
        "A ratio of nDCG@10 is of the means; of seconds and candidates the geometric mean over queries.",
    ]
    if any(r.claim.analysis and r.effect for r in results):
        footer.append(
            "Of an analysis the units are what the note names, and the effect is of the mean over them; its own table "
            "may weigh them by tokens, or pool all scores."
        )
    least = 2 / (base.claims.resamples + 1) * tested
    if least >= ALPHA:
        footer.append(
            f"With {base.claims.resamples:,} resamples no p after correction over {tested} tests is below {least:.2g}: "
            f"claims.resamples={math.ceil(2 * tested / ALPHA)} or more could support or contradict one."
        )
    if extra:
        footer.append(f"with {' '.join(extra)}")
    title = f"Claims of the study on {base.data.id}, scale={base.scale}"
    return Table(title, [*COLUMNS, "note", "runs"], rows, footer)


def status(results: Sequence[Result]) -> int:
    """The exit code: 0 where any claim ran, whatever came out, else 3."""
    return OK if any(result.verdict != NOT_RUN for result in results) else MISSING


def run_claims(family: Family, extra: Sequence[str]) -> tuple[Path, list[Result], Table]:
    """Run, judge and write the table below `results/runs/claims/`. Returns folder, results and table."""
    from xtrrep.api import set_threads

    base = base_config(family, extra)
    set_threads(base.machine.threads)
    results = measure(family, base, extra)
    shown = table(base, results, extra)
    content = {"title": shown.title, "rows": shown.rows, "footer": shown.footer}
    spec = Spec("claims", _label(base), 1, content)

    def write(out: Path) -> dict[str, Any]:
        write_table(shown, out)
        return {"units": {"claims": len(results)}, "scale": base.scale}

    return artifacts.make(spec, configs.results_root(), write), results, shown


def check_accept(family: Family, extra: Sequence[str]) -> None:
    """Raises DataError where claims made with other overrides are recorded for this collection and scale."""
    base = base_config(family, extra)
    path = recorded_root() / "claims" / _label(base) / "record.json"
    if not path.exists():
        return
    found = json.loads(path.read_bytes())["overrides"]
    if of_meaning(found) != of_meaning(extra):
        raise DataError(
            f"{path.parent} was accepted with {' '.join(found) or 'no overrides'}, not with these",
            hint=f"the same overrides, or first rm -r {path.parent}",
        )


def _label(base: Config) -> str:
    return f"{base.data.id.replace('/', '-')}-{base.scale}"


def accept(folder: Path, family: Family, extra: Sequence[str]) -> Path:
    """Copy the table of finished claims into `results/recorded/claims/DATA-SCALE/`, in place of the last one there, and
    beside it when, on what and in how many seconds it was made (`record.json`); its runs stand in the table."""
    manifest = artifacts.read_manifest(folder)
    out = recorded_root() / "claims" / str(manifest["label"])
    base = base_config(family, extra)
    record_folder(folder, out)
    record = provenance(extra) | {
        "scale": family.scale,
        "seeds": list(base.claims.seeds),
        "seconds": seconds_of(plan(family, base, extra, require=False).all()),
    }
    artifacts.write_json(out / "record.json", record)
    return out
