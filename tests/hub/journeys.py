"""The commands of the study at scale=paper, typed as its users type them, against the stand-in hub.

Nothing is patched: the only help is small overrides. One home of artifacts serves all, so that a later command finds
what an earlier one made, and the last commands run offline from the caches that the first ones filled.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hub import content
from hub.server import Hub

PAPER = ("scale=paper", "machine.device=cpu", "model.n_doc=40", "model.n_query=16", "encode.precision=fp32")
TRAIN = (
    "train.precision=fp32",
    "train.steps=4",
    "train.batch_size=4",
    "train.max_triples=null",
    "train.n_doc=32",
    "train.checkpoint_every=2",
)
DISTILL = (
    "distill.precision=fp32",
    "distill.steps=2",
    "distill.batch_size=2",
    "distill.n_ways=4",
    "distill.n_doc=32",
)
SMALL = (*PAPER, *TRAIN, *DISTILL)
RELEASED = (*PAPER, "model.source=released")
COLLECTIONS = (
    "beir/nfcorpus/test",
    "beir/arguana",
    "beir/webis-touche2020/v2",
    "lotte/lifestyle/test/search",
    "msmarco-passage/dev/small",
    "msmarco-passage/trec-dl-2019/judged",
)
ENGINES = {"scann": "I", "plaid": "II", "warp": "II"}  # and the setup that the study runs it in
GRID = """\
title: Two models by k'
overrides: [{overrides}]
columns:
  nDCG@10: {{data: beir/nfcorpus/test, measure: nDCG@10}}
axes:
  model: {{colbert: [config=colbert], xtr_k128: [config=xtr_k128]}}
  k_prime: {{100: [retrieve.k_prime=100], 500: [retrieve.k_prime=500]}}
