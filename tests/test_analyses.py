"""The analyses: each number again in plain numpy, three of them as commands."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Cli, unit_vectors, write_store
from scipy.stats import gaussian_kde

from xtrrep import artifacts
from xtrrep.artifacts import Spec
from xtrrep.config import Transform, compose
from xtrrep.console import DataError, UsageError
from xtrrep.experiments import planning, tables
from xtrrep.experiments import run as running
from xtrrep.experiments.analyses import (
    anisotropy_speed,
    candidates,
    distribution,
    geometry,
    models_of,
    tokens,
)
from xtrrep.experiments.analysis import AnalysisPlan, plan_analysis, run_analysis
from xtrrep.experiments.cell import parse_overrides
from xtrrep.experiments.definition import load, load_analysis
from xtrrep.experiments.record import save
from xtrrep.experiments.result import Effect, Result
from xtrrep.measure.geometry import directions, effective_dimension, effective_rank, mean_cosine, sampled
from xtrrep.measure.significance import holm, paired
from xtrrep.report.figure import (
    anisotropy_and_speed,
    bars,
    candidate_shares,
    score_density,
    token_rates,
)
from xtrrep.retrieval import latency
from xtrrep.retrieval.engines import Place
from xtrrep.retrieval.engines.exact import Searcher
from xtrrep.retrieval.engines.files import open_index
from xtrrep.retrieval.token_hits import expansion_share
from xtrrep.store.changed import expansion_tokens, fitted, saved, write
from xtrrep.store.encode import Store

CLS, SEP, MASK = 101, 102, 103


def similarities(queries: Store, documents: Store) -> np.ndarray:
    return queries.take(np.arange(queries.tokens)) @ documents.take(np.arange(documents.tokens)).T


# --- scores --------------------------------------------------------------------------------------------------------


def test_pooled_scores_are_all_scores(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = write_store(tmp_path, unit_vectors(rng, 30, 16))
    queries = write_store(tmp_path, unit_vectors(rng, 9, 16), stage="queries")
    best = -np.sort(-similarities(queries, documents), axis=1)[:, :20]
    for rows in (1, 5, 1000):
        pool = distribution.pooled(distribution.searched(Searcher(documents), queries, 20, rows), len(queries))
        assert pool.count == best.size == len(pool.sample)
        np.testing.assert_allclose(pool.sample, np.sort(best, axis=None), atol=1e-6)
        assert pool.mean == pytest.approx(best.mean(dtype=float), abs=1e-6)
        assert pool.deviation == pytest.approx(best.std(dtype=float), abs=1e-6)
        own = [best[queries.document_of == query].astype(float) for query in range(len(queries))]
        expected = [(scores.size, scores.mean(), scores.std()) for scores in own]
        np.testing.assert_allclose(pool.by_query, expected, atol=1e-6)
    deep = distribution.pooled(distribution.searched(Searcher(documents), queries, 10**6, 7), len(queries))
    assert deep.count == queries.tokens * documents.tokens


def test_the_sample_is_bounded_uniform_and_blind_to_batches() -> None:
    scores = np.random.default_rng(1).normal(0.5, 0.1, 50_000).astype(np.float32)
    scores[::10] = np.nan

    def pool(values: np.ndarray, parts: int, seed: int) -> distribution.Pool:
        batches = ((np.zeros(len(part), np.int32), part[:, None]) for part in np.array_split(values, parts))
        return distribution.pooled(batches, 2, size=4000, seed=seed)

    one, many = pool(scores, 1, 3), pool(scores, 37, 3)
    np.testing.assert_array_equal(one.sample, many.sample)
    assert len(one.sample) == 4000
    assert one.count == 45_000
    assert np.isin(one.sample, scores).all()
    assert one.mean == pytest.approx(np.nanmean(scores, dtype=float))
    assert one.deviation == pytest.approx(np.nanstd(scores, dtype=float))
    # Five standard errors of a percentile of 4,000 normal scores.
    np.testing.assert_allclose(np.percentile(one.sample, 50), np.nanpercentile(scores, 50), atol=0.01)
    assert not np.array_equal(one.sample, pool(scores, 1, 4).sample)
    np.testing.assert_allclose(one.by_query[0], [one.count, one.mean, one.deviation])
    np.testing.assert_array_equal(one.by_query[1], [0, np.nan, np.nan])  # a query whose every slot is empty
    with pytest.raises(DataError, match="no token"):
        pool(scores[:1], 1, 3)


def test_the_density_is_scipys() -> None:
    sample = np.random.default_rng(2).normal(0.6, 0.05, 3000).astype(np.float32)
    grid, heights = distribution.density(sample, points=200)
    np.testing.assert_allclose(heights, gaussian_kde(sample.astype(float))(grid), rtol=1e-6, atol=1e-9)
    for scores in (sample, np.full(50, 0.7, np.float32), np.full(1, 0.7, np.float32)):  # no spread is no error
        grid, heights = distribution.density(scores)
        assert np.trapezoid(heights, grid) == pytest.approx(1, abs=0.005)


def test_only_token_engines_have_token_scores() -> None:
    found = distribution.cells(compose(["index=scann", "analyze.models=[colbert,untrained]"]))
    assert [(cell.model, cell.engine) for cell in found] == [
        ("colbert", "exact"), ("colbert", "scann"), ("untrained", "exact"), ("untrained", "scann"),
    ]  # fmt: skip
    assert [cell.engine for cell in distribution.cells(compose(["analyze.models=[colbert]"]))] == ["exact"]
    for engine in ("plaid", "bm25"):
        with pytest.raises(UsageError, match="no token scores"):
            distribution.cells(compose([f"index={engine}"]))


def test_models_by_name() -> None:
    chosen = models_of(compose(["analyze.models=[untrained,xtr_k64]"]))
    assert chosen == {"untrained": ("model.source=untrained",), "xtr_k64": ("config=xtr_k64",)}
    assert models_of(compose(["model.source=untrained"])) == {"untrained": ()}
    with pytest.raises(UsageError, match="no model"):
        models_of(compose(["analyze.models=[]"]))


# --- retrieved tokens ----------------------------------------------------------------------------------------------


def query_store(folder: Path, ids: Sequence[Sequence[int]]) -> Store:
    rng = np.random.default_rng(5)
    vectors = [rng.normal(size=(len(row), 16)) for row in ids]
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    return write_store(folder, units, shard=3, stage="queries", ids=ids)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        pytest.param(
            [[CLS, 7, SEP, MASK, MASK], [CLS, 7, 8, 9, SEP], [CLS, 7, 8, SEP, MASK], [CLS, MASK, MASK, SEP, MASK]],
            ["00011", "00000", "00001", "00001"],
            id="filled, cut, one place, typed",
        ),
        pytest.param([[CLS, 7, SEP], [CLS, 7, 7, SEP], [CLS, 5, SEP]], ["000", "0000", "000"], id="no expansion"),
        pytest.param([[CLS, 7, 8, SEP], [CLS, 9, 9, SEP]], ["0000", "0000"], id="all of them cut"),
        pytest.param([[CLS, 7, SEP, MASK, MASK], [CLS, 7, 8, 9, 9, SEP]], ["00011", "000000"], id="a least length"),
        pytest.param(
            [[CLS, 7, SEP, MASK, MASK], [CLS, 8, SEP, MASK, MASK], [CLS, 7, 9, SEP, SEP]],
            ["00011", "00011", "00000"],
            id="[SEP] typed at the end",
        ),
    ],
)
def test_expansion_is_told_by_the_stored_ids(tmp_path: Path, ids: list[list[int]], expected: list[str]) -> None:
    found = expansion_tokens(query_store(tmp_path, ids))
    assert "".join(map(str, found.astype(int))) == "".join(expected)


def test_rates_are_what_a_loop_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    vectors = unit_vectors(rng, 30, 16)
    documents = write_store(tmp_path, vectors, ids=[rng.integers(5, 9, len(v)).tolist() for v in vectors])
    ids = [[CLS, *rng.integers(5, 9, n), SEP, *[MASK] * (6 - n)] for n in (1, 2, 6, 4, 3, 5, 2)]
    queries = query_store(tmp_path, ids)
    judged = {f"q{i}": {f"d{j}": j % 3 for j in range(i, 30, 4)} for i in range(6)}  # q6 has no judgement
    judged["q0"]["gone"] = 1  # not in the corpus
    order = np.argsort(-similarities(queries, documents), axis=1, kind="stable")[:, :40]
    word_of, text_of = documents.vocabulary_ids(np.arange(documents.tokens)), documents.document_of
    gold, lexical, asked = [], [], []
    for row, (query, word) in enumerate((q, word) for q, words in enumerate(ids) for word in words):
        if word != MASK:
            gold.append([judged.get(f"q{query}", {}).get(f"d{text_of[t]}", 0) > 0 for t in order[row]])
            lexical.append(word_of[order[row]] == word)
            asked.append(query)
    for rows in (1, 6, 999):
        found = tokens.rates(Searcher(documents), documents, queries, judged, k_prime=50, ranks=40, rows=rows)
        np.testing.assert_allclose(found.gold, np.mean(gold, axis=0))
        np.testing.assert_allclose(found.lexical, np.mean(lexical, axis=0))
        assert (found.tokens, found.removed) == (len(gold), sum(row.count(MASK) for row in ids))
        for query in range(len(ids)):
            own = np.array(asked) == query
            np.testing.assert_allclose(found.by_query[query], [np.array(kind)[own].mean() for kind in (gold, lexical)])
    assert 0 < found.gold.mean() < 1
    assert 0 < found.lexical.mean() < 1
    assert len(tokens.rates(Searcher(documents), documents, queries, judged, ranks=10**6).gold) == documents.tokens
    with pytest.raises(DataError, match="expansion tokens alone"):
        tokens.rates(Searcher(documents), documents, query_store(tmp_path, [[MASK, MASK]]), judged)


def test_the_moving_average() -> None:
    raw = np.array([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(tokens.smoothed(raw), [1, 0.75, 0.5625, 0.671875])
    np.testing.assert_allclose(tokens.smoothed(np.full(300, 0.3)), 0.3)


@pytest.mark.parametrize("word", ["encode.pool_factor=2", "model.source=vectors"])
def test_vectors_without_words_have_no_lexical_rate(word: str) -> None:
    with pytest.raises(UsageError):
        tokens.cells(compose([word, "model.vectors=./x"] if "vectors" in word else [word]))


# --- geometry ------------------------------------------------------------------------------------------------------


def test_geometry_is_what_the_whole_matrix_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    store = write_store(tmp_path, [v + np.float16(0.1) for v in unit_vectors(rng, 60, 16)])
    owners, units = geometry.sampled(store)
    assert len(units) == store.tokens
    np.testing.assert_array_equal(np.bincount(owners), store.lengths)
    cosines = units @ units.T
    assert mean_cosine(units) == pytest.approx(cosines[~np.eye(len(units), dtype=bool)].mean())
    for centred, rows in ((False, units), (True, units - units.mean(axis=0))):
        s = np.linalg.svd(rows, compute_uv=False)
        assert effective_dimension(units, centred=centred) == pytest.approx((s**2).sum() ** 2 / (s**4).sum())
    owners, few = geometry.sampled(store, count=50)
    assert len(np.unique(few, axis=0)) == 50
    for one, two in zip((owners, few), geometry.sampled(store, count=50), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(np.linalg.norm(few, axis=1), 1)
    for owner, unit in zip(owners, few, strict=True):
        own = store.vectors(owner).astype(float)
        assert (own @ unit / np.linalg.norm(own, axis=1)).max() == pytest.approx(1)


def test_ranks_are_what_numpy_says() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(300, 16)) * np.linspace(1, 4, 16) + 0.5
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = directions(units)
    assert found["mean_cosine"] == pytest.approx(mean_of_pairs(units))
    for name, own in (("", units), ("_centred", units - units.mean(axis=0))):
        eigen = np.linalg.eigvalsh(own.T @ own)
        share = np.sqrt(eigen) / np.sqrt(eigen).sum()
        assert found[f"effective_rank{name}"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
        assert found[f"participation{name}"] == pytest.approx(eigen.sum() ** 2 / (16 * (eigen**2).sum()))
        assert found[f"effective_dimension{name}"] == pytest.approx(16 * found[f"participation{name}"])
    same = np.repeat(units[:1], 20, axis=0)
    assert effective_rank(same, centred=False) == pytest.approx(1, abs=1e-4)
    assert effective_rank(same, centred=True) == 0


def mean_of_pairs(units: np.ndarray) -> float:
    return float(np.mean([one @ other for i, one in enumerate(units) for j, other in enumerate(units) if i != j]))


def test_the_share_of_expansion_is_what_a_loop_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    documents = write_store(tmp_path, unit_vectors(rng, 40, 16))
    ids = [[CLS, *rng.integers(5, 9, n), SEP, *[MASK] * (6 - n)] for n in (1, 2, 4)]
    queries = query_store(tmp_path, ids)
    part = whole = covariance = variance = 0.0
    for query, words in enumerate(ids):
        scores, own = [], []
        for document in range(40):
            best = (queries.vectors(query).astype(float) @ documents.vectors(document).astype(float).T).max(axis=1)
            scores.append(best.sum())
            own.append(best[np.array(words) == MASK].sum())
        part, whole = part + sum(own), whole + sum(scores)
        covariance, variance = covariance + np.cov(own, scores)[0, 1], variance + np.var(scores, ddof=1)
    found = expansion_share(documents, queries)
    assert (found.score, found.variance) == pytest.approx((part / whole, covariance / variance), rel=1e-4)
    text = query_store(tmp_path, [[CLS, 7, SEP], [CLS, 8, 9, SEP]])
    assert expansion_share(documents, text).score == 0


@pytest.mark.parametrize("transform", [Transform.centre, Transform.no_top_direction, Transform.whiten])
def test_a_store_moved_in_space(tmp_path: Path, transform: Transform) -> None:
    rng = np.random.default_rng(2)
    store = write_store(tmp_path, [v + np.float16(0.2) for v in unit_vectors(rng, 50, 16)], shard=20)
    move = fitted(store, transform)
    out = artifacts.make(Spec("documents", "moved", 1, {}), tmp_path, lambda out: write(out, store, move, None))
    moved = Store.open(out)
    rows = store.take(np.arange(store.tokens)).astype(float)
    mean = rows.mean(axis=0)
    if transform is Transform.centre:
        wanted = rows - mean
    elif transform is Transform.no_top_direction:
        top = np.linalg.svd(rows, full_matrices=False)[2][0]
        wanted = rows - np.outer(rows @ top, top)
    else:
        left, s, right = np.linalg.svd(rows - mean, full_matrices=False)
        wanted = (left * np.sqrt(s)) @ right  # each direction's spread by its square root, up to one factor for all
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(moved.take(np.arange(moved.tokens)), wanted, atol=2e-3)
    assert (moved.ids, moved.tokens) == (store.ids, store.tokens)
    np.testing.assert_array_equal(moved.vocabulary_ids(np.arange(9)), store.vocabulary_ids(np.arange(9)))
    again = saved(out)
    np.testing.assert_array_equal(again(rows), move(rows))
    np.testing.assert_allclose(again(mean[None] if transform is Transform.centre else rows[:1])[0] ** 2 @ np.ones(16),
                               (mean @ mean) if transform is Transform.centre else 1, rtol=1e-3)  # fmt: skip


def test_queries_without_their_expansion(tmp_path: Path) -> None:
    ids = [[CLS, 7, SEP, MASK, MASK], [CLS, 7, 8, 9, SEP], [CLS, 8, 9, SEP, MASK]]
    store = query_store(tmp_path, ids)
    kept = ~expansion_tokens(store)
    out = artifacts.make(Spec("queries", "short", 1, {}), tmp_path, lambda out: write(out, store, None, kept))
    short = Store.open(out)
    assert short.lengths.tolist() == [3, 5, 4]
    assert short.vocabulary_ids(np.arange(short.tokens)).tolist() == [CLS, 7, SEP, CLS, 7, 8, 9, SEP, CLS, 8, 9, SEP]
    np.testing.assert_array_equal(short.vectors(2), store.vectors(2)[:4])


def test_what_documents_give_to_the_mean_cosine(tmp_path: Path) -> None:
    """Its mean is the mean cosine; its spread that of the mean cosine where documents are left out, each in turn."""
    rng = np.random.default_rng(8)
    leaning = [v + np.float16(rng.normal(0.15, 0.1)) for v in unit_vectors(rng, 400, 16)]
    store = write_store(tmp_path, leaning, shard=100)
    owners, units = geometry.sampled(store, count=1200)
    documents, tokens, cosines, values = geometry.by_document(owners, units)
    whole = mean_cosine(units)
    assert np.average(cosines, weights=tokens) == pytest.approx(whole)
    assert values.mean() == pytest.approx(whole)
    pairs = units @ units.T
    for document, count, cosine in list(zip(documents, tokens, cosines, strict=True))[:20]:
        own = owners == document
        assert count == own.sum()
        assert cosine == pytest.approx((pairs[own].sum() - count) / (count * (len(units) - 1)))
    without = np.array([mean_cosine(units[owners != document]) for document in documents])
    jackknife = np.sqrt((len(documents) - 1) * without.var())
    assert values.std(ddof=1) / np.sqrt(len(documents)) == pytest.approx(jackknife, rel=0.02)


def test_geometry_of_known_shapes() -> None:
    rng = np.random.default_rng(4)
    raw = rng.normal(size=(5000, 32))
    isotropic = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert abs(mean_cosine(isotropic)) < 0.001
    for centred in (False, True):
        assert effective_dimension(isotropic, centred=centred) == pytest.approx(32, rel=0.02)
    same = np.repeat(isotropic[:1], 200, axis=0)
    assert mean_cosine(same) == pytest.approx(1)
    assert effective_dimension(same, centred=False) == pytest.approx(1)
    assert effective_dimension(same, centred=True) == 0
    cone = isotropic + 3 * same[0]  # one shared direction: uncentred nearly 1 / cosine^2, centred many directions
    cone /= np.linalg.norm(cone, axis=1, keepdims=True)
    assert effective_dimension(cone, centred=False) == pytest.approx(mean_cosine(cone) ** -2, rel=0.05)
    assert effective_dimension(cone, centred=True) > 20
    with pytest.raises(ValueError, match="no pairs"):
        mean_cosine(same[:1])


def test_the_figures_repeat_byte_for_byte(tmp_path: Path) -> None:
    bell = [(x / 100, float(np.exp(-(((x - 50) / 20) ** 2)))) for x in range(100)]
    flat = [(float(rank), 0.0) for rank in range(1, 4)]  # fewer ranks than markers, and nothing found
    for name in ("one", "two"):
        score_density({"exact": {"a": bell, "b": bell}, "scann": {"a": bell}}, "title", tmp_path / name)
        token_rates({"gold": {"a": flat}, "lexical": {"a": flat}}, "title", tmp_path / f"{name}-rates")
        candidate_shares({"a": [(1, 0.1), (8, 0.4)], "b": [(1, 0.2)]}, "title", tmp_path / f"{name}-shares")
        bars({"a": {"min": 0.3, "zero": 0.0}}, "nDCG@10", "title", tmp_path / f"{name}-bars")
        fast = {"plaid": {"a": (0.5, 20.0), "b": (0.7, 9.0)}, "warp": {"a": (0.5, 400.0)}}
        anisotropy_and_speed({"mean cosine": fast, "dimension": fast}, "title", tmp_path / f"{name}-fast")
    for suffix in (
        f"{what}.{kind}" for what in ("", "-rates", "-shares", "-bars", "-fast") for kind in ("png", "svg", "pdf")
    ):
        first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
        assert first == second
        assert len(first) > 4000


# --- the commands --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the module: the model is trained and encoded once."""
    return tmp_path_factory.mktemp("home")


