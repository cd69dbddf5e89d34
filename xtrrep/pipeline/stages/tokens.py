"""The `tokens` stage: numbers of token vectors, and of what query tokens find among them by exact search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xtrrep import artifacts
from xtrrep.artifacts import Folders, Spec, Specs
from xtrrep.config import Config, Source
from xtrrep.console import UsageError
from xtrrep.data import open_collection
from xtrrep.pipeline.identity import content_of, place_of


def check_words(cfg: Config) -> None:
    """Raise UsageError where documents have no vocabulary ids to compare."""
    if cfg.model.source is Source.vectors:
        raise UsageError(
            "this analysis compares vocabulary ids, and imported vectors (model.source=vectors) have none",
            hint="model.source=trained",
        )
    if cfg.encode.pool_factor > 1:
        raise UsageError(
            f"this analysis is of single tokens: with encode.pool_factor={cfg.encode.pool_factor} a vector is several",
            hint="encode.pool_factor=1",
        )


def tokens_spec(cfg: Config, specs: Specs) -> Spec:
    from xtrrep.measure import geometry
    from xtrrep.retrieval import token_hits

    check_words(cfg)
    config = {"k_prime": token_hits.DEPTH, "ranks": token_hits.RANKS, "documents": token_hits.DOCUMENTS}
    config |= {"sampled": geometry.TOKENS, "directions": geometry.DIRECTIONS}
    upstream = {name: specs[name].fingerprint for name in ("documents", "queries")}
    return Spec("tokens", specs["documents"].label, 1, config, upstream, {"qrels": content_of(cfg.data)["qrels"]})


def tokens_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    """Facts: `geometry.directions` of document tokens; score_mean and score_sd of query tokens' best; gold and lexical
    shares of these; expansion_score and expansion_variance, the share of expansion in a MaxSim score."""
    from xtrrep.measure.geometry import directions, sampled
    from xtrrep.retrieval.engines.exact import Exact
    from xtrrep.retrieval.token_hits import DEPTH, expansion_share, pooled, rates, searched
    from xtrrep.store.encode import Store

    documents = Store.open(folders["documents"], specs["documents"].fingerprint)
    queries = Store.open(folders["queries"], specs["queries"].fingerprint)
    searcher = Exact().load(out, documents, place_of(cfg))
    batch = max(1, cfg.machine.query_batch * int(queries.lengths.max(initial=1)))
    pool = pooled(searched(searcher, queries, DEPTH, batch), len(queries))
    found = rates(searcher, documents, queries, open_collection(cfg.data, folders["data"]).qrels, rows=batch)
    share = expansion_share(documents, queries)
    facts = {
        **directions(sampled(documents)[1]),
        "score_mean": pool.mean,
        "score_sd": pool.deviation,
        "gold": float(found.gold.mean()),
        "lexical": float(found.lexical.mean()),
        "expansion_score": share.score,
        "expansion_variance": share.variance,
    }
    artifacts.write_json(out / "tokens.json", facts)
    return {"units": {"queries": len(queries)}, **facts}
