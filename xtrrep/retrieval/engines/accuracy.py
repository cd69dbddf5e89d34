"""How far an approximate token engine is from the exact one, looked at once, when its index is built."""

from __future__ import annotations

from typing import Any

import numpy as np

from xtrrep.retrieval.engines import TokenSearcher
from xtrrep.retrieval.engines.exact import Searcher
from xtrrep.store.encode import Store

SAMPLE = 128  # query tokens
DEPTHS = (100, 1000)


def against_exact(searcher: TokenSearcher, store: Store) -> dict[str, Any]:
    """Recall at two k', mean and mean absolute error of the scores of all hits, and the share of empty slots.

    The queries are SAMPLE tokens of the store itself, evenly spaced, since an index is built before any query is known;
    recall does not count that each finds itself.
    """
    rows = np.unique(np.linspace(0, store.tokens - 1, min(SAMPLE, store.tokens)).astype(np.int64))
    queries = np.concatenate([store.rows(int(row), int(row) + 1) for row in rows]).astype(np.float32)
    depth = min(max(DEPTHS), store.tokens)
    exact = Searcher(store).search(queries, depth)
    found = searcher.search(queries, depth)
    facts: dict[str, Any] = {"queries": len(rows), "empty_slots": float(np.isnan(found.scores).mean())}
    for k in DEPTHS:
        if k < store.tokens:
            shares = [
                np.isin(true[:k][true[:k] != own], hits[:k][~np.isnan(scores[:k])]).mean()
                for own, true, hits, scores in zip(rows, exact.tokens, found.tokens, found.scores, strict=True)
            ]
            facts[f"recall@{k}"] = round(float(np.mean(shares)), 4)
    errors = []
    for query, hits, scores in zip(queries, found.tokens, found.scores, strict=True):
        kept = ~np.isnan(scores)
        errors.append(scores[kept] - store.take(hits[kept].astype(np.int64)) @ query)
    error = np.concatenate(errors)
    facts["score_bias"] = round(float(error.mean()), 5)
    facts["score_error"] = round(float(np.abs(error).mean()), 5)
    return facts