def run(cli: Cli, home: Path, name: str, *words: str) -> tuple[Path, list[dict[str, str]], dict[str, Store]]:
    """An analysis' folder, the rows of its table, and the stores of xtr_k128."""
    done = json.loads(cli("analyze", name, *TINY, *words, "--json", home=home).stdout)
    folder, made = Path(done["folder"]), [Path(path) for path in done["ran"] + done["reused"]]
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["model"] in (folder / "table.md").read_text()
    assert (folder / "table.txt").stat().st_size > 200
    stores = {
        stage: Store.open(next(p for p in made if p.parent.name == stage and "xtr_k128" in p.name))
        for stage in ("documents", "queries")
    }
    return folder, rows, stores


def read_curve(path: Path, engine: str | None = None) -> list[dict[str, str]]:
    with path.open() as file:
        return [row for row in csv.DictReader(file) if engine is None or row["engine"] == engine]


def test_analyze_distribution(cli: Cli, home: Path) -> None:
    words = ("--index", "scann", "index.num_leaves=10", "index.num_leaves_to_search=5", "analyze.models=[xtr_k128]")
    folder, (exact, scann), stores = run(cli, home, "distribution", *words)
    readable("figure3", [exact])
    best = -np.sort(-similarities(stores["queries"], stores["documents"]), axis=1)[:, :1000]
    assert int(exact["scores"]) == best.size
    assert float(exact["mean"]) == pytest.approx(best.mean(dtype=float), abs=1e-6)
    assert float(exact["sd"]) == pytest.approx(best.std(dtype=float), abs=1e-6)
    for at in (5, 50, 95):  # within what a sample of 100,000 leaves open
        below = (best < float(exact[f"p{at}"])).mean()
        assert below == pytest.approx(at / 100, abs=0.005)
    assert (exact["engine"], scann["engine"]) == ("exact", "scann")
    assert float(exact["empty slots"]) == 0
    assert 0 < float(scann["empty slots"]) < 1  # half of the leaves do not hold 1,000 tokens
    owner = stores["queries"].document_of
    units = read_curve(folder / "units.csv", "exact")
    assert [row["unit"] for row in units] == stores["queries"].ids
    for query, row in enumerate(units):
        assert int(row["scores"]) == best[owner == query].size
        assert float(row["own sd"]) == pytest.approx(best[owner == query].std(dtype=float), abs=1e-6)
    # A query's part in the pooled sd: their mean is it, and leaving a query out moves it by that query's part.
    part = np.array([float(row["sd"]) for row in units])
    assert part.mean() == pytest.approx(float(exact["sd"]))
    without = np.array([best[owner != query].std(dtype=float) for query in range(len(units))])
    assert np.corrcoef(part, -without)[0, 1] > 0.999
    assert np.polyfit(part, without, 1)[0] == pytest.approx(-1 / len(units), rel=0.1)
    # All scores' moments are those of the queries' own, put together.
    counts, means, deviations = (
        np.array([float(row[name]) for row in read_curve(folder / "units.csv", "scann")])
        for name in ("scores", "mean", "own sd")
    )
    assert float(scann["mean"]) == pytest.approx(np.average(means, weights=counts))
    square = np.average(deviations**2 + means**2, weights=counts)
    assert float(scann["sd"]) == pytest.approx(np.sqrt(square - np.average(means, weights=counts) ** 2))
    for engine in ("exact", "scann"):
        curve = read_curve(folder / "density.csv", engine)
        area = np.trapezoid([float(row["density"]) for row in curve], [float(row["score"]) for row in curve])
        assert area == pytest.approx(1, abs=0.01)
    assert {"figure3.png", "figure3.svg"} <= {path.name for path in folder.iterdir()}


