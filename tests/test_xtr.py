"""The XTR objective and MaxSim against a naive float64 reference: scores and gradients.

Most inputs lie on a dyadic grid, so that every inner product is exact in float32 whatever order it is summed in: then
ties are ties in every blocking of the product, and what is retrieved never hangs on rounding. Shapes as in
`xtrrep/train/xtr.py`: Q queries of T tokens, D groups of N documents of S tokens, H dimensions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OF_PRODUCTS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from xtrrep.config import compose, objective_of, temperature_of
from xtrrep.train import streaming_scores
from xtrrep.train.maxsim import maxsim_kd_scores, maxsim_scores, maxsim_scores_pairwise
from xtrrep.train.xtr import XTRKDScores, XTRScores, xtr_kd_scores, xtr_scores, xtr_scores_pairwise

VARIANTS = [
    {"z": z, "missing": missing, "mask": mask}
    for z, missing, mask in product(("retrieved", "positive_clamped"), ("zero", "drop"), ("topk", "none"))
]
DROPPED = torch.finfo(torch.float32).min
Tensor = torch.Tensor
Masks = tuple[Tensor | None, Tensor | None]


# The reference


def real_tokens(embeddings: Tensor, mask: Tensor | None) -> Tensor:
    return mask.bool() if mask is not None else (embeddings != 0).any(-1)


def naive_xtr(
    queries: Tensor,
    documents: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    *,
    k_train: int = 128,
    z: str = "retrieved",
    missing: str = "zero",
    mask: str = "topk",
) -> Tensor:
    """(Q, D*N): the whole grid, a sort, and one document after the other. Autograd does the rest."""
    asked = real_tokens(queries, queries_mask)
    kept = real_tokens(documents, documents_mask).flatten(0, 1)
    grid = [queries @ document[keep].T for document, keep in zip(documents.flatten(0, 1), kept, strict=True)]
    pool = torch.cat(grid, -1)
    size = pool.shape[-1]
    threshold = torch.full(asked.shape, -math.inf, dtype=pool.dtype)
    if mask == "topk" and size:
        threshold = pool.sort(-1, descending=True).values[..., min(k_train, size) - 1].detach()
    scores = []
    for part in grid:  # (Q, T, tokens of this document)
        if not part.shape[-1]:
            scores.append(torch.full((len(queries),), DROPPED if missing == "drop" else 0.0, dtype=part.dtype))
            continue
        retrieved = (part >= threshold[..., None]) & asked[..., None]
        hit = retrieved.any(-1)
        if z == "positive_clamped":  # what was not retrieved stands as 0, so a retrieved negative score loses to it
            best = torch.where(retrieved, part, 0.0).max(-1).values
            count = (best > 0).sum(-1).to(best).clamp(min=1e-3)  # an integer's clamp would round 1e-3 to float32
        else:
            best = torch.where(retrieved, part, -math.inf).max(-1).values
            best = torch.where(hit, best, 0.0)
            count = torch.ones(()) if z == "none" else hit.sum(-1).clamp(min=1)
        score = best.sum(-1) / count
        scores.append(score.masked_fill(~hit.any(-1), DROPPED) if missing == "drop" else score)
    return torch.stack(scores, -1)


def naive_maxsim(
    queries: Tensor, documents: Tensor, queries_mask: Tensor | None = None, documents_mask: Tensor | None = None
) -> Tensor:
    """(Q, D*N): sums over real query tokens of the maximum over real document tokens; 0 for an empty document."""
    asked = real_tokens(queries, queries_mask)
    kept = real_tokens(documents, documents_mask).flatten(0, 1)
    scores = []
    for document, keep in zip(documents.flatten(0, 1), kept, strict=True):
        part = queries @ document[keep].T
        best = part.max(-1).values if part.shape[-1] else part.new_zeros(asked.shape)
        scores.append(torch.where(asked, best, 0.0).sum(-1))
    return torch.stack(scores, -1)


def own(scores: Tensor, ways: int) -> Tensor:
    """(Q, N): the columns of each query's own documents."""
    return torch.stack([row[i * ways : (i + 1) * ways] for i, row in enumerate(scores)])


# The inputs


