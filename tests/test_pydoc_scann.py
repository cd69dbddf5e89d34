"""ScaNN against exact search on the embedded collection: the default model, the study's parameters (minutes: slow)."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli

from xtrrep.config import compose
from xtrrep.retrieval.engines import Place, engine_of
from xtrrep.retrieval.engines.exact import Searcher
from xtrrep.store.encode import Store


@pytest.mark.slow
def test_scann_is_close_to_exact_and_builds_alike(cli: Cli, tmp_path: Path) -> None:
    """Recall@1000 of token hits at least 0.9, nDCG@10 within 0.01, two builds identical byte for byte."""
    words = ("retrieve.k_prime=1000", "--json")
    exact = json.loads(cli("eval", "--index", "exact", *words).stdout)
    scann = json.loads(cli("eval", "--index", "scann", *words).stdout)
    assert scann["measures"]["nDCG@10"] == pytest.approx(exact["measures"]["nDCG@10"], abs=0.01)
    home = tmp_path / "home"
    documents = Store.open(next((home / "documents").glob("[!.]*")))
    queries = Store.open(next((home / "queries").glob("[!.]*")))
    folder = next((home / "index").glob("scann--*"))
    engine = engine_of(compose(["index=scann"]).index)
    rows = queries.rows(0, 1024).astype(np.float32)
    found = engine.load(folder, documents, Place()).search(rows, 1000).tokens
    wanted = Searcher(documents).search(rows, 1000).tokens
    recall = np.mean([len(np.intersect1d(a, b)) / 1000 for a, b in zip(found, wanted, strict=True)])
    print(f"recall@1000 {recall:.4f}, nDCG@10 {scann['measures']['nDCG@10']:.4f} {exact['measures']['nDCG@10']:.4f}")
    assert recall >= 0.9
    again = tmp_path / "again"
    again.mkdir()
    engine.build(documents, again, Place())
    for path in sorted(again.iterdir()):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
