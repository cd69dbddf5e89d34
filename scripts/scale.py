"""Larger than memory: what each stage holds and how long it takes, from 100,000 passages to a million.

    .venv/bin/python scripts/scale.py --sizes 100000 300000 1000000 --page docs/SCALE.md

Every size is a BEIR folder of synthetic passages of 64 tokens and 16 queries, each made of words of the one passage
that is relevant to it. The encoder is a stub in weights only: one transformer layer of width 128, drawn by a seed, its
word vectors around centres, so that k-means has something to find. Everything else is the project's own pipeline, one
stage a process, started with `--threads` threads:

    data, documents, queries   the corpus checked; 128 dimensions in float16
    exact                      XTR at k' = 1,000 over all tokens; `evaluate`; two analyses, `geometry` (of a sample of
                               the vectors) and `distribution` (of the scores of one more search)
    warp                       built with a fixed number of partitions and of sampled documents, searched, evaluated
    scann                      the same of every 20th passage's worth: a collection of its own, since ScaNN must hold
                               its vectors in float32

Of each process: seconds, CPU seconds from its plan to its end (imports are not in it), the largest anonymous memory
(RssAnon, read 20 times a second) and the largest resident memory (VmHWM), in which pages of files count that the system
may drop. A size is skipped where there is less disk than 30 kB a passage, and removed when all of it is measured. What
is measured stays: the same command goes on after the last stage that was.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

# The measuring process imports nothing heavy: a child's peak begins with its parent's.
ROOT = Path(__file__).resolve().parent.parent
MEASURED = "measured.jsonl"
SIZES = (100_000, 300_000, 1_000_000)
MSMARCO = 8_841_823  # passages
LIMIT = 6e9  # bytes a stage may hold
BYTES_A_PASSAGE = 30_000  # of disk: vectors 16.4 kB, the rest WARP's files, written twice over, and texts
TOKENS, QUERIES, QUERY_TOKENS = 64, 16, 32
SAMPLE = 20  # ScaNN sees one passage in so many
WORDS, TOPICS, WIDTH, SEED = 30_000, 600, 128, 0
PARTITIONS, SAMPLED = 1024, 4096
WARP = (f"index.num_partitions={PARTITIONS}", f"index.n_samples_kmeans={SAMPLED}")


@dataclass(frozen=True)
class Work:
    """One measured process: a collection ("all" or "sample"), overrides, and the stage of the pipeline it ends with."""

    name: str
    until: str
    words: tuple[str, ...] = ()
    collection: str = "all"
    follows: bool = True  # its time grows with the passages, not with the queries


EXACT = ("index=exact", "retrieve.scoring=xtr", "retrieve.k_prime=1000", "retrieve.imputation=min")
SCANN = ("index=scann", *EXACT[1:])
WORK = (
    Work("data", "data"),
    Work("documents", "documents"),
    Work("queries", "queries", follows=False),
    Work("exact search", "retrieve", EXACT),
    Work("evaluate", "evaluate", EXACT, follows=False),
    Work("geometry", "analyze", (*EXACT, "analyze.name=geometry"), follows=False),
    Work("sample documents", "documents", collection="sample", follows=False),  # hardly a shard
    Work("scann build", "index", SCANN, "sample"),
    Work("scann search", "retrieve", SCANN, "sample"),
    Work("scann evaluate", "evaluate", SCANN, "sample", follows=False),
    Work("distribution", "analyze", (*EXACT, "analyze.name=distribution")),
    Work("warp build", "index", ("index=warp", *WARP)),
    Work("warp search", "retrieve", ("index=warp", *WARP)),
    Work("warp evaluate", "evaluate", ("index=warp", *WARP), follows=False),
)


@dataclass(frozen=True)
class Row:
    """What one process came to. `passages` are those of its collection, `size` those of the whole."""

    size: int
    stage: str
    passages: int
    seconds: float
    cpu: float
    anonymous: int  # bytes
    resident: int  # bytes, file pages included
    written: int  # bytes
    ndcg: float | None  # nDCG@10, where it evaluates
    threads: int
    processor: str


# --- in a process of its own ---------------------------------------------------------------------------------------


def topic_words(rng: Any) -> Any:
    """(TOPICS, WORDS / TOPICS) word numbers of each topic."""
    return rng.permutation(WORDS).reshape(TOPICS, -1)


def passages(count: int, seed: int = SEED) -> Iterator[tuple[str, str]]:
    """(id, text) of `count` passages of TOKENS - 2 words, half of them of the passage's topic, half of any. The first
    of a longer sequence are those of a shorter one."""
    import numpy as np

    rng = np.random.default_rng(seed)
    topics = topic_words(rng)
    names = np.array([f"w{i}" for i in range(WORDS)], dtype=object)
    length, chunk = TOKENS - 2, 1000
    for start in range(0, count, chunk):
        own = topics[rng.integers(TOPICS, size=chunk)]
        chosen = np.take_along_axis(own, rng.integers(own.shape[1], size=(chunk, length)), axis=1)
        words = np.where(rng.random((chunk, length)) < 0.5, chosen, rng.integers(WORDS, size=(chunk, length)))
        for i, row in enumerate(names[words[: count - start]]):
            yield f"p{start + i}", " ".join(row)


def write_collection(folder: Path, count: int) -> None:
    """A BEIR folder of `count` passages and QUERIES queries, of QUERY_TOKENS - 2 words of one passage in disorder."""
    import numpy as np

    from xtrrep.data.folder import write_beir

    rng = np.random.default_rng(SEED + 1)
    asked = {f"p{number}": f"q{i}" for i, number in enumerate(rng.choice(min(count, 10_000), QUERIES, replace=False))}
    queries = [
        (asked[name], " ".join(rng.permutation(text.split())[: QUERY_TOKENS - 2]))
        for name, text in passages(10_000)
        if name in asked
    ]
    write_beir(
        folder,
        "test",
        documents=((name, "", text) for name, text in passages(count)),
        queries=queries,
        qrels=[(query, name, 1) for name, query in asked.items()],
    )


def write_model(folder: Path) -> None:
    """A backbone of one layer whose word vectors lie around a centre for each topic, and its tokenizer by words."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(SEED)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=WIDTH,
            max_position_embeddings=TOKENS,
        ),
        add_pooling_layer=False,
    )
    topics = topic_words(np.random.default_rng(SEED))
    with torch.no_grad():
        table = model.embeddings.word_embeddings.weight
        table.normal_()
        for words in topics:
            table[torch.from_numpy(words + len(special))] += torch.randn(WIDTH)
    model.save_pretrained(folder)


