"""scripts/scale.py: what it feeds the stages, its arithmetic, and that its page says what its data say."""

import dataclasses
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from xtrrep import pipeline
from xtrrep.config import compose
from xtrrep.data import check
from xtrrep.data.folder import read_folder
from xtrrep.experiments.analysis import plan_analysis
from xtrrep.experiments.cell import parse_overrides

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale", ROOT / "scripts" / "scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def home(scale: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages of 1,000 passages begin with."""
    folder = tmp_path_factory.mktemp("scale")
    scale.prepare(folder, 1000)
    return folder


def test_passages_are_of_one_length_and_a_smaller_collection_is_the_beginning_of_a_larger(scale: ModuleType) -> None:
    few, many = list(scale.passages(700)), list(scale.passages(2300))
    assert many[:700] == few
    assert [name for name, _ in many] == [f"p{i}" for i in range(2300)]
    assert {len(text.split()) for _, text in many} == {scale.TOKENS - 2}  # [CLS] and [SEP]
    assert len({text for _, text in many}) == len(many)


def test_every_query_is_of_the_words_of_its_one_relevant_passage(scale: ModuleType, tmp_path: Path) -> None:
    scale.write_collection(tmp_path, 500)
    collection = read_folder("scale", tmp_path, "test")
    assert check(collection) == {"documents": 500, "queries": 16, "judgements": 16, "judged_missing": 0}
    texts = dict(collection.documents())
    for query, grades in collection.qrels.items():
        ((name, grade),) = grades.items()
        words = collection.queries[query].split()
        assert grade == 1
        assert len(words) == scale.QUERY_TOKENS - 2
        assert not set(words) - set(texts[name].split())


def test_the_encoder_gives_every_passage_its_full_length(scale: ModuleType, home: Path) -> None:
    from xtrrep.model.encoder import get

    cfg = compose(scale.overrides(home, scale.WORK[0], 1))
    model = get(cfg.model, None, "cpu")
    (passage,) = itertools.islice(scale.passages(1), 1)
    assert model.encode([passage[1]], task="document", output_value="token_embeddings")[0].shape == (64, 128)
    query = " ".join(passage[1].split()[: scale.QUERY_TOKENS - 2])
    assert len(model.encode([query], task="query", output_value="token_embeddings")[0]) == scale.QUERY_TOKENS


def test_every_stage_has_what_it_needs_from_those_before(scale: ModuleType, home: Path) -> None:
    """Otherwise a process would carry out several stages, and its memory would be that of the largest."""
    made: set[str] = set()
    for work in scale.WORK:
        words = scale.overrides(home, work, 1)
        if work.until == "analyze":
            found = plan_analysis(parse_overrides(words))
            steps = [step for plan in found.plans for step in plan.steps]
            new = {found.spec.fingerprint}
        else:
            steps = list(pipeline.plan(compose(words), work.until).steps)
            new = {steps[-1].spec.fingerprint}
        # Nothing is built for exact search, and the sample's texts and queries are soon done.
        quick = (
            {"index"} if "index=exact" in work.words else {"data", "queries"} if work.collection == "sample" else set()
        )
        lacking = {step.stage.name for step in steps if step.spec.fingerprint not in made | new}
        assert lacking <= quick, work.name
        made |= {step.spec.fingerprint for step in steps} | new


def test_a_line_through_points_of_a_line(scale: ModuleType) -> None:
    fixed, slope = scale.line([(1, 5.0), (3, 9.0), (10, 23.0)])
    assert (fixed, slope) == pytest.approx((3, 2))
    assert scale.line([(0, 0.0), (1, 3.0), (2, 0.0)]) == pytest.approx((1, 0))
    with pytest.raises(ValueError, match="two places"):
        scale.line([(2, 1.0), (2, 5.0)])


def row(scale: ModuleType, size: int, stage: str = "documents", passages: int | None = None, **values: float) -> object:
    given = {"seconds": 1.0, "cpu": 1.0, "anonymous": 10**9, "resident": 2 * 10**9, "written": 0, "ndcg": None}
    return scale.Row(size=size, stage=stage, passages=passages or size, threads=1, processor="one", **(given | values))


def test_what_is_extrapolated(scale: ModuleType) -> None:
    rows = [row(scale, n, cpu=10 + n * 1e-3, anonymous=int(5e8 + n * 1e3)) for n in (100_000, 1_000_000)]
    assert scale.spread(rows) == pytest.approx((1010 / 1e6) / (110 / 1e5))
    memory = scale.extrapolated(rows, 8_000_000, lambda r: r.anonymous / 1e9)
    assert memory == pytest.approx((0.5, 1.0, 8.5))
    assert scale.extrapolated(rows, 8_000_000, lambda r: r.cpu)[2] == pytest.approx(8010)


def test_a_sample_is_extrapolated_to_its_share_and_one_size_to_nothing(scale: ModuleType) -> None:
    rows = [row(scale, n, "scann build", n // 20, cpu=n / 20) for n in (100_000, 1_000_000)]
    _, beyond = scale.tables([*rows, row(scale, 100_000, "documents")])
    ((stage, ratio, *_, passages, _, hours, _),) = beyond.rows
    assert (stage, passages) == ("scann build", scale.MSMARCO // 20)
    assert (ratio, hours) == pytest.approx((1, scale.MSMARCO / 20 / 3600), rel=1e-4)


def test_rows_come_back_from_their_file(scale: ModuleType, tmp_path: Path) -> None:
    rows = [row(scale, 1000, stage, ndcg=ndcg) for stage, ndcg in (("documents", None), ("evaluate", 0.5))]
    scale.write(rows, tmp_path, None)
    assert scale.read_rows(tmp_path / "scale.csv") == rows
    assert (tmp_path / "scale.svg").stat().st_size > 1000


def test_what_was_measured_is_not_measured_again(scale: ModuleType, tmp_path: Path) -> None:
    rows = [row(scale, 1000, work.name) for work in scale.WORK]
    (tmp_path / scale.MEASURED).write_text("".join(json.dumps(dataclasses.asdict(found)) + "\n" for found in rows))
    assert scale.measured(tmp_path) == list(scale.measure(tmp_path, 1000, 1, False)) == rows
    assert [path.name for path in tmp_path.iterdir()] == [scale.MEASURED]


def test_too_little_disk_is_said_and_nothing_is_begun(
    scale: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(scale.measure(tmp_path / "home", 10**12, 1, False)) == []
    assert "skipped 1,000,000,000,000" in capsys.readouterr().err
    assert list((tmp_path / "home").iterdir()) == []


def test_the_page_shows_what_the_file_beside_it_holds(scale: ModuleType) -> None:
    first, second = scale.tables(scale.read_rows(DOCS / "scale.csv"))
    page = (DOCS / "SCALE.md").read_text(encoding="utf-8")
    assert f"<!-- measured -->\n{first.markdown()}\n{second.markdown()}<!-- /measured -->" in page