baseline: colbert, 100
"""
LOAD = {
    "sentence-transformers": "from sentence_transformers import MultiVectorEncoder as M; import sys;"
    "print(M(sys.argv[1], device='cpu').encode(['a text'], task='document')[0].shape)",
    "PyLate": "from pylate import models; import sys;"
    "print(models.ColBERT(sys.argv[1], device='cpu').encode(['a text'], is_query=False)[0].shape)",
}


@dataclass(frozen=True)
class Step:
    """One command: the words after `xtrrep`, or a whole command; how it may end, and what it must say or never says."""

    journey: str
    words: tuple[str, ...]
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)
    env: dict[str, str] = field(default_factory=dict)
    ranks: int = 1
    kill_when: str = ""  # a pattern of files below the artifacts; the command is killed when one is there
    command: tuple[str, ...] = ()  # in place of `python -m xtrrep WORDS`


def steps(folder: Path, pylate: str | None = None) -> Iterator[Step]:
    """All commands in order. `folder` holds the grid's file and the export; `pylate` is a Python that has PyLate."""
    yield Step("train", ("train", "config=xtr_k128", *SMALL))
    yield Step("train", ("train", "setup=II", "config=xtr_k128", *SMALL))
    yield Step("train", ("train", "setup=II", "config=colbert", "stage=kd", *SMALL))
    for engine, setup in ENGINES.items():
        for id in COLLECTIONS:
            yield Step("eval", ("eval", "--index", engine, f"data={id}", f"setup={setup}", "config=colbert", *SMALL))
    for name in ("table1", "table2", "table3"):
        columns = ("--only", "fiqa" if name == "table2" else "nfcorpus")
        for kind, overrides in (("trained", SMALL), ("released", RELEASED)):
            words = ("reproduce", name, *columns, *overrides)
            yield Step(f"{name} {kind}", words, never=("not run:",), codes=(0, 1))  # 1: other values than the paper's
    released = ("eval", "--index", "plaid", f"data={COLLECTIONS[0]}", "setup=II", "config=colbert", *RELEASED)
    yield Step("released page", released, ("states nDCG@10 0.3375",))
    yield Step("CQADupStack", ("eval", "--index", "bm25", "data=beir/cqadupstack"), ("mean",))
    yield Step("two ranks", ("train", "config=xtr_k64", *SMALL), ranks=2)
    grid = folder / "grid.yaml"
    text = GRID.format(overrides=", ".join((*SMALL, "setup=I", "index=scann", "train.seed=7")))
    grid.write_text(text, encoding="utf-8")
    yield Step("grid killed", ("analyze", str(grid)), kill_when="train/.partial-*/checkpoints/checkpoint-2")
    yield Step("grid resumed", ("analyze", str(grid)))
    yield Step("grid again", ("analyze", str(grid)), never=("run    ",))
    shutil.rmtree(folder / "exported", ignore_errors=True)
    export = ("export", str(folder / "exported"), "config=xtr_k128", *SMALL, "--pylate", "--push", "me/my-xtr")
    yield Step("export --push", export, says=("pushed",))
    for library, script in LOAD.items():
        python = sys.executable if library != "PyLate" else pylate
        if python:
            yield Step(f"loaded by {library}", (), ("128",), command=(python, "-c", script, "me/my-xtr"))
    yield from _travelling(folder)
    for name in (content.TRIPLES, content.LISTS):  # a stream leaves no copy
        command = (str(Path(sys.executable).with_name("hf")), "download", name, "--repo-type", "dataset")
        yield Step("caches filled", (), command=command)
    offline = {"HF_HUB_OFFLINE": "1", "XTRREP_HOME": str(folder / "offline")}
    yield Step("offline", ("train", "config=xtr_k128", *SMALL), env=offline)
    yield Step("offline", ("train", "setup=II", "config=colbert", "stage=kd", *SMALL), env=offline)
    for id in COLLECTIONS:
        yield Step("offline", ("eval", "--index", "bm25", f"data={id}"), env=offline)
    for word in ("hub:mteb/toy", "nanobeir/nfcorpus"):
        yield Step("hub data", ("eval", "--index", "bm25", f"data={word}"))
        yield Step("offline", ("eval", "--index", "bm25", f"data={word}"), env=offline)
    for checkpoint in ("xtr_base_en", "colbertv2", content.GTE):
        words = (
            "encode",
            "model.source=checkpoint",
            f"model.checkpoint={checkpoint}",
            *PAPER,
            f"data={COLLECTIONS[0]}",
        )
        yield Step("checkpoint", words)
        yield Step("offline", words, env=offline)
    yield Step("offline", ("encode", "setup=I", "config=xtr_k128", *RELEASED, f"data={COLLECTIONS[0]}"), env=offline)


def _travelling(folder: Path) -> Iterator[Step]:
    """A run and an index for others, and a search of the index where nothing else was made."""
    plaid = ("--index", "plaid", f"data={COLLECTIONS[0]}", "setup=II", "config=colbert", *SMALL)
    words = {"run": ("--index", "bm25", f"data={COLLECTIONS[0]}"), "index": plaid}
    for of, own in words.items():
        shutil.rmtree(folder / of, ignore_errors=True)
        yield Step(
            "export --push", ("export", str(folder / of), "--of", of, *own, "--push", f"me/my-{of}"), ("pushed",)
        )
    yield Step("exported run", ("eval", "--run", str(folder / "run" / "run.trec"), f"data={COLLECTIONS[0]}"))
    elsewhere = str(folder / "elsewhere")
    shutil.rmtree(elsewhere, ignore_errors=True)
    download = ("download", "me/my-index", "--repo-type", "dataset", "--local-dir", elsewhere)
    yield Step("exported index", (), command=(str(Path(sys.executable).with_name("hf")), *download))
    made = ("run    train", "run    documents", "run    index")
    yield Step("exported index", ("eval", *plaid), ("reuse  index",), made, env={"XTRREP_HOME": elsewhere})


