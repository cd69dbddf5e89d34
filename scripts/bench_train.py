"""Seconds and memory of the training objective, forward and backward, beside its peers and beside the limit.

    .venv/bin/python scripts/bench_train.py --pylate "$(scripts/pylate_env.sh)" \
        --documents artifacts/documents/FOLDER --queries artifacts/queries/FOLDER

float32, Q queries of 32 tokens, 2 documents a query, dimension 128. A case is a batch size, a document length, the kind
of embeddings (random unit vectors; or real ones out of two embedding stores, synthetic clusters where none is named)
and whether documents are masked (lengths uniform in [length / 3, length]; query tokens are all real, as with [MASK]
expansion). Finished cases are kept in OUT/cases and not measured again, so that a run may be split or killed; the table
is made of all of them.

What is measured. In every case each contestant has a fresh process of its own, which first imports what it needs and
scores one tiny batch. Then five rounds: in each, one contestant after the other (another one begins each round) loads
the same inputs, waits, and computes scores, cross-entropy over a temperature, and the gradients of queries and
documents; all others sleep. A round's seconds are the median of its passes, as many as fit half a second, at least one.
Ratios are taken within a round, and the median of the five is reported.

Extra memory of a pass is what it holds beyond its inputs and their gradients:

    max(peak of the forward - before,  peak of the backward - before - bytes of the two gradients)

where `peak` is the process's largest resident set (VmHWM, set back through /proc/self/clear_refs before the forward and
before the backward) and `before` its resident set with the inputs loaded and no gradient allocated. No gradient is
alive in the forward, so nothing is taken off there. The largest over all rounds counts: memory that an allocator keeps
cannot hide, for in the first round there is none yet.

The limit is the one product nobody can avoid, forward only: real query tokens by real document tokens, torch.mm block
by block into one buffer that is used again. Block shapes are searched in both orientations on an eighth of the tokens;
the best three run in every round, and the best median counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contestant import BUSY, ROOT, rotated, started, tell

# A worker runs in PyLate's environment too: at the top nothing but the standard library.
QUERY_TOKENS, WAYS, DIMENSIONS = 32, 2, 128
PASS_SECONDS = 0.5  # a round repeats its pass within this
MB = 1e6

Loss = Callable[[Any, Any, Any], Any]


# Contestants. Each is made in its own process and takes (Q, T, H), (Q, 2, S, H) and a (Q, 2, S) mask or None.


def cross_entropy(scores: Any, temperature: float) -> Any:
    import torch

    labels = torch.arange(scores.shape[0]) * WAYS
    return torch.nn.functional.cross_entropy(scores / temperature, labels)


def ours(k_train: int | list[int]) -> Callable[[], Loss]:
    def make() -> Loss:
        from xtrrep.train.xtr import XTRScores

        scorer = XTRScores(k_train=k_train)

        def loss(queries: Any, documents: Any, mask: Any) -> Any:
            scores = scorer(queries, documents, None, mask)
            many = scores if isinstance(scores, list) else [scores]
            return sum(cross_entropy(one, 0.05) for one in many) / len(many)

        return loss

    return make


def our_maxsim() -> Loss:
    from xtrrep.train.maxsim import maxsim_scores

    return lambda queries, documents, mask: cross_entropy(maxsim_scores(queries, documents, None, mask), 1.0)


def sentence_transformers_xtr() -> Loss:
    from sentence_transformers.multi_vector_encoder.scoring import XTRScores

    scorer = XTRScores(128)
    return lambda queries, documents, mask: cross_entropy(scorer(queries, documents, None, mask), 0.05)


def sentence_transformers_maxsim() -> Loss:
    from sentence_transformers.multi_vector_encoder.scoring import colbert_scores

    return lambda queries, documents, mask: cross_entropy(colbert_scores(queries, documents, None, mask), 1.0)


def pylate_xtr() -> Loss:
    from pylate.scores import XTRScores

    scorer = XTRScores(k=128)
    return lambda queries, documents, mask: cross_entropy(scorer(queries, documents, None, mask), 0.05)


def pylate_maxsim() -> Loss:
    from pylate.scores import ColBERTScores

    scorer = ColBERTScores()
    return lambda queries, documents, mask: cross_entropy(scorer(queries, documents, None, mask), 1.0)


OURS, MULTI, K512, OUR_MAXSIM = "ours k 128", "ours k 128, 256, 512", "ours k 512", "ours MaxSim"
ST_XTR, ST_MAXSIM, PL_XTR, PL_MAXSIM = "st XTR", "st MaxSim", "PyLate XTR", "PyLate MaxSim"
LIMIT = "limit"
CONTESTANTS: dict[str, Callable[[], Loss] | None] = {
    OURS: ours(128),
    MULTI: ours([128, 256, 512]),
    K512: ours(512),
    OUR_MAXSIM: our_maxsim,
    ST_XTR: sentence_transformers_xtr,
    ST_MAXSIM: sentence_transformers_maxsim,
    PL_XTR: pylate_xtr,
    PL_MAXSIM: pylate_maxsim,
    LIMIT: None,
}
PEERS = {ST_XTR, ST_MAXSIM, PL_XTR, PL_MAXSIM}


# The worker


def status(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def reset_peak() -> bool:
    """Set the peak back to the present; False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(resettable: bool) -> int:
    return status("VmHWM") if resettable else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load_inputs(folder: Path) -> tuple[Any, Any, Any]:
    import numpy as np
    import torch

    queries, documents = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("queries", "documents"))
    mask = torch.from_numpy(np.load(folder / "mask.npy")) if (folder / "mask.npy").exists() else None
    return queries, documents, mask


