"""An experiment: the cells of one YAML file at one scale, and what is compared. schema.py has the grammar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from xtrrep import config as configs
from xtrrep.config import Config
from xtrrep.console import DataError, UsageError, XtrrepError, say, suggest
from xtrrep.experiments.axes import EACH, SWEEP, Place, crossed, ends, is_wanted, measures_of, moved, round_of
from xtrrep.experiments.cell import Overrides, as_texts, at_hand, parse_overrides
from xtrrep.experiments.comparison import EXPLORATORY, Best, Comparison, Gate, with_identical
from xtrrep.experiments.numbers import BY_UNIT, is_measure
from xtrrep.experiments.reading import filled, read_file
from xtrrep.experiments.schema import File, ReadingPart, StandIn

ALL, CLAIMS = "all", "claims"


@dataclass(frozen=True)
class Column:
    """A collection with what is measured on it. `data` is None for the collection that the command line names.

    measure: a measure, a number of the run, or overlap@K with the row at `against`. tested: against the baselines.
    gain: the difference from the row's baseline. without: where rows have no value.
    """

    name: str
    data: str | None
    measure: str
    overrides: Overrides = field(default_factory=dict)
    tested: bool = True
    gain: bool = False
    against: Place = field(default_factory=dict)
    without: Place = field(default_factory=dict)

    @property
    def is_measure(self) -> bool:
        """Whether its values are means of a measure over queries, in points."""
        return is_measure(self.measure)

    @property
    def k_prime(self) -> int | None:
        text = self.overrides.get("retrieve.k_prime", "")
        return int(text) if text.isdigit() else None


@dataclass(frozen=True)
class Baseline:
    """What a row is tested against. since: of the row and of the baseline, the rows whose values are taken off first,
    so that two changes are compared."""

    row: str
    since: tuple[str, str] | None = None

    @property
    def label(self) -> str:
        return self.row if self.since is None else f"{self.row} since {self.since[1]}"


@dataclass(frozen=True)
class Row:
    """One line of an experiment: what chooses its model and engine (None: only quoted), and the paper's values.

    place: its choice on each axis; empty for a row of its own. round: later ones are run while there is time.
    """

    name: str
    overrides: Overrides | None
    paper: Mapping[str, float] = field(default_factory=dict)
    baselines: tuple[Baseline, ...] = ()
    place: Place = field(default_factory=dict)
    round: int = 0

    def holds(self, column: Column) -> bool:
        """Whether the row has a value in a column. A row beside the axes has measures alone."""
        if self.overrides is None:
            return False
        if (column.gain and not self.baselines) or (not self.place and (column.against or column.without)):
            return False
        return not column.without or any(self.place[axis] != choice for axis, choice in column.without.items())


@dataclass(frozen=True)
class Reading:
    """One number of an analysis' table: under `column`, in the one row that matches `where`, times `scale_by`."""

    name: str
    where: Mapping[str, str | int | float]
    column: str
    paper: float | None
    scale_by: float
    tolerance: float | None