def test_analyze_tokens(cli: Cli, home: Path, collections: Path) -> None:
    folder, rows, stores = run(cli, home, "tokens", "analyze.models=[untrained,xtr_k128]")
    readable("figure4", rows)
    documents, queries = stores["documents"], stores["queries"]
    assert [row["model"] for row in rows] == ["untrained", "xtr_k128"]
    (tokenizer,) = home.glob("train/*/model/tokenizer.json")
    added = {entry["content"]: entry["id"] for entry in json.loads(tokenizer.read_text())["added_tokens"]}
    words = queries.vocabulary_ids(np.arange(queries.tokens))
    text = words != added["[MASK]"]  # no query of this collection has one typed
    assert (queries.lengths == 16).all()
    np.testing.assert_array_equal(~expansion_tokens(queries), text)
    lines = (collections / "mini" / "qrels" / "test.tsv").read_text().splitlines()[1:]
    relevant = {tuple(line.split()[:2]) for line in lines}
    order = np.argsort(-similarities(queries, documents)[text], axis=1, kind="stable")[:, :300]
    owners = [queries.ids[number] for number in queries.document_of[text]]
    found = documents.document_of[order]
    golden = np.array([[(q, documents.ids[d]) in relevant for d in row] for q, row in zip(owners, found, strict=True)])
    same = documents.vocabulary_ids(order) == words[text][:, None]
    row = rows[1]
    assert (int(row["query tokens"]), int(row["removed"])) == (text.sum(), (~text).sum())
    units = [line for line in read_curve(folder / "units.csv") if line["model"] == "xtr_k128"]
    assert [unit["unit"] for unit in units] == queries.ids
    for name, there in (("gold", golden), ("lexical", same)):
        rate = there.mean(axis=0)
        for unit in units:
            own = there[np.array(owners) == unit["unit"]].mean()
            assert float(unit[f"{name}@mean"]) == pytest.approx(own, abs=0.005)
        for rank in (1, 10, 100, 300):  # copies of a word can tie, and then stand either way
            assert float(row[f"{name}@{rank}"]) == pytest.approx(rate[rank - 1], abs=0.02)
        assert float(row[f"{name}@mean"]) == pytest.approx(rate.mean(), abs=0.001)
    curve = [line for line in read_curve(folder / "rates.csv") if line["model"] == "xtr_k128"]
    assert [int(line["rank"]) for line in curve] == list(range(1, 301))
    raw = np.array([float(line["gold"]) for line in curve])
    np.testing.assert_allclose([float(line["gold smoothed"]) for line in curve], tokens.smoothed(raw))
    assert {"figure4.png", "figure4.svg"} <= {path.name for path in folder.iterdir()}