def embeddings(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> Tensor:
    """Random multiples of 2^-bits in [-1, 1]. An inner product of H of them is exact in float32 while 2 bits + log2 H
    stays below 24; bits = 0 gives vectors of -1, 0 and 1 and ties everywhere."""
    return torch.from_numpy(rng.integers(-(2**bits), 2**bits + 1, shape) / 2.0**bits)


def never_zero(queries: Tensor, documents: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """One more dimension, which adds half a step to every score: none is 0 and ties stay ties.

    At a retrieved score of exactly 0 the authors' form has no one gradient: the 0 may be the token's or the stand-in.
    """
    ones = torch.ones(*queries.shape[:-1], 1, dtype=queries.dtype)
    halves = torch.full((*documents.shape[:-1], 1), 2.0 ** -(2 * bits + 1), dtype=documents.dtype)
    return torch.cat([queries, ones], -1), torch.cat([documents, halves], -1)


def relative_check(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Within `tolerance` of the larger of the element and the largest element."""
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} for {tuple(expected.shape)}"
    scale = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance * scale, msg=lambda m: f"{what}: {m}"
    )


# Scores of half-precision inputs are computed in float32; only their gradients are rounded, to 8 or 11 bits.
TOLERANCE = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-5, 4e-3),
    torch.bfloat16: (1e-5, 4e-3),
}


def compare(
    scorer: Callable[..., Any],
    naive: Callable[..., Tensor],
    queries: Tensor,
    documents: Tensor,
    masks: Masks,
    dtype: torch.dtype,
    k_train: int | list[int] | None = None,
    seed: int = 0,
    **options: str,
) -> None:
    """Scores and both gradients of `scorer` are those of `naive` on the same, already rounded, inputs."""
    ours = [x.to(dtype).requires_grad_() for x in (queries, documents)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    given_k = {} if k_train is None else {"k_train": k_train}
    found = scorer(*ours, *masks, **given_k, **options)
    assert isinstance(found, list) == isinstance(k_train, list)
    found = found if isinstance(found, list) else [found]
    ks = k_train if isinstance(k_train, list) else [k_train]
    assert len(found) == len(ks)
    expected = [naive(*exact, *masks, **({} if k is None else {"k_train": k}), **options) for k in ks]
    score_tolerance, gradient_tolerance = TOLERANCE[dtype]
    generator = torch.Generator().manual_seed(seed)
    loss, exact_loss = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for k, ours_k, exact_k in zip(ks, found, expected, strict=True):
        assert ours_k.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        dropped = exact_k == DROPPED
        assert torch.equal(ours_k == DROPPED, dropped), f"k {k}: other documents are dropped"
        relative_check(
            ours_k.masked_fill(dropped, 0), exact_k.masked_fill(dropped, 0), score_tolerance, f"scores, k {k}, {dtype}"
        )
        upstream = torch.randn(exact_k.shape, generator=generator, dtype=torch.float64)
        loss = loss + (ours_k * upstream.to(ours_k.dtype)).sum()
        exact_loss = exact_loss + (exact_k * upstream).sum()
    gradients = torch.autograd.grad(loss, ours, allow_unused=True)
    # A batch without any retrieved token has no path to the inputs in the naive form.
    wanted = torch.autograd.grad(exact_loss, exact, allow_unused=True) if exact_loss.requires_grad else (None, None)
    for name, x, ours_g, exact_g in zip(("queries", "documents"), exact, gradients, wanted, strict=True):
        assert ours_g is not None, name
        assert ours_g.dtype == dtype
        exact_g = torch.zeros_like(x) if exact_g is None else exact_g
        relative_check(ours_g, exact_g, gradient_tolerance, f"gradient of {name}, k {k_train}, {dtype}")


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Masks]:
    """(queries, documents, masks) of small random shapes, masks and kinds of values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    q, t, d, n, h = (draw(st.integers(1, high)) for high in (4, 5, 4, 3, 9))
    # Long documents cross the kernel's groups of tokens, short ones its edges.
    s = draw(st.one_of(st.integers(1, 6), st.integers(1, 150)))
    bits = draw(st.sampled_from([0, 1, 9]))
    queries, documents = embeddings(rng, (q, t, h), bits), embeddings(rng, (d, n, s, h), bits)
    if draw(st.booleans()):  # copies of a document, of a token, of a query
        documents[rng.integers(d), rng.integers(n)] = documents[rng.integers(d), rng.integers(n)].clone()
        documents[:, :, rng.integers(s)] = documents[:, :, rng.integers(s)].clone()
        queries[rng.integers(q)] = queries[rng.integers(q)].clone()
    queries, documents = never_zero(queries, documents, bits)
    if draw(st.booleans()):
        documents = -documents  # every score negative more often
    masks: list[Tensor | None] = []
    for x in (queries, documents):
        kind = draw(st.sampled_from(["none", "zero rows", "random", "some groups empty", "lengths"]))
        keep = torch.from_numpy(rng.random(x.shape[:-1]) < draw(st.sampled_from([0.3, 0.9])))
        if kind == "lengths":
            lengths = torch.from_numpy(rng.integers(0, x.shape[-2] + 1, x.shape[:-2]))
            keep = torch.arange(x.shape[-2]) < lengths[..., None]
        if kind == "some groups empty":
            keep = keep & torch.from_numpy(rng.random(x.shape[:-2]) < 0.5)[..., None]
        if kind == "zero rows":
            x *= keep[..., None]
        if kind in ("random", "some groups empty", "lengths"):
            x[~keep] *= 1000  # what stands below a mask is nobody's business
            masks.append(keep.long() if draw(st.booleans()) else keep)
        else:
            masks.append(None)
    return queries, documents, (masks[0], masks[1])


dtypes = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
ks = st.one_of(
    st.integers(1, 12),
    st.integers(1, 2000),
    st.lists(st.sampled_from([1, 2, 3, 5, 8, 40, 128, 10_000]), min_size=1, max_size=4),
)


# Property tests


@settings(max_examples=220, deadline=None)
@given(batches(), ks, st.sampled_from(VARIANTS), dtypes)
def test_scores_and_gradients_are_the_naive_ones(
    batch: tuple[Tensor, Tensor, Masks], k: int | list[int], options: dict[str, str], dtype: torch.dtype
) -> None:
    queries, documents, masks = batch
    compare(xtr_scores, naive_xtr, queries, documents, masks, dtype, k, **options)


@settings(max_examples=100, deadline=None)
@given(batches(), dtypes)
def test_maxsim_is_the_naive_one(batch: tuple[Tensor, Tensor, Masks], dtype: torch.dtype) -> None:
    queries, documents, masks = batch
    compare(maxsim_scores, naive_maxsim, queries, documents, masks, dtype)


@settings(max_examples=60, deadline=None)
@given(batches(), ks, st.sampled_from(VARIANTS), st.integers(0, 2**32))
def test_kin_are_columns_of_the_whole(
    batch: tuple[Tensor, Tensor, Masks], k: int | list[int], options: dict[str, str], seed: int
) -> None:
    """Distillation and pairwise scores come from the same pool: every document of the batch."""
    queries, documents, masks = batch
    if len(queries) != len(documents):
        few = min(len(queries), len(documents))
        queries, documents = queries[:few], documents[:few]
        masks = (masks[0] if masks[0] is None else masks[0][:few], masks[1] if masks[1] is None else masks[1][:few])
    ways = documents.shape[1]

    def first(pair: tuple[Tensor, ...]) -> tuple[Any, ...]:  # one document a query, with and without its own axis
        q, d, qm, dm = pair
        if seed % 2:
            return q, d[:, 0], qm, None if dm is None else dm[:, 0]
        return q, d[:, :1], qm, None if dm is None else dm[:, :1]

    def naive_kd(*args: Any, **kw: Any) -> Tensor:
        return own(naive_xtr(*args, **kw), ways)

    compare(xtr_kd_scores, naive_kd, queries, documents, masks, torch.float32, k, seed, **options)
    compare(
        lambda *args, **kw: xtr_scores_pairwise(*first(args), **kw),
        lambda q, d, qm, dm, **kw: own(naive_xtr(q, d[:, :1], qm, None if dm is None else dm[:, :1], **kw), 1)[:, 0],
        *(queries, documents, masks, torch.float64, k, seed),
        **options,
    )
    compare(maxsim_kd_scores, lambda *args: own(naive_maxsim(*args), ways), queries, documents, masks, torch.float32)
    compare(
        lambda *args: maxsim_scores_pairwise(*first(args)),
        lambda q, d, qm, dm: own(naive_maxsim(q, d[:, :1], qm, None if dm is None else dm[:, :1]), 1)[:, 0],
        *(queries, documents, masks, torch.float32),
    )


@settings(max_examples=40, deadline=None)
@given(batches(), st.booleans())
def test_a_pool_retrieved_whole_is_mean_maxsim(batch: tuple[Tensor, Tensor, Masks], above: bool) -> None:
    """k = the pool, or above it: every token is retrieved, and f is MaxSim over the number of real query tokens."""
    queries, documents, masks = batch
    pool = int(real_tokens(documents, masks[1]).sum())
    k = pool + 1000 if above else max(1, pool)
    count = real_tokens(queries, masks[0]).sum(-1, keepdim=True).clamp(min=1)
    expected = maxsim_scores(queries, documents, *masks) / count
    relative_check(xtr_scores(queries, documents, *masks, k_train=k), expected, 1e-10, f"k {k} of {pool}")
    relative_check(xtr_scores(queries, documents, *masks, mask="none"), expected, 1e-10, "mask none")


# Small cases by hand


def test_by_hand() -> None:
    """Two query tokens on the axes. Documents: A (0.9, 0.1), B (0.8, -0.6) and (-0.2, 0.3), C (-0.5, -0.5)."""
    queries = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    documents = torch.tensor(
        [[[[0.9, 0.1], [0.0, 0.0]], [[0.8, -0.6], [-0.2, 0.3]], [[-0.5, -0.5], [0.0, 0.0]]]], dtype=torch.float64
    )
    documents.requires_grad_()
    # Scores of the first token: 0.9 | 0.8 -0.2 | -0.5, of the second: 0.1 | -0.6 0.3 | -0.5.
    assert xtr_scores(queries, documents, k_train=1).tolist() == [[pytest.approx(0.9), pytest.approx(0.3), 0.0]]
    for k, found in ((2, [0.5, 0.55, 0.0]), (3, [0.5, 0.55, -0.5]), (4, [0.5, 0.55, -0.5])):
        assert xtr_scores(queries, documents, k_train=k).tolist() == [[pytest.approx(x) for x in found]], k
    # C is retrieved by the second token at k = 3, with a negative score, and by both at k = 4. The released code sums
    # the negative scores, counts no positive one and divides by 1e-3.
    for k, last in ((2, 0.0), (3, -500.0), (4, -1000.0)):
        row = xtr_scores(queries, documents, k_train=k, z="positive_clamped").tolist()[0]
        assert row == [pytest.approx(0.5), pytest.approx(0.55), pytest.approx(last)], k
    dropped = xtr_scores(queries, documents, k_train=1, missing="drop")
    assert dropped[0, 2] == DROPPED
    dropped.sum().backward()
    assert torch.equal(documents.grad[0, 2], torch.zeros(2, 2, dtype=torch.float64))
    assert torch.equal(documents.grad[0, 0], torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64))


def test_a_retrieved_negative_loses_to_the_stand_in_unless_the_document_is_retrieved_whole() -> None:
    query = torch.tensor([[[1.0]]])
    documents = torch.tensor([[[[2.0], [1.0]], [[-1.0], [-2.0]]]])
    authors = functools.partial(xtr_scores, query, documents, z="positive_clamped")
    assert xtr_scores(query, documents, k_train=3).tolist() == [[2.0, -1.0]]
    assert authors(k_train=3).tolist() == [[2.0, 0.0]]  # -2 was not retrieved, stands as 0 and wins
    assert authors(k_train=4).tolist() == [[2.0, pytest.approx(-1000.0)]]  # nothing is left to stand as 0


def test_drop_is_for_documents_that_nothing_retrieved() -> None:
    """Of two documents one is retrieved, at -1, and loses to the stand-in: it scores 0 and stays in the softmax."""
    query = torch.tensor([[[1.0]]])
    documents = torch.tensor([[[[-1.0], [-2.0]], [[-3.0], [-4.0]]]])
    assert xtr_scores(query, documents, k_train=1, missing="drop").tolist() == [[-1.0, DROPPED]]
    assert xtr_scores(query, documents, k_train=1, missing="drop", z="positive_clamped").tolist() == [[0.0, DROPPED]]


def test_a_retrieved_score_of_zero_counts() -> None:
    """Orthogonal, yet among the k best: Z counts it and its gradient flows. The released code does not count it."""
    queries = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    documents = torch.tensor([[[[1.0, 0.0]]]])
    assert xtr_scores(queries, documents, k_train=1).tolist() == [[0.5]]
    assert xtr_scores(queries, documents, k_train=1, z="positive_clamped").tolist() == [[1.0]]
    (gradient,) = torch.autograd.grad(xtr_scores(queries, documents, k_train=1).sum(), queries)
    assert gradient.tolist() == [[[0.5, 0.0], [0.5, 0.0]]]


def test_every_tie_at_the_threshold_is_retrieved() -> None:
    """Six documents of the same token and a better one: k = 2 asks for two of seven and gets all seven."""
    queries = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    documents = torch.tensor([[0.5, 0.25]]).repeat(7, 1).view(1, 7, 1, 2).clone()
    documents[0, 3] *= 2
    documents.requires_grad_()
    scores = xtr_scores(queries, documents, k_train=2)
    assert scores.tolist() == [[1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0]]
    scores.sum().backward()
    assert torch.equal(documents.grad, queries.detach().expand(7, 1, 2)[None])
    assert xtr_scores(queries, documents, k_train=1).count_nonzero() == 1


def test_the_gradient_goes_to_the_first_of_equal_maxima() -> None:
    queries = torch.ones(1, 2, 3)
    documents = torch.ones(1, 2, 200, 3)
    documents[0, 0, :70] = 0.5
    documents.requires_grad_()
    for scores in (xtr_scores(queries, documents, k_train=5), maxsim_scores(queries, documents) / 2):
        (gradient,) = torch.autograd.grad(scores.sum(), documents)
        where = gradient[0].abs().sum(-1).nonzero().tolist()
        assert where == [[0, 70], [1, 0]]
        assert torch.equal(gradient[0, 0, 70], torch.ones(3))


def test_no_gradient_runs_through_z() -> None:
    """A central difference across no boundary: the score is linear in the embeddings, with Z a constant."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    documents = torch.randn(3, 2, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    keep = torch.rand(3, 2, 5, generator=generator) < 0.8
    for options in VARIANTS:
        options = options | {"missing": "zero"}  # float32's minimum swamps a difference
        scorer = functools.partial(xtr_scores, documents_mask=keep, k_train=7, **options)
        assert torch.autograd.gradcheck(scorer, (queries, documents), eps=1e-7, atol=1e-5)
    assert torch.autograd.gradcheck(functools.partial(maxsim_scores, documents_mask=keep), (queries, documents))


def test_one_list_a_sequence_of_k() -> None:
    generator = torch.Generator().manual_seed(1)
    queries, documents = torch.randn(4, 3, 8, generator=generator), torch.randn(4, 2, 90, 8, generator=generator)
    many = xtr_scores(queries, documents, k_train=(64, 1, 512, 64, 10**6))
    assert isinstance(many, list)
    assert len(many) == 5
    for k, scores in zip((64, 1, 512, 64, 10**6), many, strict=True):
        assert torch.equal(scores, xtr_scores(queries, documents, k_train=k)), k
    assert torch.equal(many[0], XTRScores(k_train=64)(queries, documents))
    assert torch.equal(xtr_scores(queries, documents), XTRScores()(queries, documents, None, None))
    kd = XTRKDScores(k_train=[64, 1], z="positive_clamped", missing="drop", mask="topk")(queries, documents)
    alone = xtr_kd_scores(queries, documents, k_train=1, z="positive_clamped", missing="drop")
    assert torch.equal(kd[1], alone)
    assert alone.shape == (4, 2)
    assert torch.equal(
        XTRScores(mask="none", k_train=3)(queries, documents), xtr_scores(queries, documents, mask="none")
    )


@pytest.mark.parametrize("z", ["retrieved", "positive_clamped"])
@pytest.mark.parametrize("k", [1, 30, 10**6])
def test_a_nan_is_seen_and_one_below_a_mask_is_not(k: int, z: str) -> None:
    """A NaN that quietly became a 0 would train on."""
    generator = torch.Generator().manual_seed(2)
    queries, documents = torch.randn(3, 2, 8, generator=generator), torch.randn(3, 2, 20, 8, generator=generator)
    broken = documents.clone()
    broken[1, 1, 3, 0] = math.nan
    for scores in (xtr_scores(queries, broken, k_train=k, z=z), maxsim_scores(queries, broken)):
        assert scores.isnan().sum(0).tolist() == [0, 0, 0, 3, 0, 0]
    asked = queries.clone()
    asked[2, 1, 4] = math.nan
    assert xtr_scores(asked, documents, k_train=k, z=z).isnan().sum(1).tolist() == [0, 0, 6]
    keep = torch.ones(3, 2, 20, dtype=torch.bool)
    keep[1, 1, 3] = False
    broken.requires_grad_()
    scores = xtr_scores(queries, broken, None, keep, k_train=k, z=z)
    (gradient,) = torch.autograd.grad(scores.sum(), broken)
    assert scores.isfinite().all()
    assert gradient.isfinite().all()
    assert torch.equal(scores, xtr_scores(queries, documents, None, keep, k_train=k, z=z))


def test_one_double_input_makes_double_scores() -> None:
    generator = torch.Generator().manual_seed(3)
    queries, documents = torch.randn(2, 3, 8, generator=generator), torch.randn(2, 2, 5, 8, generator=generator)
    whole = xtr_scores(queries.double(), documents.double(), k_train=4)
    assert torch.equal(xtr_scores(queries, documents.double(), k_train=4), whole)
    assert torch.equal(xtr_scores(queries.double(), documents, k_train=4), whole)


def test_scores_of_infinity_do_not_break_the_walk() -> None:
    queries, documents = torch.full((2, 8, 8), math.inf), torch.randn(30, 1, 50, 8)
    mask = torch.arange(50) < torch.randint(1, 51, (30, 1, 1))
    assert xtr_scores(queries, documents, None, mask, k_train=4).shape == (2, 30)


def test_what_is_refused() -> None:
    queries, documents = torch.ones(2, 3, 4), torch.ones(2, 1, 5, 4)
    for k in (0, -1, [], [3, 0], True, 2.0):
        with pytest.raises((ValueError, TypeError), match="k_train"):
            xtr_scores(queries, documents, k_train=k)
    for options in ({"z": "mean"}, {"missing": "min"}, {"mask": "all"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            xtr_scores(queries, documents, **options)
        with pytest.raises(ValueError, match=next(iter(options))):
            XTRScores(**options)
    with pytest.raises(ValueError, match="fit"):
        xtr_scores(queries, documents[..., :3])
    with pytest.raises(ValueError, match="mask"):
        xtr_scores(queries, documents, torch.ones(2, 2))


# Large shapes, past every block and group of the kernel


def uneven(rng: np.random.Generator, documents: int, longest: int, tokens: int) -> Tensor:
    """(documents, longest) mask of very uneven lengths, 1 and `longest` among them, about `tokens` in all."""
    lengths = np.clip(rng.pareto(1.0, documents) * tokens / documents / 2, 1, longest).astype(int)
    lengths[0], lengths[-1], lengths[len(lengths) // 2] = 1, longest, 0
    return torch.from_numpy(np.arange(longest) < lengths[:, None])


LARGE = {  # queries, query tokens, groups, ways, longest document, dimensions, bits, tokens wanted, k
    "rows past a block": (20, 30, 20, 2, 300, 36, 9, 5_000, [1, 128, 512, 100_000]),
    "tokens past several blocks": (5, 32, 40, 2, 250, 20, 9, 20_000, [4, 16]),  # far fewer than groups of groups
    "one document of many tokens": (3, 7, 1, 1, 6_000, 12, 9, 6_000, [1, 300]),
    "many documents of one token": (4, 9, 400, 4, 1, 33, 9, 1_600, [64]),
    "a few hundred ties": (6, 32, 30, 2, 300, 7, 1, 9_000, [1, 128, 500]),
    "thousands of ties": (6, 20, 30, 2, 200, 3, 0, 6_000, [2, 128]),
}


@pytest.fixture(params=["blocks as they are", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk as it is, which holds these shapes in a block or two, and in many blocks of many pieces by the other
    library's product."""
    if request.param == "small blocks":
        other = not streaming_scores.onednn_is_faster()
        monkeypatch.setattr(streaming_scores, "onednn_is_faster", lambda: other)
        monkeypatch.setattr(streaming_scores, "ONEDNN", 1)
        monkeypatch.setattr(streaming_scores, "BUFFER_BYTES", {"cpu": 1 << 20})
        monkeypatch.setattr(streaming_scores, "PIECE", 512)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("z", ["retrieved", "positive_clamped"])
def test_large_shapes(name: str, z: str) -> None:
    q, t, d, n, s, h, bits, tokens, k = LARGE[name]
    rng = np.random.default_rng(len(name))
    queries, documents = never_zero(embeddings(rng, (q, t, h), bits), embeddings(rng, (d, n, s, h), bits), bits)
    keep = uneven(rng, d * n, s, tokens).view(d, n, s) if d * n > 1 and s > 1 else None
    compare(xtr_scores, naive_xtr, queries, documents, (None, keep), torch.float32, k, z=z)
    if z == "retrieved":
        compare(maxsim_scores, naive_maxsim, queries, documents, (None, keep), torch.float32)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_unit_vectors_of_the_real_size(
    dtype: torch.dtype, tolerance: float, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random unit vectors, dimension 128, by both libraries' products. In float32 a query whose choice hangs on less
    than 3e-7 is left out."""
    monkeypatch.setattr(streaming_scores, "onednn_is_faster", lambda: onednn)
    generator = torch.Generator().manual_seed(3)
    queries = torch.nn.functional.normalize(torch.randn(8, 32, 128, generator=generator, dtype=dtype), dim=-1)
    documents = torch.nn.functional.normalize(torch.randn(8, 2, 180, 128, generator=generator, dtype=dtype), dim=-1)
    lengths = torch.randint(60, 181, (8, 2, 1), generator=generator)
    keep = torch.arange(180) < lengths
    grid = torch.einsum("qth,dnsh->qtdns", queries.double(), documents.double()).masked_fill(~keep, -9)
    ranked = grid.flatten(2).sort(-1, descending=True).values
    two = grid.topk(2, -1).values
    close = (two[..., 0] - two[..., 1] < 3e-7) & (two[..., 0] >= ranked[..., 127, None, None] - 3e-7)
    clear = ((ranked[..., 127] - ranked[..., 128] > 3e-7) & ~close.flatten(2).any(-1)).all(-1)
    assert clear.sum() >= 6
    queries.requires_grad_()
    documents.requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in (queries, documents)]
    weight = torch.randn(8, 16, generator=generator, dtype=torch.float64) * clear[:, None]
    found, expected = xtr_scores(queries, documents, None, keep), naive_xtr(*exact, None, keep)
    relative_check(found[clear], expected[clear], tolerance, "scores")
    ours = torch.autograd.grad((found * weight.to(dtype)).sum(), (queries, documents))
    theirs = torch.autograd.grad((expected * weight).sum(), exact)
    for a, b in zip(ours, theirs, strict=True):
        relative_check(a, b, tolerance, "gradient")


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, Tensor):
                # oneDNN's tensors have no storage to ask.
                size = item.numel() if item.is_mkldnn else item.untyped_storage().nbytes() // item.element_size()
                self.numel = max(self.numel, size)
        return out


@pytest.mark.parametrize("k", [None, 128, [128, 512]])
def test_nothing_of_the_size_of_the_grid_is_made(k: int | list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one large thing is the walk's buffer, whatever the grid. Here 4 MB of a grid of 69."""
    monkeypatch.setattr(streaming_scores, "BUFFER_BYTES", {"cpu": 4 << 20})
    rng = np.random.default_rng(0)
    queries, documents = embeddings(rng, (30, 32, 8), 9).float(), embeddings(rng, (30, 2, 300, 8), 9).float()
    queries.requires_grad_()
    documents.requires_grad_()
    with Largest() as seen:
        scores = maxsim_scores(queries, documents) if k is None else xtr_scores(queries, documents, k_train=k)
        (sum(scores) if isinstance(scores, list) else scores).sum().backward()
    grid = 30 * 32 * 60 * 300
    assert documents.numel() <= seen.numel < grid / 4
    with Largest() as naive:
        (naive_maxsim if k is None else naive_xtr)(queries, documents)
    assert naive.numel >= grid or k is None  # the measure does see a grid where there is one


# How it is used


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(5)
    return embeddings(rng, (4, 6, 16), 8).float(), embeddings(rng, (4, 2, 75, 16), 8).float()


SCORERS: dict[str, Callable[..., Tensor]] = {
    "xtr": functools.partial(xtr_scores, k_train=20),
    "xtr authors": functools.partial(xtr_scores, k_train=20, z="positive_clamped"),
    "xtr unmasked": functools.partial(xtr_scores, mask="none"),
    "xtr kd": functools.partial(xtr_kd_scores, k_train=20),
    "maxsim": maxsim_scores,
}
each_scorer = pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS.keys())


def gradients_of(scorer: Callable[..., Tensor], queries: Tensor, documents: Tensor) -> tuple[Tensor, ...]:
    scores = scorer(queries, documents)
    weight = torch.linspace(-1, 2, scores.numel()).view_as(scores)
    return scores.detach(), *torch.autograd.grad((scores * weight).sum(), (queries, documents))


@each_scorer
def test_layout_does_not_matter(scorer: Callable[..., Tensor], pair: tuple[Tensor, Tensor]) -> None:
    plain = gradients_of(scorer, *(x.clone().requires_grad_() for x in pair))
    queries = pair[0].permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    wide = torch.zeros(4, 2, 150, 20)
    wide[:, :, ::2, 2:18] = pair[1]
    documents = wide[:, :, ::2, 2:18].detach().requires_grad_()
    assert not queries.is_contiguous()
    assert not documents.is_contiguous()
    for a, b in zip(gradients_of(scorer, queries, documents), plain, strict=True):
        relative_check(a, b, OF_PRODUCTS, "strided")
    one = pair[1][:1].clone().requires_grad_()  # the same documents for every query, not copied
    repeated = gradients_of(scorer, pair[0].clone().requires_grad_(), one.expand(4, -1, -1, -1))
    copied = gradients_of(scorer, pair[0].clone().requires_grad_(), one.repeat(4, 1, 1, 1))
    for a, b in zip(repeated, copied, strict=True):
        relative_check(a, b, OF_PRODUCTS, "expanded")


@each_scorer
def test_inputs_that_need_no_gradient(scorer: Callable[..., Tensor], pair: tuple[Tensor, Tensor]) -> None:
    scores, *both = gradients_of(scorer, *(x.clone().requires_grad_() for x in pair))
    weight = torch.linspace(-1, 2, scores.numel()).view_as(scores)
    for i in (0, 1):
        inputs = [x.clone() for x in pair]
        inputs[i].requires_grad_()
        found = scorer(*inputs)
        assert torch.equal(found, scores)
        (found * weight).sum().backward()
        relative_check(inputs[i].grad, both[i], OF_PRODUCTS, f"only input {i}")
        assert inputs[1 - i].grad is None
    assert not scorer(*pair).requires_grad
    with torch.no_grad():
        assert not scorer(*(x.clone().requires_grad_() for x in pair)).requires_grad


@each_scorer
def test_the_output_may_be_used_twice(scorer: Callable[..., Tensor], pair: tuple[Tensor, Tensor]) -> None:
    inputs = [x.clone().requires_grad_() for x in pair]
    before = [x.detach().clone() for x in inputs]
    scores = scorer(*inputs)
    once = torch.autograd.grad(scores.sum(), inputs, retain_graph=True)
    squared = torch.autograd.grad(scores.square().sum(), inputs, retain_graph=True)
    (scores.square() + scores).sum().backward()
    scores_again = scorer(*inputs)
    assert torch.equal(scores_again, scores)  # the same inputs, the same bits
    for x, kept, a, b in zip(inputs, before, once, squared, strict=True):
        relative_check(x.grad, a + b, 1e-5, "sum of two uses")
        assert torch.equal(x.detach(), kept)  # and the inputs are as they were


def test_one_of_several_k_may_be_used_alone(pair: tuple[Tensor, Tensor]) -> None:
    inputs = [x.clone().requires_grad_() for x in pair]
    expected = torch.autograd.grad(xtr_scores(*inputs, k_train=40).square().sum(), inputs)
    found = torch.autograd.grad(xtr_scores(*inputs, k_train=[3, 40])[1].square().sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        relative_check(a, b, OF_PRODUCTS, "the second alone")


@each_scorer
def test_autocast_changes_nothing(scorer: Callable[..., Tensor], pair: tuple[Tensor, Tensor]) -> None:
    plain = gradients_of(scorer, *(x.clone().requires_grad_() for x in pair))
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradients_of(scorer, *(x.clone().requires_grad_() for x in pair))
    for a, b in zip(inside, plain, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", ["rows past a block", "a few hundred ties"])
def test_on_a_gpu(name: str) -> None:
    q, t, d, n, s, h, bits, tokens, k = LARGE[name]
    rng = np.random.default_rng(1)
    queries, documents = never_zero(embeddings(rng, (q, t, h), bits), embeddings(rng, (d, n, s, h), bits), bits)
    keep = uneven(rng, d * n, s, tokens).view(d, n, s)

    def there(*args: Any, **options: Any) -> Any:
        found = xtr_scores(*(x if x is None else x.cuda() for x in args), **options)
        return [x.cpu() for x in found]

    compare(there, naive_xtr, queries, documents, (None, keep), torch.float32, k)


def test_without_z_a_score_is_a_sum_and_without_a_mask_it_is_maxsim() -> None:
    """train.z=none, and config=xtr_unmasked: XTR's temperature 0.05 over T query tokens is ColBERT's 0.05 T."""
    rng = np.random.default_rng(0)
    queries, documents = embeddings(rng, (3, 8, 16), 6), embeddings(rng, (3, 2, 9, 16), 6)
    summed = xtr_scores(queries, documents, k_train=20, z="none")
    torch.testing.assert_close(summed, naive_xtr(queries, documents, k_train=20, z="none"), check_dtype=False)
    assert (summed - xtr_scores(queries, documents, k_train=20)).abs().max() > 0.1
    plain = xtr_scores(queries, documents, k_train=20, mask="none") / 0.05
    torch.testing.assert_close(plain, naive_maxsim(queries, documents) / (0.05 * 8), check_dtype=False)
    trained = {name: compose([f"config={name}"]).train for name in ("xtr_unmasked", "colbert_sharp", "xtr_k128")}
    assert objective_of(trained["xtr_unmasked"]) == ("retrieved", "zero", "none")
    assert trained["xtr_unmasked"].k_train == trained["xtr_k128"].k_train
    assert [temperature_of(train) for train in trained.values()] == [0.05, 0.33, 0.05]