def overrides(home: Path, work: Work, threads: int) -> list[str]:
    """What composes a stage's config."""
    return [
        "model.source=untrained",
        f"model.backbone={home / 'model'}",
        f"model.n_query={QUERY_TOKENS}",
        f"model.n_doc={TOKENS}",
        "data=folder",
        f"data.path={home / 'input' / work.collection}",
        "data.measures=[nDCG@10]",
        "machine.device=cpu",
        "machine.encode_tokens=8192",
        f"machine.threads={threads}",
        *work.words,
    ]


def prepare(home: Path, size: int) -> None:
    write_model(home / "model")
    write_collection(home / "input" / "all", size)
    write_collection(home / "input" / "sample", size // SAMPLE)


def worker(home: Path, name: str, threads: int) -> dict[str, Any]:
    """Carry one stage out, everything before it being there; what it took."""
    import scann  # noqa: F401
    import sentence_transformers  # noqa: F401
    import torch
    import xtr_warp  # noqa: F401

    from xtrrep import artifacts, pipeline
    from xtrrep.config import compose
    from xtrrep.experiments.analysis import plan_analysis, run_analysis
    from xtrrep.experiments.cell import parse_overrides
    from xtrrep.retrieval.latency import processor

    torch.set_num_threads(threads)
    work = next(work for work in WORK if work.name == name)
    words = overrides(home, work, threads)
    start, cpu = time.monotonic(), time.process_time()
    if work.until == "analyze":
        planned = plan_analysis(parse_overrides(words))
        ran = {step.folder for plan in planned.plans for step in plan.steps if not step.reuse}
        folder = run_analysis(planned)
        ran.add(folder)
    else:
        plan = pipeline.plan(compose(words), work.until)
        done = pipeline.run([plan])
        folder, ran = done.folders[0][work.until], set(done.ran)
    facts = artifacts.read_manifest(folder)["facts"]
    written = sum(entry["bytes"] for made in ran for entry in artifacts.read_manifest(made)["files"].values())
    return {
        "seconds": time.monotonic() - start,
        "cpu": time.process_time() - cpu,
        "resident": status(os.getpid())["VmHWM"],
        "written": written,
        "ndcg": facts.get("measures", {}).get("nDCG@10"),
        "processor": processor(),
    }


# --- measuring -----------------------------------------------------------------------------------------------------


def status(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status in bytes; empty when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    parts = (line.split() for line in lines)
    return {part[0].rstrip(":"): int(part[1]) * 1024 for part in parts if part[-1] == "kB"}


def watched(command: Sequence[str], environment: Mapping[str, str], log: Path) -> tuple[dict[str, Any], int]:
    """Run a worker to its end; what it says of itself and its largest anonymous memory in bytes.

    Raises SystemExit naming the log where it fails.
    """
    largest = 0
    with log.open("ab") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=dict(environment), cwd=ROOT)
        try:
            while process.poll() is None:
                largest = max(largest, status(process.pid).get("RssAnon", 0))
                time.sleep(0.05)
        finally:
            process.kill()
            said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"error: {' '.join(command)} failed with {process.returncode}\nhint: see {log}")
    return json.loads(said.splitlines()[-1]), largest