def one_pass(loss: Loss, queries: Any, documents: Any, mask: Any) -> tuple[float, int]:
    """(seconds of forward and backward, extra bytes)."""
    queries.grad = documents.grad = None
    resettable = reset_peak()
    before = status("VmRSS")
    start = time.perf_counter()
    value = loss(queries, documents, mask)
    forward = time.perf_counter() - start
    forward_peak = peak_bytes(resettable)
    reset_peak()
    start = time.perf_counter()
    value.backward()
    backward = time.perf_counter() - start
    gradients = 4 * (queries.numel() + documents.numel())
    extra = max(forward_peak - before, peak_bytes(resettable) - before - gradients)
    return forward + backward, extra


def one_round(loss: Loss, folder: Path) -> dict[str, Any]:
    queries, documents, mask = load_inputs(folder)
    queries.requires_grad_()
    documents.requires_grad_()
    start = time.perf_counter()
    passes = [one_pass(loss, queries, documents, mask)]
    while time.perf_counter() - start + passes[0][0] < PASS_SECONDS:
        passes.append(one_pass(loss, queries, documents, mask))
    return {
        "seconds": {"pass": statistics.median(seconds for seconds, _ in passes)},
        "extra": max(extra for _, extra in passes),
    }


def blocked_product(rows: Any, tokens: Any, row_block: int, token_block: int, tall: bool, buffer: Any) -> None:
    """rows (R, H) by tokens (M, H), block by block into `buffer`; `tall` writes (tokens, rows) blocks."""
    import torch

    for start in range(0, len(tokens), token_block):
        some = tokens[start : start + token_block]
        for first in range(0, len(rows), row_block):
            part = rows[first : first + row_block]
            left, right = (some, part) if tall else (part, some)
            torch.mm(left, right.t(), out=buffer[: len(left) * len(right)].view(len(left), len(right)))