def test_analyze_geometry(cli: Cli, home: Path) -> None:
    folder, rows, stores = run(cli, home, "geometry", "analyze.models=[untrained,xtr_k128]")
    vectors = stores["documents"].take(np.arange(stores["documents"].tokens)).astype(float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    readable("anisotropy", rows)
    row = rows[1]
    assert int(row["tokens"]) == len(vectors) < 5000
    assert float(row["mean cosine"]) == pytest.approx(cosines[~np.eye(len(vectors), dtype=bool)].mean())
    units = read_curve(folder / "units.csv")
    assert [unit["unit"] for unit in units] == 2 * stores["documents"].ids
    for own, line in zip((units[:40], units[40:]), rows, strict=True):
        assert np.mean([float(unit["mean cosine"]) for unit in own]) == pytest.approx(float(line["mean cosine"]))
    rng = np.random.default_rng(0)
    for name, centre in (("effective dimension", False), ("effective dimension, centred", True)):
        draws = []
        for _ in range(5):  # other thousands of the same tokens
            some = vectors[rng.choice(len(vectors), min(1000, len(vectors)), replace=False)]
            s = np.linalg.svd(some - some.mean(axis=0) if centre else some, compute_uv=False)
            draws.append((s**2).sum() ** 2 / (s**4).sum())
        assert float(row[name]) == pytest.approx(np.mean(draws), rel=0.05)


# --- candidates, imputation, re-ranking, pooling, seeds ------------------------------------------------------------


@dataclass
class Made:
    """An analysis made in this process: its folder, its table's rows, its plan."""

    folder: Path
    rows: list[dict[str, str]]
    plan: AnalysisPlan


@pytest.fixture
def make_here(home: Path, collections: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    """Make an analysis of xtr_k128 in the module's home, without a process of its own."""
    monkeypatch.setenv("XTRREP_HOME", str(home))
    monkeypatch.setenv("XTRREP_DATA", str(collections))

    def make(name: str, *words: str) -> Made:
        own = ("analyze.models=[xtr_k128]", "analyze.resamples=200", *words)
        plan = plan_analysis(parse_overrides([f"analyze.name={name}", *TINY, *own]))
        folder = run_analysis(plan)
        assert len(plan.spec.upstream) == sum(1 + len(cell.also) for cell in plan.cells)  # none stands for another
        for suffix in ("csv", "md", "txt"):
            assert (folder / f"table.{suffix}").stat().st_size > 200
        return Made(folder, read_curve(folder / "table.csv"), plan)

    return make


def readable(name: str, rows: list[dict[str, str]]) -> None:
    """The columns that a reproduction reads are there."""
    for reading in load(name, "paper").readings:
        assert {reading.column, *reading.where} <= rows[0].keys()


def xtr_scores(queries: Store, documents: Store, k_prime: int, imputed: Callable[[np.ndarray], float]) -> np.ndarray:
    """(queries, documents) XTR scores by their definition, -inf for a document without a hit."""
    rows = similarities(queries, documents)
    scores = np.zeros((len(queries), len(documents)))
    hit = np.zeros(scores.shape, bool)
    for row, query in zip(rows, queries.document_of, strict=True):
        best = -np.sort(-row)[:k_prime]
        kept = row >= best[-1] - 1e-6
        for number in range(len(documents)):
            own = kept & (documents.document_of == number)
            hit[query, number] |= own.any()
            scores[query, number] += row[own].max() if own.any() else imputed(best)
    return np.where(hit, scores, -np.inf)


def ndcg(scores: np.ndarray, queries: Store, documents: Store) -> np.ndarray:
    """nDCG@10 of each query, whose one relevant document has its number: q7 and d7. Ties by document number."""
    found = []
    for name, row in zip(queries.ids, scores, strict=True):
        order = np.argsort(-row, kind="stable")[:10]
        rank = [documents.ids[n] for n in order if row[n] > -np.inf]
        wanted = f"d{name[1:]}"
        found.append(1 / np.log2(rank.index(wanted) + 2) if wanted in rank else 0.0)
    return np.array(found)


def test_analyze_candidates(cli: Cli, home: Path) -> None:
    """By the command line; documents are those that PLAID itself returns, and lists what it keeps of every token."""
    words = ("--index", "plaid", "analyze.nprobes=[3,1,100000]", "analyze.models=[xtr_k128]")
    folder, rows, made = run(cli, home, "candidates", *words)
    readable("candidates", rows)
    assert [int(row["nprobe"]) for row in rows] == [1, 3, 100000]
    index = next(path for path in home.glob("index/plaid--*") if '"seed": 42' in (path / "manifest.json").read_text())
    lists = candidates.read_lists(index)
    codes = np.load(index / "merged_codes.npy")[: made["documents"].tokens]
    for centroid, (start, stop) in enumerate(pairwise(lists.starts)):
        own = np.unique(made["documents"].document_of[codes == centroid])
        np.testing.assert_array_equal(np.sort(lists.documents[start:stop]), own)
    queries = [made["queries"].vectors(q).astype(np.float32) for q in range(len(made["queries"]))]
    for row in rows[:2]:
        params = compose(["index=plaid", f"index.nprobe={row['nprobe']}"]).index
        numbers, _ = open_index(index, made["documents"], params, Place()).search(queries, 40)
        assert float(row["documents"]) == pytest.approx((numbers >= 0).sum(axis=1).mean())
        assert float(row["share"]) == pytest.approx((numbers >= 0).mean())
    units = list(csv.DictReader((folder / "units.csv").open()))
    for row in rows:
        by_query = [float(unit[f"documents@{row['nprobe']}"]) for unit in units]
        assert len(by_query) == len(made["queries"])
        assert np.mean(by_query) == pytest.approx(float(row["documents"]))
    everything = rows[2]
    assert (float(everything["documents"]), float(everything["share"])) == (40, 1)
    assert float(everything["centroids"]) == int(everything["of centroids"]) == len(lists.centroids)
    assert {"candidates.png", "candidates.svg"} <= {path.name for path in folder.iterdir()}


def test_both_engines_have_as_many_centroids(collections: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    words = ["analyze.name=anisotropy_speed", *TINY, "model.source=untrained"]

    def planned(*more: str) -> list[tuple[object, ...]]:
        plans = plan_analysis(parse_overrides([*words, *more])).plans
        return [tuple(p.cfg.index[key] for key in ("engine", "num_partitions", "nprobe")) for p in plans]

    bound = "index.num_partitions=64"
    assert planned("index=plaid", bound, "index.nprobe=4") == [("plaid", 64, 4), ("warp", 64, 32)]
    assert planned("index=warp", bound, "index.nprobe=4") == [("plaid", 64, 8), ("warp", 64, 4)]


def test_analyze_anisotropy_speed(make_here: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "measure", latency._work)  # in this process: what is read of it is the point here
    words = ("latency.max_queries=5", "latency.repeats=2", "index=plaid", "index.num_partitions=64")
    made = make_here("anisotropy_speed", "analyze.models=[untrained,xtr_k128]", *words)
    pairs = [(model, engine) for model in ("untrained", "xtr_k128") for engine in ("plaid", "warp")]
    assert [(row["model"], row["engine"]) for row in made.rows] == pairs
    speeds = {}
    for row, plan in zip(made.rows, made.plan.plans, strict=True):
        folders = {step.stage.name: step.folder for step in plan.steps}
        assert np.load(next(folders["index"].glob("**/centroids.npy"))).shape[0] == 64
        speeds[row["model"], row["engine"]] = json.loads((folders["latency"] / "latency.json").read_text())["qps"]
        store = Store.open(folders["documents"])
        vectors = store.take(np.arange(store.tokens)).astype(float)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = (vectors @ vectors.T)[~np.eye(len(vectors), dtype=bool)]
        assert float(row["mean cosine"]) == pytest.approx(cosines.mean())
        _, few = geometry.sampled(store, count=1000)
        s = np.linalg.svd(few - few.mean(axis=0), compute_uv=False)
        assert float(row["effective dimension, centred"]) == pytest.approx((s**2).sum() ** 2 / (s**4).sum(), rel=0.05)
    for row in made.rows:
        speed = speeds[row["model"], row["engine"]]
        assert float(row["queries/s"]) == speed > 0
        assert float(row["queries/s, untrained = 1"]) == pytest.approx(speed / speeds["untrained", row["engine"]])
    assert {"anisotropy_speed.png", "anisotropy_speed.svg"} <= {path.name for path in made.folder.iterdir()}


def test_candidates_are_what_a_loop_counts(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    queries = write_store(tmp_path, unit_vectors(rng, 6, 16), stage="queries")
    centroids = np.concatenate(unit_vectors(rng, 30, 16))
    contents = [rng.choice(50, rng.integers(0, 5), replace=False) for _ in centroids]
    starts = np.cumsum([0, *map(len, contents)])
    lists = candidates.InvertedLists(centroids, np.concatenate(contents), starts)
    counts = candidates.count(lists, queries, [2, 1, 5])
    assert list(counts) == [1, 2, 5]
    for nprobe, counted in counts.items():
        documents, best = [], []
        for query in range(6):
            order = np.argsort(-(queries.vectors(query).astype(float) @ centroids.astype(float).T), axis=1)
            best.append(set(order[:, :nprobe].ravel()))
            documents.append({document for centroid in best[-1] for document in contents[centroid]})
        assert counted.documents == pytest.approx(np.mean([len(found) for found in documents]))
        assert counted.centroids == pytest.approx(np.mean([len(found) for found in best]))


def test_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    queries = query_store(tmp_path, [[CLS, 7, SEP]])
    lists = candidates.InvertedLists(np.eye(16, dtype=np.float16)[:2], np.array([0, 2, 1]), np.array([0, 2, 3]))
    counts = candidates.count(lists, queries, [2, 2, 5])
    assert counts == {2: candidates.Candidates(3, 2), 5: candidates.Candidates(3, 2)}
    with pytest.raises(DataError, match="no query"):
        candidates.count(lists, write_store(tmp_path / "none", [], stage="queries"), [1])

    def index(lengths: list[int]) -> Path:
        def fill(out: Path) -> dict[str, Any]:
            for name, array in (("centroids", np.eye(3)), ("ivf", np.arange(4)), ("ivf_lengths", np.array(lengths))):
                np.save(out / f"{name}.npy", array)
            return {}

        return artifacts.make(Spec("index", "made", 1, {"lengths": lengths}), tmp_path, fill)

    for lengths in ([2, 2], [2, 1, 0, 1], [2, 1, 2]):
        with pytest.raises(DataError, match="do not fit its centroids"):
            candidates.read_lists(index(lengths))
    # What fast-plaid writes where fewer centroids were asked for than it would make by itself.
    assert candidates.read_lists(index([2, 1, 1, 0, 0])).starts.tolist() == [0, 2, 3, 4]


@dataclass
class Grid:
    """An analysis of runs made in this process: its table's rows, its differences, and its runs' folders by row."""

    result: Result
    rows: list[dict[str, str]]
    differences: dict[tuple[str, str], Effect]
    folders: dict[str, dict[str, Path]]

    def scores(self, row: str, measure: str) -> np.ndarray:
        rows = read_curve(self.folders[row]["evaluate"] / "per_query.csv")
        return np.array([float(line[measure]) for line in rows])

    def stores(self, row: str) -> tuple[Store, Store]:
        return Store.open(self.folders[row]["queries"]), Store.open(self.folders[row]["documents"])


@pytest.fixture
def grid_here(home: Path, collections: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Grid]:
    """Run an analysis of runs of xtr_k128 in the module's home, without a process of its own."""
    monkeypatch.setenv("XTRREP_HOME", str(home))
    monkeypatch.setenv("XTRREP_DATA", str(collections))

    def make(name: str, *words: str, only: Sequence[str] = ()) -> Grid:
        given = parse_overrides(["analyze.models=[xtr_k128]", "analyze.resamples=200", *TINY, *words])
        experiment = load_analysis(name, "demo", given, only)
        result, pictures = running.run(experiment, given)
        folder = save(result, pictures)
        cells = planning.plan(experiment, given).cells
        folders = {
            row: {step.stage.name: artifacts.folder_of(step.spec, step.stage.root()) for step in plan.steps}
            for (row, _, _), plan in cells.items()
        }
        differences = {(effect.row, effect.column): effect for effect in result.effects}
        return Grid(result, read_curve(folder / "grid.csv"), differences, folders)

    return make


def test_analyze_imputation(grid_here: Callable[..., Grid]) -> None:
    made = grid_here("imputation", "analyze.k_primes=[50,20]")
    assert [(row["k'"], row["imputation"]) for row in made.rows] == [
        (k, name) for k in ("50", "20") for name in ("mean", "min", "percentile", "power_law", "zero")
    ]
    queries, documents = made.stores("xtr_k128, 50, zero")
    rules = {"zero": lambda best: 0.0, "min": lambda best: best[-1], "mean": np.mean}
    for k_prime in (50, 20):
        own = {row["imputation"]: row for row in made.rows if row["k'"] == str(k_prime)}
        for name, rule in rules.items():
            again = 100 * ndcg(xtr_scores(queries, documents, k_prime, rule), queries, documents)
            assert float(own[name]["nDCG@10"]) == pytest.approx(again.mean(), abs=0.5)
            if name != "min":
                effect = made.differences[f"xtr_k128, {k_prime}, {name}", "nDCG@10"]
                difference = float(own[name]["nDCG@10"]) - float(own["min"]["nDCG@10"])
                assert effect.effect == pytest.approx(difference)
                assert effect.low - 1e-9 <= difference <= effect.high + 1e-9
                assert effect.baseline == f"xtr_k128, {k_prime}, min"
        assert (f"xtr_k128, {k_prime}, min", "nDCG@10") not in made.differences
    ps = [paired(made.scores(e.row, e.column), made.scores(e.baseline, e.column), resamples=200).p
          for e in made.result.effects]  # fmt: skip
    assert [effect.p for effect in made.result.effects] == pytest.approx(holm(ps))  # corrected over the whole table
    less, more = (float(row["imputed cells"]) for row in (made.rows[0], made.rows[5]))
    scores = xtr_scores(queries, documents, 20, lambda best: -1000.0)  # how often that was imputed can be read off it
    assert more == pytest.approx(-np.round(scores[scores > -np.inf] / 1000).sum() / len(queries), abs=0.1)
    assert 0 < less < queries.lengths[0] * len(documents)
    assert "the row with imputation min" in tables.grid(made.result).terminal()


def test_analyze_rerank(grid_here: Callable[..., Grid]) -> None:
    made = grid_here("rerank", "retrieve.k_prime=20")
    own = {row["re-ranked"]: row for row in made.rows}
    assert list(own) == ["none", "10", "100", "all"]
    queries, documents = made.stores("xtr_k128, none")
    plain = xtr_scores(queries, documents, 20, lambda best: best[-1])
    maxsim = np.zeros(plain.shape)
    for row, query in zip(similarities(queries, documents), queries.document_of, strict=True):
        maxsim[query] += np.maximum.reduceat(row, documents.offsets[:-1])
    whole = np.where(plain > -np.inf, maxsim, -np.inf)
    ten = np.full(plain.shape, -np.inf)
    for query, row in enumerate(plain):
        first = np.argsort(-row, kind="stable")[:10]
        ten[query, first] = whole[query, first]
    for name, scores in (("none", plain), ("10", ten), ("100", whole), ("all", whole)):
        again = 100 * ndcg(scores, queries, documents)
        assert float(own[name]["nDCG@10"]) == pytest.approx(again.mean(), abs=0.5)
    for measure in ("nDCG@10", "Recall@100"):
        for name in ("10", "100", "all"):
            delta = 100 * (made.scores(f"xtr_k128, {name}", measure) - made.scores("xtr_k128, none", measure))
            assert made.differences[f"xtr_k128, {name}", measure].effect == pytest.approx(delta.mean())
    assert made.differences["xtr_k128, 10", "Recall@100"].effect == 0
    assert own["100"]["nDCG@10"] == own["all"]["nDCG@10"]  # forty documents
    assert float(own["none"]["candidates"]) == pytest.approx((plain > -np.inf).sum(axis=1).mean(), abs=0.1)


def test_analyze_pooling(grid_here: Callable[..., Grid]) -> None:
    made = grid_here("pooling")
    assert [row["pool factor"] for row in made.rows] == ["1", "2", "3", "4"]
    lengths = made.stores("xtr_k128, 1")[1].lengths
    for row in made.rows:
        factor, name = int(row["pool factor"]), f"xtr_k128, {row['pool factor']}"
        queries, documents = made.stores(name)
        assert int(row["tokens"]) == documents.tokens == sum(len(shard) for shard in documents.shards)
        assert float(row["kept"]) == pytest.approx(documents.tokens / lengths.sum())
        assert documents.tokens / len(documents) == pytest.approx(lengths.mean() / factor, abs=1.5)
        on_disk = sum(path.stat().st_size for path in (documents.folder / "vectors").iterdir())
        assert int(row["store, bytes"]) == on_disk > 2 * documents.tokens * documents.dim
        assert row["index, bytes"] == ""  # exact leaves no files
        again = 100 * ndcg(xtr_scores(queries, documents, documents.tokens, lambda best: 0.0), queries, documents)
        assert float(row["nDCG@10"]) == pytest.approx(again.mean(), abs=0.5)
        if factor > 1:
            delta = 100 * (made.scores(name, "nDCG@10") - made.scores("xtr_k128, 1", "nDCG@10"))
            assert made.differences[name, "nDCG@10"].effect == pytest.approx(delta.mean())
    assert tables.status(made.result) == "ok"  # a number that a run does not have is no failure


def test_analyze_dynamics(grid_here: Callable[..., Grid], home: Path) -> None:
    only = ["XTR, small k'", "ColBERT", "mean cosine", "sd of scores", "lexical", "[MASK], variance"]
    made = grid_here("dynamics", "analyze.steps=[1,0,30]", "analyze.k_primes=[50,20]", only=only)
    assert [row["step"] for row in made.rows] == ["0", "1", "2"]  # what the training has of them, and its last
    (trained,) = {folders["train"] for folders in made.folders.values()}
    assert sorted(path.name for path in (trained / "kept").iterdir()) == ["0", "1"]
    for row in made.rows:
        queries, documents = made.stores(f"xtr_k128, {row['step']}")
        assert float(row["mean cosine"]) == pytest.approx(mean_cosine(sampled(documents)[1]))
        best = np.sort(similarities(queries, documents), axis=1)[:, -1000:]
        assert float(row["sd of scores"]) == pytest.approx(best.std(), abs=1e-4)
        assert float(row["[MASK], variance"]) == pytest.approx(expansion_share(documents, queries).variance)
        small = 100 * ndcg(xtr_scores(queries, documents, 20, lambda best: best[-1]), queries, documents)
        assert float(row["XTR, small k'"]) == pytest.approx(small.mean(), abs=0.5)
    cosines = [row["mean cosine"] for row in made.rows]
    assert cosines[0] != cosines[-1]
    assert made.differences["xtr_k128, 1", "ColBERT"].baseline == "xtr_k128, 0"
    assert list((home / "results" / "runs").glob("experiment/*/dynamics.svg"))


def test_analyze_interventions_and_expansion(grid_here: Callable[..., Grid]) -> None:
    made = grid_here("interventions", "analyze.k_primes=[50,20]", only=["ColBERT", "mean cosine", "candidates"])
    cosines = {row["vectors"]: float(row["mean cosine"]) for row in made.rows}
    assert list(cosines) == ["as they are", "centred", "no top direction", "whitened"]
    assert abs(cosines["centred"]) < 0.05 < cosines["as they are"]
    assert max(cosines["no top direction"], cosines["whitened"]) < cosines["as they are"]
    queries, documents = made.stores("xtr_k128, centred")
    plain = made.stores("xtr_k128, as they are")
    for one, other in zip((queries, documents), plain, strict=True):
        assert one.ids == other.ids
        rows = other.take(np.arange(other.tokens)).astype(float) - plain[1].widened().mean(axis=0)
        moved = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        np.testing.assert_allclose(one.take(np.arange(one.tokens)), moved, atol=2e-3)
    made = grid_here("expansion", "analyze.k_primes=[50,20]", only=["ColBERT", "share"])
    kept, dropped = made.rows
    assert 0 < float(kept["share of score"]) < 1
    assert float(dropped["share of score"]) == float(dropped["share of variance"]) == 0
    queries, documents = made.stores("xtr_k128, dropped")
    assert not (queries.vocabulary_ids(np.arange(queries.tokens)) == MASK).any()
    assert documents.fingerprint == plain[1].fingerprint
    best = 100 * ndcg(xtr_scores(queries, documents, documents.tokens, lambda best: 0.0), queries, documents)
    assert float(dropped["ColBERT"]) == pytest.approx(best.mean(), abs=0.5)


def test_analyze_determinism(grid_here: Callable[..., Grid]) -> None:
    made = grid_here("determinism", "index.num_partitions=64", "index.nprobe=1")
    own = {row["seed"]: row for row in made.rows}
    assert list(own) == ["42", "43", "44"]
    assert len({str(made.folders[f"xtr_k128, {seed}"]["index"]) for seed in own}) == 3
    assert {float(own["42"][f"overlap@{k} with seed 42"]) for k in (10, 100)} == {1.0}
    ranked: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for seed in own:
        lines = (made.folders[f"xtr_k128, {seed}"]["retrieve"] / "run.trec").read_text().splitlines()
        for query, _, document, rank, *_ in map(str.split, lines):
            ranked.setdefault((seed, query), []).append((int(rank), document))
    first = {key: {document for _, document in sorted(pairs)[:10]} for key, pairs in ranked.items()}
    queries = {query for _, query in first}

    def share(a: str, b: str) -> float:
        return float(np.mean([len(first[a, q] & first[b, q]) / len(first[b, q]) for q in queries]))

    assert float(own["43"]["overlap@10 with seed 42"]) == pytest.approx(share("43", "42"))
    values = [100 * made.scores(f"xtr_k128, {seed}", "nDCG@10").mean() for seed in own]
    shown = tables.spread(made.result)
    (line,) = shown.rows
    spread = dict(zip(shown.columns, line, strict=True))
    assert spread["nDCG@10, sd"] == pytest.approx(np.std(values, ddof=1))
    assert spread["nDCG@10, range"] == pytest.approx(max(values) - min(values))
    pairs = [share("42", "43"), share("42", "44"), share("43", "44")]
    assert spread["overlap@10, pairs"] == pytest.approx(np.mean(pairs))
    assert made.differences["xtr_k128, 44", "nDCG@10"].effect == pytest.approx(values[2] - values[0])


@pytest.mark.parametrize(
    ("analysis", "words", "fault"),
    [
        ("determinism", ["index=exact"], "determinism varies index.seed, and exact has none"),
        ("imputation", ["index=plaid"], "ranks documents by itself"),
        ("rerank", ["index=bm25"], "needs an engine that searches vectors"),
        ("k_prime", ["index=bm25"], "needs an engine that searches vectors"),
        ("pooling", ["index=bm25"], "needs an engine that searches vectors"),
        ("determinism", ["analyze.measure=P@3"], "not among"),
        ("engines", ["analyze.engines=[]"], "names no engine"),
        ("engines", ["analyze.engines=[bm25]"], "searches no vectors"),
        ("engines", ["retrieve.k_prime=200"], "engines sets it for each cell"),
        ("rerank", ["retrieve.rerank=5"], "rerank sets it for each cell"),
    ],
)
def test_what_an_analysis_of_runs_refuses(
    analysis: str, words: list[str], fault: str, collections: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    given = parse_overrides([*TINY, *words])
    with pytest.raises(UsageError, match=fault):
        planning.plan(load_analysis(analysis, "demo", given), given)


def test_settings_of_a_row_win_over_those_of_the_command_line(collections: Path) -> None:
    """`retrieve.imputation` is of XTR's rows alone; ColBERT's rows and PLAID keep what suits them."""
    given = parse_overrides(["analyze.engines=[exact,plaid,warp]", "retrieve.imputation=zero"])
    experiment = load_analysis("engines", "demo", given)
    columns = experiment.columns
    cells = {row.name: planning.cell_of(experiment, row, columns[0], given).config for row in experiment.rows}
    told = {name: cfg.retrieve.imputation for name, cfg in cells.items() if " BM25" not in name}
    assert {name: told[name] for name in told if name.startswith("xtr_k128") or name == "BM25"} == {
        "xtr_k128, oracle, ColBERT": "min", "xtr_k128, oracle, XTR": "zero", "xtr_k128, exact, ColBERT": "min",
        "xtr_k128, exact, XTR": "zero", "xtr_k128, plaid, ColBERT": "min", "xtr_k128, warp, XTR": "min", "BM25": "min",
    }  # fmt: skip
    until = {row.name: planning.cell_of(experiment, row, columns[0], given).until for row in experiment.rows}
    assert until["xtr_k128, oracle, XTR"] == until["BM25"] == ("evaluate",)
    assert until["xtr_k128, exact, XTR"] == ("evaluate", "latency")


@pytest.mark.parametrize(
    ("analysis", "words", "fault"),
    [
        (candidates, ["index=scann"], "needs index=plaid"),
        (anisotropy_speed, ["index=scann"], "is neither"),
    ],
)
def test_what_an_analysis_refuses(analysis: ModuleType, words: list[str], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        analysis.cells(compose(words))


def test_nprobes_are_positive() -> None:
    assert compose().analyze.nprobes == [1, 2, 4, 8, 16, 32]
    for value in ("[]", "[0,8]"):
        with pytest.raises(UsageError, match="nprobes"):
            compose([f"analyze.nprobes={value}"])