def measured(home: Path) -> list[Row]:
    """What a size's folder says was measured, in that order."""
    path = home / MEASURED
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def measure(home: Path, size: int, threads: int, keep: bool) -> Iterator[Row]:
    """A size's rows, those measured before first. Nothing where there is too little disk, which is said."""
    home.mkdir(parents=True, exist_ok=True)
    rows = measured(home)
    yield from rows
    todo = [work for work in WORK if work.name not in {row.stage for row in rows}]
    if not todo:
        return
    free = shutil.disk_usage(home).free
    if not rows and free < BYTES_A_PASSAGE * size:
        needed = BYTES_A_PASSAGE * size / 1e9
        print(f"skipped {size:,}: {home} has {free / 1e9:.1f} GB free, and it takes {needed:.0f}", file=sys.stderr)
        return
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(variables, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"XTRREP_HOME": str(home), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}

    def start(name: str) -> tuple[dict[str, Any], int]:
        words = ["--home", str(home.parent), "--sizes", str(size), "--threads", str(threads), "--worker", name]
        return watched([sys.executable, str(Path(__file__)), *words], environment, home / "log.txt")

    if not (home / "input" / "sample" / "qrels").is_dir():
        start("prepare")
    for work in todo:
        for partial in home.rglob(".partial-*"):  # of a stage that was killed: measured whole, or not at all
            shutil.rmtree(partial)
        print(f"{size:,} passages: {work.name}", file=sys.stderr, flush=True)
        said, anonymous = start(work.name)
        passages = size // SAMPLE if work.collection == "sample" else size
        row = Row(size=size, stage=work.name, passages=passages, anonymous=anonymous, threads=threads, **said)
        with (home / MEASURED).open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        yield row
    if not keep:
        for folder in home.iterdir():
            if folder.is_dir():
                shutil.rmtree(folder)


# --- what it says --------------------------------------------------------------------------------------------------


