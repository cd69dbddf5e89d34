"""`precision: auto` follows a timing, which is cached for one processor and one torch."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY, Cli

from xtrrep.config import Precision
from xtrrep.model import precision
from xtrrep.model.precision import Timing, Work, resolve_precision

NATIVE = {"model name": "Xeon", "flags": "avx512f avx512_bf16"}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[Work, Timing]]]:
    """A processor with bfloat16 instructions and an empty cache; every measurement is added to the list."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(precision, "_cpuinfo", lambda: NATIVE)
    made: list[dict[Work, Timing]] = []

    def measure() -> dict[Work, Timing]:
        made.append({"train": Timing(27.9, 47.8), "encode": Timing(14.0, 9.0)})
        return made[-1]

    monkeypatch.setattr(precision, "measure", measure)
    precision.timings.cache_clear()
    yield made
    precision.timings.cache_clear()


def test_the_faster_precision_is_chosen_whatever_the_flag_says(measured: list[dict[Work, Timing]]) -> None:
    assert resolve_precision(Precision.auto, "cpu", "train") is Precision.fp32
    assert resolve_precision(Precision.auto, "cpu", "encode") is Precision.bf16
    assert resolve_precision(Precision.bf16, "cpu", "train") is Precision.bf16
    assert resolve_precision(Precision.fp16, "cpu", "train") is Precision.fp32
    assert precision.describe("train") == "fp32 (fp32 27.9 ms, bf16 47.8 ms for the same products)"
    facts = precision.timing_facts(Precision.auto, "cpu", "train")
    assert facts == {"precision_timing": {"milliseconds": {"fp32": 27.9, "bf16": 47.8}, "processor": "Xeon"}}
    assert precision.timing_facts(Precision.fp32, "cpu", "train") == {}
    assert len(measured) == 1


def test_a_cached_timing_holds_for_its_processor_only(
    measured: list[dict[Work, Timing]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def choices() -> list[Precision]:
        precision.timings.cache_clear()  # as a new process
        return [resolve_precision(Precision.auto, "cpu", work) for work in precision.WORKS]

    expected = choices()
    assert choices() == expected
    assert len(measured) == 1
    for change in (
        lambda: monkeypatch.setattr(precision, "_cpuinfo", lambda: NATIVE | {"model name": "EPYC"}),
        lambda: monkeypatch.setattr(precision, "_cpuinfo", lambda: NATIVE | {"flags": "avx512f"}),
        lambda: monkeypatch.setattr(precision, "version", lambda name: "2.12.0"),
        lambda: monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
    ):
        before = len(measured)
        change()
        choices()
        choices()
        assert len(measured) == before + 1
    monkeypatch.undo()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"KEY": {"train": {"fp32": 1.0}}}', '{"KEY": {"train": 3}}'])
def test_an_unsound_cache_is_measured_again(measured: list[dict[Work, Timing]], text: str) -> None:
    path = precision.cache_file()
    path.parent.mkdir()
    path.write_text(text.replace("KEY", precision.machine_key()))
    assert resolve_precision(Precision.auto, "cpu", "train") is Precision.fp32
    assert len(measured) == 1
    assert precision.machine_key() in json.loads(path.read_text())


def test_without_a_place_for_the_cache_it_is_measured_once_a_process(
    measured: list[dict[Work, Timing]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert resolve_precision(Precision.auto, "cpu", "train") is Precision.fp32
    assert len(measured) == 1


def test_measuring_is_short_and_leaves_torch_alone() -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    start = time.process_time()
    found = precision.measure()
    assert time.process_time() - start < 10  # about 1.5
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(timing.fp32 > 0 and timing.bf16 > 0 for timing in found.values())


def cache(folder: Path, encode: Timing) -> dict[str, str]:
    """The environment of a command that finds this timing in its cache."""
    (folder / "xtrrep").mkdir(parents=True)
    entry = {"train": {"fp32": 3.0, "bf16": 9.0}, "encode": {"fp32": encode.fp32, "bf16": encode.bf16}}
    (folder / "xtrrep" / "precision.json").write_text(json.dumps({precision.machine_key(): entry}))
    return {"XDG_CACHE_HOME": str(folder)}


def test_the_choice_is_said_recorded_and_part_of_the_identity(cli: Cli, tmp_path: Path) -> None:
    fast, slow = cache(tmp_path / "1", Timing(20.0, 10.0)), cache(tmp_path / "2", Timing(10.0, 20.0))
    rows = {row["what"]: row["finding"] for row in json.loads(cli("doctor", "--json", **fast).stdout)}
    assert rows["precision in training"] == "fp32 (fp32 3.0 ms, bf16 9.0 ms for the same products)"
    assert rows["precision in encoding"] == "bf16 (fp32 20.0 ms, bf16 10.0 ms for the same products)"
    assert rows["processor"].startswith(precision.processor_name())
    words, home = ("encode", *TINY, "model.source=untrained"), tmp_path / "home"
    done = cli(*words, home=home, **fast)
    assert "  precision: bf16 (fp32 20.0 ms, bf16 10.0 ms for the same products)" in done.stderr
    assert "reuse  documents" in cli(*words, "encode.precision=bf16", home=home, **slow).stderr
    done = cli(*words, home=home, **slow)
    assert "note: bf16 was used for the same before, and this run uses fp32" in done.stderr
    facts = [json.loads(path.read_text())["facts"] for path in home.glob("documents/*/manifest.json")]
    times = {fact["precision"]: fact["precision_timing"]["milliseconds"] for fact in facts}
    assert times == {"bf16": {"fp32": 20.0, "bf16": 10.0}, "fp32": {"fp32": 10.0, "bf16": 20.0}}
