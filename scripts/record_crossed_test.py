"""Write docs/crossed_test.md: the size and the power of the test over queries and training seeds, by simulation.

.venv/bin/python scripts/record_crossed_test.py        some minutes on one core
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from xtrrep.artifacts import write_atomic
from xtrrep.measure.significance import standard_errors, two_sided

PAGE = Path(__file__).resolve().parent.parent / "docs" / "crossed_test.md"
SEEDS = (3, 5, 10)
QUERIES, SIMULATIONS = 200, 2000
EFFECTS = (2, 3, 4, 5)  # in standard errors of the mean
# Standard deviations of the effects of a seed, of a query, and of the rest.
MIXES = {
    "queries only": (0.0, 1.0, 0.0),
    "queries and rest": (0.0, 1.0, 1.0),
    "rest only": (0.0, 0.0, 1.0),
    "seeds a little": (0.05, 1.0, 0.5),
    "seeds as much as queries": (0.1, 1.0, 1.0),
    "seeds more": (0.2, 1.0, 1.0),
    "seeds only": (1.0, 0.0, 0.0),
}


def drawn(rng: np.random.Generator, seeds: int, mix: tuple[float, float, float]) -> NDArray[np.float64]:
    """(S, Q) differences with mean 0, in standard errors of their mean."""
    of_seed, of_query, rest = mix
    values = of_seed * rng.normal(size=(seeds, 1)) + of_query * rng.normal(size=QUERIES)
    error = (of_seed**2 / seeds + of_query**2 / QUERIES + rest**2 / (seeds * QUERIES)) ** 0.5
    return np.asarray((values + rest * rng.normal(size=(seeds, QUERIES))) / error)


def larger_of_two(grid: NDArray[np.float64]) -> float:
    """The test before: the larger p of two t-tests, over the queries' means and over the seeds' means."""
    ps = []
    for values in (grid.mean(axis=0), grid.mean(axis=1)):
        error = values.std(ddof=1) / len(values) ** 0.5
        ps.append(float(2 * t.sf(abs(grid.mean()) / error, len(values) - 1)) if error > 1e-12 else 0.0)
    return max(ps)


def ps_of(seeds: int, mix: tuple[float, float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """p by simulation: of the crossed test by effect (0, then EFFECTS), and of the larger of two without an effect."""
    rng = np.random.default_rng(seeds)
    new, old = [], []
    for _ in range(SIMULATIONS):
        grid = drawn(rng, seeds, mix)
        errors = standard_errors(grid)  # a shift of all values does not change them
        new.append([two_sided(float(grid.mean()) + effect, *errors) for effect in (0, *EFFECTS)])
        old.append(larger_of_two(grid))
    return np.array(new), np.array(old)


def main() -> None:
    heading = "| seeds | what varies | null, crossed | null, larger of two | " + " | ".join(f"{e} SE" for e in EFFECTS)
    lines = [heading + " | 5 SE, level 1 % |", "| --- | --- |" + " --- |" * (3 + len(EFFECTS))]
    for seeds in SEEDS:
        for name, mix in MIXES.items():
            new, old = ps_of(seeds, mix)
            null, *power = [*(new < 0.05).mean(axis=0), (new[:, -1] < 0.01).mean()]
            cells = [f"{100 * share:.1f} %" for share in (null, (old < 0.05).mean())]
            cells += [f"{100 * share:.0f} %" for share in power]
            lines.append(f"| {seeds} | {name} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    text = f"""# How good is the test over queries and seeds?

With true differences of zero it rejects at most 5 % at the 5 % level, whatever varies. With five seeds it finds
most effects of four standard errors. With three seeds it finds few where seeds differ.

Every training seed answers the same queries. A difference therefore has three random parts: the seed's, the query's
and the rest. The standard error (SE) of the mean comes from all three. With few seeds it is uncertain, and the test
averages over what it may be: a generalised p-value (`xtrrep/measure/significance.py`). The test before took the larger
p of a test over queries and a test over seeds.

The table has the share of {SIMULATIONS:,} simulated experiments, of {QUERIES} queries each, in which p was below 5 %.
The last column is the first step of Holm's method over five tests. A share near 5 % is uncertain by half a point. Where
only queries or only seeds vary, the test is Student's t-test, whose size is exactly 5 %.

{chr(10).join(lines)}

`scripts/record_crossed_test.py` wrote this page. "Seeds as much as queries" has standard deviations of 0.1 for seeds, 1
for queries and 1 for the rest; the script lists the others.
"""
    write_atomic(PAGE, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main()