def build(root: Path, irds: Path) -> None:
    """What the commands fetch: models below `root`, archives below `irds`."""
    from xtrrep.config import parts_of
    from xtrrep.model.released import RELEASED as NAMES

    content.build_models(root)
    content.build_models(root, [released.hubs[0] for released in NAMES.values()])
    content.write_triples(root, content.triples(300))
    content.write_lists(root)
    content.write_beir_dataset(root, "mteb/toy", judgements="default")
    content.write_beir_dataset(root, "zeta-alpha-ai/NanoNFCorpus", scores=False)
    content.beir_archive(irds, "nfcorpus", ("train", "dev", "test"))
    content.beir_archive(irds, "arguana")
    content.beir_archive(irds, "fiqa", ("train", "dev", "test"))
    content.beir_archive(irds, "webis-touche2020/v2")
    for id in parts_of("beir/cqadupstack"):
        content.beir_archive(irds, id.removeprefix("beir/"))
    content.lotte_archive(irds)
    content.msmarco_archive(irds)


def run(step: Step, hub: Hub, home: Path) -> tuple[bool, float, str]:
    """Whether a command did what it should, its seconds, and the last line it printed (of an error, its hint too)."""
    env = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "XTRREP_DATA")}
    env |= hub.environment(home) | {"XTRREP_HOME": str(home / "artifacts"), "CUDA_VISIBLE_DEVICES": ""} | step.env
    command = step.command or (sys.executable, "-m", "xtrrep", *step.words)
    start = time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(step.ranks)}
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=home,
            env=env | ({**meet, "RANK": str(rank), "LOCAL_RANK": str(rank)} if step.ranks > 1 else {}),
        )
        for rank in range(step.ranks)
    ]  # fmt: skip
    killed = False
    while step.kill_when and processes[0].poll() is None and not killed:
        if any(Path(env["XTRREP_HOME"]).glob(step.kill_when)):
            processes[0].kill()
            killed = True
        time.sleep(0.05)
    said = [process.communicate(timeout=900)[0] for process in processes]
    seconds = time.monotonic() - start
    lines = said[0].strip().splitlines() or [""]
    good = all(process.returncode in step.codes for process in processes)
    good = good and all(word in said[0] for word in step.says) and not any(word in said[0] for word in step.never)
    if step.kill_when:
        good = killed
    last = (
        lines[-1] if good else " | ".join(line for line in lines if line.startswith(("error:", "hint:"))) or lines[-1]
    )
    return good, seconds, last


def main(only: str = "", keep: Path | None = None) -> int:
    """Run every command whose journey and words hold `only`; print a row for each. Returns how many failed."""
    judged: dict[str, list[tuple[bool, float]]] = {}
    pylate = _pylate()
    if pylate is None:
        print("without PyLate (scripts/pylate_env.sh installs it): a pushed model is not loaded by it")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(keep or scratch)
        (home / "files").mkdir(parents=True, exist_ok=True)
        if not (home / "root").exists():
            build(home / "root", home / "irds")
        with Hub(home / "root") as hub:
            for step in steps(home / "files", pylate):
                shown = " ".join(_short(step.command or step.words))
                if only not in f"{step.journey}: {shown}":
                    continue
                good, seconds, last = run(step, hub, home)
                judged.setdefault(step.journey, []).append((good, seconds))
                print(f"{'ok' if good else 'FAILED':<7} {seconds:>5.0f} s  {step.journey:<16} {shown}", flush=True)
                print(f"{'':<17}{last[:600]}", flush=True)
    for journey, outcomes in judged.items():
        good, seconds = sum(good for good, _ in outcomes), sum(seconds for _, seconds in outcomes)
        print(f"{journey:<32} {good} of {len(outcomes)} commands as they should be, {seconds:,.0f} s")
    commands = [good for outcomes in judged.values() for good, _ in outcomes]
    print(f"{len(commands)} commands, {commands.count(False)} failed")
    return commands.count(False)


def _short(words: Sequence[str]) -> list[str]:
    """A command without the small overrides, which all share."""
    return [word if len(word) < 80 else word[:60] + "..." for word in words if word not in SMALL]


def _pylate() -> str | None:
    python = Path(os.environ.get("XTRREP_PYLATE", ".venv-pylate")) / "bin" / "python"
    return str(python.absolute()) if python.exists() else None
