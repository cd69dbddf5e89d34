"""Record what PyLate's own XTR and ColBERT scoring gives on small fixed inputs, or compare with it live.

    PYTHON=$(scripts/pylate_env.sh)
    PYTHONPATH=. $PYTHON scripts/record_peers.py record tests/peers/pylate.json
    PYTHONPATH=. $PYTHON scripts/record_peers.py compare WEIGHTS

PyLate 1.6 cannot be installed beside this project (it pins other versions of sentence-transformers and of both
engines), so this runs in PyLate's own environment, where of what we need only torch is sure to be there. `compare`
builds a ColBERT model of PyLate from the transformer folder WEIGHTS and puts our scorers into PyLate's unmodified
losses; it prints one JSON object. `tests/test_xtr_peers.py` reads both.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MULTIPLIER, INCREMENT = 6364136223846793005, 1442695040888963407  # Knuth's MMIX
BITS = 8  # inputs are multiples of 2^-8: every inner product is exact in float32, in every version of torch


@dataclass(frozen=True)
class Case:
    """Q queries of T tokens, N documents a query of S tokens, H dimensions and one more that shifts every score.

    `shift` is added to all scores, `sunk` (a document's number: amount) lowers those of one document. `lengths` and
    `query_lengths` are the numbers of real tokens, document by document; none: everything is real and no mask is given.
    """

    seed: int
    k: int
    shift: float = 0.0
    sunk: tuple[tuple[int, float], ...] = ()
    lengths: tuple[int, ...] | None = None
    query_lengths: tuple[int, ...] | None = None
    shape: tuple[int, int, int, int, int] = (3, 4, 2, 5, 6)


MIXED_LENGTHS = (5, 2, 3, 1, 4, 5)
CASES = {
    "all scores positive": Case(1, 7, shift=8.0),
    "all scores positive, masked": Case(2, 7, shift=8.0, lengths=MIXED_LENGTHS, query_lengths=(4, 1, 3)),
    "signs mixed, few retrieved": Case(3, 3),
    "signs mixed, most retrieved": Case(4, 26),
    "signs mixed, masked": Case(5, 10, lengths=(5, 2, 3, 3, 4, 5), query_lengths=(4, 2, 3)),
    "signs mixed, masked, most retrieved": Case(11, 18, lengths=(5, 4, 5, 3, 4, 5), query_lengths=(4, 3, 4)),
    "one document all negative, all retrieved": Case(6, 30, shift=8.0, sunk=((1, 11.0),)),
    "one document all negative, partly retrieved": Case(7, 27, shift=8.0, sunk=((1, 11.0),)),
    "one query, one document": Case(8, 4, shape=(1, 3, 1, 4, 5)),
    # Here PyLate's score depends on its padding; tests/test_xtr_peers.py says how.
    "padded document all negative": Case(9, 18, shift=8.0, sunk=((3, 16.0),), lengths=(5, 2, 3, 2, 4, 2)),
    "fully padded document, padding retrieved": Case(10, 30, lengths=(5, 0, 3, 1, 4, 5)),
}


def grid(seed: int, *shape: int) -> torch.Tensor:
    """Multiples of 2^-BITS in [-1, 1] from a linear congruential generator, the same everywhere."""
    values, state, size = [], seed, 2**BITS
    for _ in range(int(torch.tensor(shape).prod())):
        state = (MULTIPLIER * state + INCREMENT) % 2**64
        values.append(((state >> 33) % (2 * size + 1) - size) / size)
    return torch.tensor(values, dtype=torch.float32).view(*shape)


def inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(queries, documents, queries_mask, documents_mask) of a case."""
    q, t, n, s, h = case.shape
    queries = torch.cat([grid(case.seed, q, t, h), torch.ones(q, t, 1)], -1)
    last = torch.full((q * n, s, 1), case.shift)
    for document, amount in case.sunk:
        last[document] -= amount
    documents = torch.cat([grid(case.seed + 1000, q * n, s, h), last], -1).view(q, n, s, h + 1)

    def mask(lengths: tuple[int, ...] | None, width: int) -> torch.Tensor | None:
        return None if lengths is None else torch.arange(width) < torch.tensor(lengths)[:, None]

    documents_mask = mask(case.lengths, s)
    documents_mask = None if documents_mask is None else documents_mask.view(q, n, s)
    return queries, documents, mask(case.query_lengths, t), documents_mask


def measure(scorer: Any, case: Case) -> dict[str, torch.Tensor]:
    """Scores, and the gradients of their sum under the weights 1, 2, 3 ..."""
    queries, documents, *masks = inputs(case)
    queries.requires_grad_()
    documents.requires_grad_()
    scores = scorer(queries, documents, *masks)
    weights = torch.arange(1.0, scores.numel() + 1, dtype=scores.dtype).view_as(scores)
    (scores * weights).sum().backward()
    return {"scores": scores.detach(), "queries": queries.grad, "documents": documents.grad}


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Nested lists of nine digits, which is all a float32 has; what is not finite becomes a word."""

    def shorten(value: Any) -> Any:
        if isinstance(value, list):
            return [shorten(item) for item in value]
        number = float(f"{value:.9g}")
        return number if abs(number) < float("inf") else str(number)

    return {name: shorten(tensor.tolist()) for name, tensor in tensors.items()}


def recorded() -> dict[str, Any]:
    """Every case through PyLate's own scorers."""
    from importlib.metadata import version

    from pylate.scores import ColBERTScores, XTRKDScores, XTRScores

    found: dict[str, Any] = {"pylate": version("pylate"), "cases": {}}
    for name, case in CASES.items():
        found["cases"][name] = {
            "xtr": plain(measure(XTRScores(k=case.k), case)),
            "xtr_kd": plain({"scores": measure(XTRKDScores(k=case.k), case)["scores"]}),
            "colbert": plain(measure(ColBERTScores(), case)),
        }
    return found


def losses(weights: str) -> dict[str, Any]:
    """Loss and the norm of the gradient's difference with PyLate's scorer and with ours, in PyLate's own losses."""
    from pylate import losses as peers
    from pylate.models import ColBERT
    from pylate.scores import XTRKDScores as TheirKDScores
    from pylate.scores import XTRScores as TheirScores

    from xtrrep.train.maxsim import maxsim_scores
    from xtrrep.train.xtr import XTRKDScores, XTRScores

    torch.manual_seed(0)
    model = ColBERT(model_name_or_path=weights, device="cpu", document_length=24, query_length=12)
    model.eval()
    topics = ("a cycle in a graph", "the variance of a sample", "reading a line of a file", "the shape of an array")
    columns = (
        [f"what is {topic}" for topic in topics],
        [f"{topic}, in words: {topic}" for topic in topics],
        [f"something else than {topic}" for topic in topics],
    )
    # PyLate stacks its columns, so all documents must be padded to one width, as its collator does with these settings.
    features = [
        model.tokenize(list(texts), is_query=not i, **({"pad": True} if i else {})) for i, texts in enumerate(columns)
    ]
    # Four candidates a query: min-max of two is 0 and 1 whatever the model says, which has no gradient.
    candidates = [f"{topic} and {other}" for topic in topics for other in topics]
    lists = model.tokenize(candidates, is_query=False, pad=True)
    teacher = torch.eye(len(topics)) + torch.tensor([0.3, 0.2, 0.1, 0.0])
    k = 24

    def run(loss: Any, *given: Any) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        value = loss(*given)
        value.backward()
        return value.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def pair(build: Any, theirs: Any, ours: Any, *given: Any) -> dict[str, float]:
        (value, gradient), (our_value, our_gradient) = run(build(theirs), *given), run(build(ours), *given)
        norm = float(gradient.norm())
        return {
            "theirs": value,
            "ours": our_value,
            "norm": norm,
            "difference": float((gradient - our_gradient).norm()) / norm,
        }

    def copies() -> list[dict[str, torch.Tensor]]:
        return [dict(feature) for feature in features]

    ours = XTRScores(k_train=k, z="positive_clamped")
    return {
        "Contrastive": pair(
            lambda s: peers.Contrastive(model, score_metric=s, temperature=0.05), TheirScores(k), ours, copies()
        ),
        "CachedContrastive": pair(
            lambda s: peers.CachedContrastive(model, score_metric=s, mini_batch_size=2, temperature=0.05),
            *(TheirScores(k), ours, copies()),
        ),
        "Distillation": pair(
            lambda s: peers.Distillation(model, score_metric=s),
            *(
                TheirKDScores(k),
                XTRKDScores(k_train=k, z="positive_clamped"),
                [dict(features[0]), dict(lists)],
                teacher,
            ),
        ),
        "Contrastive, MaxSim": pair(
            lambda s: peers.Contrastive(model, **({} if s is None else {"score_metric": s})),
            *(None, maxsim_scores, copies()),
        ),
        "Contrastive, stated": pair(
            lambda s: peers.Contrastive(model, score_metric=s, temperature=0.05),
            *(TheirScores(k), XTRScores(k_train=k), copies()),
        ),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("record").add_argument("file", type=Path)
    verbs.add_parser("compare").add_argument("weights")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.verb == "record":
        args.file.write_text(json.dumps(recorded(), separators=(",", ":")) + "\n")
        return 0
    print(json.dumps({"recorded": recorded(), "losses": losses(args.weights), "python": sys.executable}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