@dataclass(frozen=True)
class Experiment:
    """A file of the grammar at one scale. seeds: of training; without any, each model is trained under its own.

    measures: what cells without columns are evaluated by: all that the file's comparisons read, whatever `only` keeps,
    so that part of an experiment reuses the evaluations of the whole. path: the file, None where there is none.
    """

    name: str
    title: str
    scale: str
    tolerance: float | None
    overrides: Overrides
    columns: tuple[Column, ...] = ()
    means: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    best: Mapping[str, Best] = field(default_factory=dict)
    analysis: str | None = None
    readings: tuple[Reading, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    gates: tuple[Gate, ...] = ()
    figure: str | None = None
    quality: str | None = None
    axes: tuple[str, ...] = ()
    spread: str | None = None
    remarks: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    path: Path | None = None

    @property
    def data(self) -> str:
        """The collection that an analysis is made on."""
        return self.overrides.get("data") or configs.compose().data.id

    @property
    def kind(self) -> str:
        """reproduction, claims, analysis (of the collection that the command line names) or grid."""
        if self.name == CLAIMS:
            return CLAIMS
        if self.readings or any(row.paper for row in self.rows) or self.tolerance is not None:
            return "reproduction"
        return "analysis" if self.columns and all(column.data is None for column in self.columns) else "grid"

    def members(self, name: str) -> tuple[str, ...]:
        """The cells that a name of `plus` or `minus` stands for."""
        return self.best[name].of if name in self.best else (name,)

    def gates_of(self, comparison: Comparison) -> list[Gate]:
        """The gates that a comparison stands behind. A distilled model stands behind that of the model it came from."""
        names = (*comparison.plus, *comparison.minus)
        if comparison.analysis is None:
            cells = {cell for name in names for cell in self.members(name)}
            said = [row.overrides or {} for row in self.rows if row.name in cells]
        else:
            shared = {**self.overrides, **comparison.overrides}
            said = [{**shared, "config": model.removesuffix("_kd")} for model in names]
        return [gate for gate in self.gates if any(gate.of.items() <= own.items() for own in said)]

    def runs(self, row: Row, column: Column) -> bool:
        """Whether a cell is run: for its own value, or because a gain in its column is over it."""
        over = column.gain and any(b.row == row.name for other in self.rows for b in other.baselines)
        return row.holds(column) or (over and row.overrides is not None)

    def other_row(self, row: Row, column: Column) -> str:
        """The row that a value of a column is set against, whether there is such a row or not."""
        if column.gain:
            return row.baselines[0].row
        return ", ".join(moved(row.place, column.against, [r.place for r in self.rows if r.place]).values())


# --- reading it -------------------------------------------------------------------------------------------------------


def folder() -> Path:
    """Where the study's reproductions lie, a file each."""
    return configs.config_dir() / "reproductions"


def names() -> list[str]:
    """Every reproduction there is: tables, then figures, then the rest."""
    found = (path.stem for path in folder().glob("*.yaml"))
    return sorted(found, key=lambda name: (name[:3] != "tab", name[:3] != "fig", name))


def load(name: str, scale: str) -> Experiment:
    """A reproduction by name. Raises UsageError for an unknown name, or naming file, line and fault."""
    if name not in names():
        raise UsageError(f"no reproduction named {name!r}", hint=suggest(name, names()))
    return parse(folder() / f"{name}.yaml", scale)


def load_claims(scale: str, only: Sequence[str] = ()) -> Experiment:
    """The project's claims, or those of `only` by id. Raises UsageError for an unknown id, or as `load`."""
    return select(parse(configs.config_dir() / f"{CLAIMS}.yaml", scale), only)


def analyses_by_name() -> dict[str, str]:
    """The analyses of runs that there is a file of, with their titles."""
    paths = sorted((configs.config_dir() / "analyses").glob("*.yaml"))
    return {path.stem: read_file(path, "demo").title for path in paths}


def load_analysis(name: str, scale: str, overrides: Overrides, only: Sequence[str] = ()) -> Experiment:
    """An analysis of runs by name. Raises UsageError as `parse` and `select`."""
    return select(parse(configs.config_dir() / "analyses" / f"{name}.yaml", scale, overrides), only)


def load_own(path: Path, scale: str, only: Sequence[str] = (), overrides: Overrides | None = None) -> Experiment:
    """A file of your own. Raises UsageError where it has the name of one of the study's, or as `parse` and `select`."""
    analyses = analyses_by_name()
    if path.stem in (*names(), CLAIMS, *analyses):
        verb = CLAIMS if path.stem == CLAIMS else f"{'analyze' if path.stem in analyses else 'reproduce'} {path.stem}"
        raise UsageError(
            f"{path} has a name of the study's, and would be recorded as that", hint=f"another name, or xtrrep {verb}"
        )
    return select(parse(path, scale, overrides), only)


def load_all(name: str, scale: str, only: Sequence[str] = ()) -> list[Experiment]:
    """One reproduction, or for `all` every one that `select` leaves something of.

    Raises as `load` and `select` do; for `all` only where nothing is left at all.
    """
    if name != ALL:
        return [select(load(name, scale), only)]
    found: list[Experiment] = []
    for known in names():
        try:
            found.append(select(load(known, scale), only))
        except XtrrepError as error:
            say(f"  note: {known} is left out: {error}")
    if not found:
        raise DataError(
            f"no reproduction has a column {' or '.join(only)} on this machine", hint="xtrrep reproduce --list"
        )
    return found


def parse(path: Path, scale: str, overrides: Overrides | None = None) -> Experiment:
    """Read and check a file of the grammar. `overrides` are the command line's: what a file draws from the
    configuration depends on them. Raises UsageError that names every fault with its line."""
    return replace(_experiment(path.stem, read_file(path, scale), scale, overrides or {}), path=path)


def _experiment(name: str, file: File, scale: str, given: Overrides) -> Experiment:
    """The file at one scale."""
    paper = scale == "paper"
    here = StandIn() if paper else file.here
    added = file.lab if scale == "lab" else StandIn()
    shown = {**(here.columns or file.columns), **added.columns}
    shared = parse_overrides((*file.overrides, *here.overrides, *added.overrides))

    @cache
    def config() -> Config:
        return configs.compose(as_texts({**shared, "scale": scale, **given}))

    columns: dict[str, Column] = {}
    for key, c in shown.items():
        if not is_wanted(c.when, f"column {key!r}", config):
            continue
        overrides = filled(c.overrides, ends(config()) if any("{" in text for text in c.overrides) else {})
        for own, measure in measures_of(c.measure, key, config).items():
            made = Column(own, c.data, measure, overrides, c.tested, c.gain, c.against, c.without)
            columns.setdefault(own, made)
    rows = _crossed_rows(file, config)
    for row in file.rows:
        if (paper or not row.paper_only) and is_wanted(row.when, f"row {row.name!r}", config):
            own_overrides = None if row.overrides is None else parse_overrides(row.overrides)
            against = (Baseline(row.baseline),) if row.baseline is not None else ()
            rows.append(Row(row.name, own_overrides, row.paper, against))
    numbers = file.numbers.get(scale, {})
    rows += [Row(key, filled(texts, numbers)) for key, texts in file.cells.items()]
    rest = EXPLORATORY if any(c.family for c in file.comparisons) else ""
    comparisons = [
        Comparison(**{**c.model_dump(), "overrides": filled(c.overrides, numbers), "family": c.family or rest})
        for c in file.comparisons
    ]
    read = [comparison.value for comparison in comparisons if comparison.analysis is None]
    read += [gate.measure for gate in file.gates]
    experiment = Experiment(
        name=name,
        title=file.title,
        scale=scale,
        tolerance=file.tolerance,
        overrides=shared,
        columns=tuple(columns.values()),
        means=file.means,
        rows=tuple(rows),
        best={key: Best(best.of, best.chosen) for key, best in file.best.items()},
        analysis=file.analysis,
        readings=tuple(_reading(reading, file.tolerance) for reading in file.readings),
        comparisons=tuple(comparisons),
        gates=tuple(Gate(g.cell, g.like, parse_overrides(g.of), g.measure, g.margin) for g in file.gates),
        figure=file.figure or ("bars" if file.axes else None),
        quality=file.quality,
        axes=tuple(file.axes),
        spread=file.spread,
        remarks=file.notes,
        measures=tuple(dict.fromkeys(value for value in read if value not in BY_UNIT)),
    )
    return narrowed(experiment, experiment.columns)


def _crossed_rows(file: File, config: Callable[[], Config]) -> list[Row]:
    """A row for each combination of the axes, with what it is tested against."""
    if not file.axes:
        return []
    cells = crossed(file.axes, config() if any(EACH in axis for axis in file.axes.values()) else None)
    places = [place for place, _ in cells.values()]

    def at(place: Place, to: Mapping[str, str]) -> str:
        return ", ".join(moved(place, to, places).values())

    swept = [axis for axis, choices in file.axes.items() if SWEEP in choices.get(EACH, ())]
    rows = []
    for key, (place, overrides) in cells.items():
        tested = [Baseline(file.baseline)] if file.baseline is not None else []
        for baseline in file.baselines:
            since = (at(place, baseline.since), at(place, {**baseline.at, **baseline.since}))
            tested.append(Baseline(at(place, baseline.at), since if baseline.since else None))
        known = [
            b for b in tested if {b.row, *(b.since or ())} <= cells.keys() and key not in (b.row, *(b.since or ()))
        ]
        later = max((round_of(overrides, place[axis]) for axis in swept), default=0)
        rows.append(Row(key, overrides, baselines=tuple(known), place=place, round=later))
    return rows


def _reading(reading: ReadingPart, tolerance: float | None) -> Reading:
    own = reading.tolerance if "tolerance" in reading.model_fields_set else tolerance
    return Reading(reading.name, reading.where, reading.column, reading.paper, reading.scale_by, own)


def narrowed(experiment: Experiment, columns: Sequence[Column]) -> Experiment:
    """With some of its columns, the means over these, and a difference from the baseline for each row and column."""
    shown = {column.name for column in columns}
    means = {key: group for key, group in experiment.means.items() if set(group) <= shown}
    run = {row.name for row in experiment.rows if row.overrides is not None}
    from_baselines = [
        Comparison(
            f"{row.name}, {column.name}" + (f", against {baseline.label}" if len(row.baselines) > 1 else ""),
            f"{row.name} differs from {baseline.label} on {column.name}",
            column.measure,
            (row.name,) if baseline.since is None else (row.name, baseline.since[1]),
            (baseline.row,) if baseline.since is None else (baseline.row, baseline.since[0]),
            column.name,
            baseline.label,
        )
        for row in experiment.rows
        for column in columns
        for baseline in row.baselines
        if baseline.row in run and row.name in run and column.is_measure and column.tested
    ]
    stated = [comparison for comparison in experiment.comparisons if not comparison.column]
    return replace(experiment, columns=tuple(columns), means=means, comparisons=(*stated, *from_baselines))


# --- part of it -------------------------------------------------------------------------------------------------------


def select(experiment: Experiment, only: Sequence[str] = ()) -> Experiment:
    """Some columns, or some readings by name or by a value of `where`, or some comparisons of cells without columns by
    id; everything where `only` is empty. At any scale but `paper`, only collections at hand.

    Raises UsageError for a name that is not there, and DataError where nothing is left.
    """
    if experiment.readings:
        return _select_readings(experiment, only)
    if not experiment.columns:
        known_ids = [comparison.id for comparison in experiment.comparisons]
        _check_names(experiment.name, "comparison", only, [{name} for name in known_ids], known_ids)
        kept = tuple(c for c in experiment.comparisons if not only or c.id in only)
        return replace(experiment, comparisons=with_identical(kept), only=tuple(only))
    columns = experiment.columns
    if only:
        known = {c.name: {c.name, str(c.data or c.name), c.name.split()[0]} for c in columns}
        _check_names(experiment.name, "column", only, known.values(), known)
        columns = tuple(column for column in columns if known[column.name] & set(only))
    if experiment.scale != "paper":
        absent = sorted({c.data for c in columns if c.data is not None and not at_hand(c.data)})
        columns = tuple(c for c in columns if c.data is None or c.data not in absent)
        if absent:
            say(f"  note: not on this machine, left out: {', '.join(absent)} (XTRREP_DATA=FOLDER of BEIR folders)")
        if not columns:
            raise DataError(
                f"{experiment.name}: none of its collections is on this machine: {', '.join(absent)}",
                hint="export XTRREP_DATA=FOLDER of BEIR folders",
            )
    return replace(narrowed(experiment, columns), only=tuple(only))


def _select_readings(experiment: Experiment, only: Sequence[str]) -> Experiment:
    readings = experiment.readings
    if only:
        known = [{r.name, r.column, experiment.data, *map(str, r.where.values())} for r in readings]
        _check_names(experiment.name, "cell", only, known, [reading.name for reading in readings])
        readings = tuple(r for r, named in zip(readings, known, strict=True) if named & set(only))
    if experiment.scale != "paper" and not at_hand(experiment.data):
        raise DataError(
            f"{experiment.name}: {experiment.data} is not on this machine",
            hint="export XTRREP_DATA=FOLDER of BEIR folders",
        )
    return replace(experiment, readings=readings, only=tuple(only))


def _check_names(
    experiment: str, kind: str, only: Sequence[str], known: Iterable[set[str]], listed: Iterable[str]
) -> None:
    every = set().union(*known)
    for name in only:
        if name not in every:
            raise UsageError(f"{experiment} has no {kind} {name!r}", hint=suggest(name, set(listed)))