def line(points: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """(intercept, slope) of the least-squares line through points; raises ValueError for fewer than two places."""
    xs, ys = zip(*points, strict=True)
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    if not spread:
        raise ValueError("a line needs two places")
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    return mean_y - slope * mean_x, slope


def of_stage(rows: Sequence[Row], stage: str) -> list[Row]:
    return sorted((row for row in rows if row.stage == stage), key=lambda row: row.passages)


def by_stage(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by stage in the order of WORK, smallest size first; stages without a row are left out."""
    return {work.name: found for work in WORK if (found := of_stage(rows, work.name))}


def spread(rows: Sequence[Row]) -> float:
    """CPU seconds a passage at the largest size over those at the smallest."""
    return (rows[-1].cpu / rows[-1].passages) / (rows[0].cpu / rows[0].passages)


def extrapolated(rows: Sequence[Row], size: int, value: Callable[[Row], float]) -> tuple[float, float, float]:
    """(fixed part, part a million passages, value at `size`) by the line through a stage's rows."""
    fixed, slope = line((row.passages, value(row)) for row in rows)
    return fixed, slope * 1e6, fixed + slope * size


def tables(rows: Sequence[Row]) -> tuple[Any, Any]:
    """What was measured, and what it comes to at MS MARCO's size."""
    from xtrrep.report.table import Table

    measured, beyond = [], []
    follows = {work.name: work.follows for work in WORK}
    for stage, found in by_stage(rows).items():
        for row in found:
            each = 1e3 * row.cpu / row.passages if follows[stage] else None
            memory = [row.anonymous / 1e9, row.resident / 1e9]
            measured.append([stage, row.passages, row.seconds, row.cpu, each, *memory, row.written / 1e9, row.ndcg])
        if len(found) > 1 and follows[stage]:
            size = MSMARCO // SAMPLE if found[0].passages < found[0].size else MSMARCO
            fixed, per_million, memory_then = extrapolated(found, size, lambda row: row.anonymous / 1e9)
            *_, seconds = extrapolated(found, size, lambda row: row.cpu)
            *_, disk = extrapolated(found, size, lambda row: row.written / 1e9)
            beyond.append([stage, spread(found), fixed, per_million, size, memory_then, seconds / 3600, disk])
    columns = ["stage", "passages", "seconds", "CPU s", "CPU ms a passage", "anonymous GB", "resident GB"]
    notes = [
        f"Passages of {TOKENS} tokens, dimension {WIDTH}, float16; {QUERIES} queries of {QUERY_TOKENS} tokens, exact "
        f"and ScaNN at k' = 1,000; WARP with {PARTITIONS:,} partitions of {SAMPLED:,} sampled passages; ScaNN over one "
        f"passage in {SAMPLE}.",
        "anonymous: the largest RssAnon, memory that only this process can give back, and what the bound of "
        f"{LIMIT / 1e9:.0f} GB is about; resident: the largest VmHWM, pages of files included.",
        f"Threads: {', '.join(sorted({str(row.threads) for row in rows}))}; "
        f"{', '.join(sorted({row.processor for row in rows}))}.",
    ]
    first = Table("Measured", [*columns, "written GB", "nDCG@10"], measured, notes, digits=3)
    columns = ["stage", "CPU a passage, largest / smallest", "GB at 0", "GB a million", "passages", "GB there"]
    notes = ["Lines by least squares through the sizes above: anonymous memory, CPU time and files written."]
    return first, Table("Extrapolated", [*columns, "CPU h there", "written GB there"], beyond, notes, digits=2)


def write(rows: Sequence[Row], out: Path, page: Path | None) -> None:
    """scale.csv, scale.md, scale.png, .svg and .pdf in `out`; with a `page`, its tables and its figure renewed."""
    from xtrrep.artifacts import write_atomic
    from xtrrep.report.figure import scale_curves
    from xtrrep.report.table import Table

    out.mkdir(parents=True, exist_ok=True)
    first, second = tables(rows)
    text = f"{first.markdown()}\n{second.markdown()}"
    write_atomic(out / "scale.md", lambda file: file.write(text.encode()))
    names = [field.name for field in fields(Row)]
    Table("", names, [list(asdict(row).values()) for row in rows]).save_csv(out / "scale.csv")
    shown = {stage: found for stage, found in by_stage(rows).items() if found[0].passages == found[0].size}
    follows = {work.name for work in WORK if work.follows}
    panels = {
        "CPU ms a passage": {
            s: [(r.passages, 1e3 * r.cpu / r.passages) for r in found] for s, found in shown.items() if s in follows
        },
        "anonymous memory, GB": {s: [(r.passages, r.anonymous / 1e9) for r in found] for s, found in shown.items()},
    }
    scale_curves(panels, {"anonymous memory, GB": LIMIT / 1e9}, out / "scale")
    if page is not None:
        begin, end = "<!-- measured -->\n", "<!-- /measured -->"
        before, _, rest = page.read_text(encoding="utf-8").partition(begin)
        after = rest.partition(end)[2]
        new = before + begin + text + end + after
        write_atomic(page, lambda file: file.write(new.encode()))
        for name in ("scale.svg", "scale.csv"):
            shutil.copyfile(out / name, page.parent / name)
    print(first.terminal())
    print(second.terminal())


KINDS: dict[str, Callable[[str], Any]] = {
    "stage": str,
    "processor": str,
    "seconds": float,
    "cpu": float,
    "ndcg": lambda text: float(text) if text else None,
}


def read_rows(path: Path) -> list[Row]:
    """The rows of a scale.csv."""
    with path.open(encoding="utf-8", newline="") as file:
        found = []
        for given in csv.DictReader(file):
            found.append(Row(**{name: KINDS.get(name, int)(text) for name, text in given.items()}))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="passages")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--home", type=Path, default=ROOT / "artifacts" / "scale", help="where the data may lie")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "runs" / "scale")
    parser.add_argument("--page", type=Path, help="a page whose tables and figure are to be renewed, docs/SCALE.md")
    parser.add_argument("--keep", action="store_true", help="leave the artifacts of a size that is measured")
    parser.add_argument("--report", action="store_true", help="measure nothing: write what was measured so far")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    home = options.home.resolve()
    if options.worker:
        (size,) = options.sizes
        if options.worker == "prepare":
            prepare(home / str(size), size)
            print("{}")
        else:
            print(json.dumps(worker(home / str(size), options.worker, options.threads)))
        return 0
    rows: list[Row] = []
    for size in sorted(options.sizes):
        folder = home / str(size)
        rows += measured(folder) if options.report else measure(folder, size, options.threads, options.keep)
    if not rows:
        return 3
    write(rows, options.out, options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