def limit_rounds(folder: Path) -> Callable[[], dict[str, Any]]:
    """Search the block shapes, and return what a round does."""
    import torch

    queries, documents, mask = load_inputs(folder)
    rows = queries.flatten(0, 1)
    tokens = (documents[mask] if mask is not None else documents.flatten(0, 2)).contiguous()
    shapes = [
        (row_block, token_block, tall)
        for row_block in (128, 256, 512, 1024)
        for token_block in (1024, 2048, 4096, 8192)
        for tall in (False, True)
    ]
    buffer = torch.empty(1024 * 8192)

    def timed(part: Any, shape: tuple[int, int, bool]) -> float:
        start = time.perf_counter()
        blocked_product(rows, part, *shape, buffer)
        return time.perf_counter() - start

    part = tokens[: max(len(tokens) // 8, 8192)]
    times: dict[tuple[int, int, bool], float] = {}
    for _ in range(2):
        for shape in shapes:
            times[shape] = min(timed(part, shape), times.get(shape, float("inf")))
    best = sorted(times, key=lambda shape: times[shape])[:3]

    def a_round() -> dict[str, Any]:
        seconds = {}
        for row_block, token_block, tall in best:
            passes = [timed(tokens, (row_block, token_block, tall))]
            while sum(passes) + passes[0] < PASS_SECONDS / 2:
                passes.append(timed(tokens, (row_block, token_block, tall)))
            name = f"{token_block} x {row_block}" if tall else f"{row_block} x {token_block}"
            seconds[name] = statistics.median(passes)
        return {"seconds": seconds, "extra": 0}

    return a_round


def worker(contestant: str, folder: Path, threads: int) -> int:
    """Make the contestant, say so, and run a round for every line on stdin."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    torch.set_num_threads(threads)
    maker = CONTESTANTS[contestant]
    if maker is None:
        found: list[Callable[[], dict[str, Any]]] = []

        def run() -> dict[str, Any]:
            if not found:  # in the first round, when all others sleep
                found.append(limit_rounds(folder))
            return found[0]()

    else:
        loss = maker()
        queries, documents = torch.randn(2, 4, DIMENSIONS), torch.randn(2, WAYS, 64, DIMENSIONS)
        loss(queries.requires_grad_(), documents.requires_grad_(), None).backward()
        del queries, documents

        def run() -> dict[str, Any]:
            return one_round(loss, folder)

    versions = {"torch": torch.__version__}
    for package in ("sentence-transformers", "pylate"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    tell({"versions": versions, "threads": torch.get_num_threads(), "peak_resettable": reset_peak()})
    for _ in sys.stdin:
        tell(run())
        gc.collect()
    return 0


# Inputs


def unit(values: Any) -> Any:
    import numpy as np

    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def random_unit(batch: int, length: int) -> tuple[Any, Any]:
    """(queries (Q, T, H), documents (Q, 2, S, H)) without any structure."""
    import numpy as np

    rng = np.random.default_rng(0)
    queries = rng.standard_normal((batch, QUERY_TOKENS, DIMENSIONS), dtype=np.float32)
    documents = rng.standard_normal((batch, WAYS, length, DIMENSIONS), dtype=np.float32)
    return unit(queries), unit(documents)


def cut(store: Path, pieces: int, length: int) -> Any:
    """(pieces, length, H) out of an embedding store: its texts shuffled, laid end to end and cut, each token once."""
    import numpy as np

    from xtrrep.console import DataError
    from xtrrep.store.encode import Store

    opened = Store.open(store)
    if opened.tokens < pieces * length or opened.dim != DIMENSIONS:
        raise DataError(
            f"{store} holds {opened.tokens:,} vectors of dimension {opened.dim}; this case takes "
            f"{pieces * length:,} of {DIMENSIONS}",
            hint="a larger store of a model with model.dim=128, or a smaller --batch",
        )
    taken, total = [], 0
    for text in np.random.default_rng(0).permutation(len(opened)):
        if total >= pieces * length:
            break
        taken.append(np.asarray(opened.vectors(int(text)), np.float32))
        total += len(taken[-1])
    return np.concatenate(taken)[: pieces * length].reshape(pieces, length, DIMENSIONS)


def clustered(batch: int, length: int, documents: Path | None, queries: Path | None) -> tuple[Any, Any, str]:
    """(queries, documents, label) of a trained model, from a `documents` and a `queries` embedding store.

    Documents are cut from the stores' texts laid end to end: repeating a short text to the length would make exact
    ties, which no batch of different texts has. Without stores: synthetic clusters around 500 centres with a common
    direction, and the label says so.
    """
    import numpy as np

    if documents is not None and queries is not None:
        found = cut(documents, batch * WAYS, length).reshape(batch, WAYS, length, DIMENSIONS)
        return cut(queries, batch, QUERY_TOKENS), found, f"from the stores {documents.name} and {queries.name}"
    rng = np.random.default_rng(1)
    common = unit(rng.standard_normal(DIMENSIONS))
    centres = unit(0.6 * unit(rng.standard_normal((500, DIMENSIONS))) + 0.6 * common)

    def around(*shape: int) -> Any:
        noise = rng.standard_normal((*shape, DIMENSIONS), dtype=np.float32) / np.sqrt(DIMENSIONS)
        return unit(centres[rng.integers(0, len(centres), shape)] + 0.5 * noise)

    label = "synthetic clusters (no embedding store was named)"
    return around(batch, QUERY_TOKENS), around(batch, WAYS, length), label


def write_inputs(case: Case, folder: Path, documents: Path | None, queries: Path | None) -> str:
    """Write a case's inputs where the workers read them; returns what the embeddings are."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    if case.values == "random":
        asked, found, label = *random_unit(case.batch, case.length), "random unit vectors"
    else:
        asked, found, label = clustered(case.batch, case.length, documents, queries)
    np.save(folder / "queries.npy", asked)
    np.save(folder / "documents.npy", found)
    (folder / "mask.npy").unlink(missing_ok=True)
    if case.masked:
        rng = np.random.default_rng(2)
        lengths = rng.integers(-(-case.length // 3), case.length + 1, (case.batch, WAYS, 1))
        np.save(folder / "mask.npy", np.arange(case.length) < lengths)
    return label


# The parent


@dataclass(frozen=True)
class Case:
    batch: int
    length: int
    values: str  # random | clustered
    masked: bool

    @property
    def name(self) -> str:
        return f"{self.batch} x {self.length}, {self.values}" + (", masked" if self.masked else "")

    @property
    def grid_bytes(self) -> int:
        """One score matrix of all query tokens by all document tokens, which the peers hold several times."""
        return 4 * self.batch * QUERY_TOKENS * self.batch * WAYS * self.length


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def reason_to_skip(case: Case, contestant: str, pylate: Path | None, everything: bool) -> str | None:
    """Why a contestant does not run in a case, for the footer; None where it does."""
    if contestant in (PL_XTR, PL_MAXSIM) and pylate is None:
        return "PyLate: no environment was named (--pylate)"
    if contestant in PEERS and case.batch >= 128 and not everything:
        rest = "left out at the largest batch, where a pass takes 10 to 20 s"
        if case.masked or (case.values == "clustered" and case.length < 300):
            return f"peers on masked documents, and on clustered ones below 300 tokens: {rest}"
        if contestant in (ST_MAXSIM, PL_MAXSIM) and (case.values != "random" or case.length < 300):
            return f"MaxSim of the peers but for random documents of 300 tokens: {rest}"
    # Measured at the largest batch: 3.2 grids (PyLate) and 3.9 (sentence-transformers).
    if contestant in PEERS and available_bytes() < 4.5 * case.grid_bytes:
        return f"{contestant} at {case.batch} x {case.length}: less than {4.5 * case.grid_bytes / 1e9:.0f} GB were free"
    return None


def run_case(case: Case, args: argparse.Namespace, bar: Any) -> dict[str, Any]:
    """Measure a case; see the top of the file."""
    folder = args.out / "inputs"
    label = write_inputs(case, folder, args.documents, args.queries)
    notes: list[str] = []
    names = []
    for name in args.contestants:
        reason = reason_to_skip(case, name, args.pylate, args.everything)
        if reason is None:
            names.append(name)
        elif reason not in notes:
            notes.append(reason)
    pythons = {name: args.pylate if name in (PL_XTR, PL_MAXSIM) else Path(sys.executable) for name in names}
    rounds: dict[str, list[dict[str, Any]]] = {}
    versions: dict[str, str] = {}
    resettable = True
    script = Path(__file__).resolve()
    commands = {
        name: [pythons[name], script, "--worker", name, "--inputs", folder, "--threads", str(args.threads)]
        for name in names
    }
    with started(commands, args.threads) as workers:

        def ask(name: str, question: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
            """An answer, or None, a note and one contestant less."""
            try:
                return question()
            except (RuntimeError, OSError) as error:
                notes.append(str(error))
                rounds.pop(name, None)
                del workers[name]
                return None

        for name in names:
            facts = ask(name, workers[name].answer)
            if facts is not None:
                own = facts["versions"]
                peer = name.startswith("PyLate")  # which brings a torch and a sentence-transformers of its own
                versions |= {
                    f"{package} of PyLate" if peer and package != "pylate" else package: own[package] for package in own
                }
                resettable &= facts["peak_resettable"]
        for number in range(args.rounds):
            for name in rotated(names, number):
                if name in workers:
                    bar.set_postfix_str(f"{case.name}: {name}", refresh=sys.stderr.isatty())
                    one = ask(name, workers[name].ask)
                    if one is not None:
                        rounds.setdefault(name, []).append(one)
            bar.update(1)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return {
        "case": asdict(case),
        "embeddings": label,
        "conditions": conditions(args),
        "versions": versions,
        "peak_resettable": resettable,
        "load_before": args.load,
        "rounds": rounds,
        "notes": notes,
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for two cases to stand in one table."""
    import hashlib
    from importlib.metadata import version

    code = [Path(__file__), *sorted((ROOT / "xtrrep" / "train").glob("*.py"))]
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "rounds": args.rounds,
        "torch": version("torch"),
        "code": hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()[:12],
        "stores": [str(path and path.name) for path in (args.documents, args.queries)],
    }


# The tables


def seconds_of(rounds: list[dict[str, Any]]) -> list[float]:
    """One number a round: of several block shapes, that with the best median."""
    shapes = rounds[0]["seconds"]
    best = min(shapes, key=lambda shape: statistics.median(r["seconds"][shape] for r in rounds))
    return [r["seconds"][best] for r in rounds]


def ratio(rounds: dict[str, Any], name: str, base: str) -> float | None:
    """The median over rounds of seconds of `name` over seconds of `base` in the same round."""
    if name not in rounds or base not in rounds:
        return None
    pairs = zip(seconds_of(rounds[name]), seconds_of(rounds[base]), strict=True)
    return statistics.median(a / b for a, b in pairs)


def extra_of(rounds: dict[str, Any], name: str) -> float | None:
    return max(r["extra"] for r in rounds[name]) / MB if name in rounds else None


def tables(found: list[dict[str, Any]]) -> tuple[Any, Any]:
    """(seconds, memory): one row a case, contestants as columns."""
    from xtrrep.report.table import Table

    columns = [MULTI, K512, OUR_MAXSIM, ST_XTR, PL_XTR, ST_MAXSIM, PL_MAXSIM]
    times, memories = [], []
    for result in found:
        rounds, case = result["rounds"], Case(**result["case"])
        if OURS not in rounds:
            continue
        seconds = statistics.median(seconds_of(rounds[OURS]))
        times.append(
            [case.name, seconds]
            + [ratio(rounds, name, OURS) for name in columns]
            + [ratio(rounds, MULTI, K512), ratio(rounds, OURS, LIMIT), ratio(rounds, OUR_MAXSIM, LIMIT)]
        )
        base = extra_of(rounds, OURS)
        others = [extra_of(rounds, name) for name in columns]
        memories.append([case.name, base, *(None if e is None or not base else e / base for e in others)])
    first = found[0]
    given = first["conditions"]
    versions = {name: value for result in found for name, value in result["versions"].items()}
    notes = sorted({note for result in found for note in result["notes"]})
    labels = sorted({result["embeddings"] for result in found})
    load = max(result["load_before"] for result in found)
    footer = [
        "batch x document length; 2 documents a query, 32 query tokens, dimension 128, float32; forward and backward.",
        f"{given['processor']}, {given['cores']} cores, {given['threads']} threads; "
        + ", ".join(f"{name} {value}" for name, value in sorted(versions.items())),
        f"Median over {given['rounds']} interleaved rounds of ratios within a round, a fresh process a contestant and "
        "case; how, and what counts as extra memory, stands at the top of scripts/bench_train.py.",
        "Embeddings: " + "; ".join(labels) + ". st is sentence-transformers.",
        "limit: the best cache-blocked product of real query tokens by real document tokens, forward only.",
        *(
            []
            if all(r["peak_resettable"] for r in found)
            else ["Peaks could not be set back here: memory is too high."]
        ),
        *(f"Not run: {note}." for note in notes),
        *([f"Other processes were at work when a run began: load {load:.1f}."] if load > BUSY else []),
    ]
    time_columns = ["case", f"{OURS}, s", *(f"{name} / ours" for name in columns)]
    time_columns += ["multi k / k 512", "ours / limit", "our MaxSim / limit"]
    memory_columns = ["case", f"{OURS}, MB", *(f"{name} / ours" for name in columns)]
    return (
        Table("Seconds of the training objective", time_columns, times, footer, digits=3),
        Table("Extra memory of the training objective", memory_columns, memories, digits=2),
    )


def raw_rows(found: list[dict[str, Any]]) -> Iterator[list[object]]:
    for result in found:
        for name, rounds in result["rounds"].items():
            for number, one in enumerate(rounds):
                for shape, seconds in one["seconds"].items():
                    case = Case(**result["case"])
                    yield [case.name, name, shape, number, seconds, one["extra"] / MB]


def report(args: argparse.Namespace) -> None:
    """Write bench_train.md and .csv from all finished cases under the same conditions."""
    from xtrrep.artifacts import write_atomic
    from xtrrep.report.table import Table

    found = [json.loads(path.read_text()) for path in args.out.glob("cases/*.json")]
    found = [result for result in found if result["conditions"] == conditions(args)]
    if not any(OURS in result["rounds"] for result in found):
        return
    found.sort(key=lambda r: tuple(r["case"].values()))
    times, memories = tables(found)
    raw = Table("", ["case", "contestant", "what", "round", "seconds", "extra MB"], list(raw_rows(found)))
    text = times.markdown() + "\n" + memories.markdown()
    write_atomic(args.out / "bench_train.md", lambda file: file.write(text.encode()))
    write_atomic(args.out / "bench_train.csv", lambda file: file.write(raw.csv().encode()))
    print(times.terminal())
    print()
    print(memories.terminal())


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "runs" / "bench_train")
    parser.add_argument(
        "--pylate", type=lambda text: Path(text) if text else None, help="Python of PyLate's environment"
    )
    parser.add_argument("--documents", type=Path, help="a finished `documents` embedding store")
    parser.add_argument("--queries", type=Path, help="a finished `queries` embedding store")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 64, 196])
    parser.add_argument("--length", type=int, nargs="+", default=[180, 300])
    parser.add_argument("--values", nargs="+", choices=["random", "clustered"], default=["random", "clustered"])
    parser.add_argument("--masks", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--everything", action="store_true", help="the peers in every case of the largest batch too")
    parser.add_argument("--again", action="store_true", help="measure finished cases once more")
    parser.add_argument("--quick", action="store_true", help="two rounds of tiny shapes, to see that it runs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.batch, args.length, args.rounds = [4], [24, 40], 2
    if (args.documents is None) != (args.queries is None):
        parser.error("--documents and --queries go together")
    if args.pylate is not None and not args.pylate.exists():
        parser.error(f"no Python at {args.pylate}; hint: scripts/pylate_env.sh prints one")
    args.out = args.out.resolve()
    args.load = os.getloadavg()[0]
    return args


def main(argv: list[str]) -> int:
    args = parse(argv)
    if args.worker:
        return worker(args.worker, args.inputs, args.threads)

    from xtrrep.artifacts import write_json
    from xtrrep.console import XtrrepError, fail, progress, say

    cases = [
        Case(batch, length, values, masks == "yes")
        for batch in args.batch
        for length in args.length
        for values in args.values
        for masks in args.masks
    ]
    if args.load > BUSY:
        say(f"warning: the machine is busy (load {args.load:.1f}); a third busy process on two cores distorts all")
    (args.out / "cases").mkdir(parents=True, exist_ok=True)
    with progress(len(cases) * args.rounds, "bench-train", "round") as bar:
        for case in cases:
            path = args.out / "cases" / (case.name.replace(", ", "-").replace(" ", "") + ".json")
            done = json.loads(path.read_text()) if path.exists() and not args.again else None
            if done and done["conditions"] == conditions(args):
                say(f"reuse {path}")
                bar.update(args.rounds)
                continue
            try:
                result = run_case(case, args, bar)
            except XtrrepError as error:
                return fail(error)
            write_json(path, result)
    report(args)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
