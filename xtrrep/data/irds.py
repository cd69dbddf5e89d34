"""BEIR and LoTTE by their ir-datasets ids, downloaded by that library, which verifies every archive's checksum.

Ids are the library's own: a BEIR set with a single split has none in its id (`beir/arguana`, `beir/nq`), the
others do (`beir/nfcorpus/test`); LoTTE's read `lotte/TOPIC/test/search`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xtrrep.config import Data
from xtrrep.console import DataError, progress, suggest
from xtrrep.data import BEIR_SPLITS, Collection, local_home_hint, sources
from xtrrep.data.folder import content_of_some, read_folder, write_beir


def corpus_id(id: str) -> str:
    """The part of an id that names the corpus, which all splits share: `beir/nfcorpus`, `lotte/lifestyle/test`."""
    head, _, last = id.rpartition("/")
    return head if head and (last in ("search", "forum") or (last in BEIR_SPLITS and head.startswith("beir/"))) else id


def download_mb(cfg: Data) -> int | None:
    """Size of the archive ir-datasets would fetch, in MB (10^6 bytes), by its own list; None where it says nothing."""
    spec = find_spec("ir_datasets")
    if spec is None or spec.origin is None:
        return None
    downloads = json.loads((Path(spec.origin).parent / "etc" / "downloads.json").read_text(encoding="utf-8"))
    benchmark, _, name = corpus_id(cfg.id).partition("/")
    archives = downloads.get(benchmark, {})
    size = archives.get("source" if benchmark == "lotte" else name, {}).get("size_hint")
    return None if size is None else -(-int(size) // 10**6)


def _load(id: str) -> Any:
    import ir_datasets

    try:
        dataset = ir_datasets.load(id)
    except KeyError:
        raise DataError(f"ir-datasets knows no collection {id!r}", hint=suggest(id, ir_datasets.registry)) from None
    if not (dataset.has_docs() and dataset.has_queries() and dataset.has_qrels()):
        splits = [known for known in ir_datasets.registry if known.startswith(f"{id}/")]
        raise DataError(f"{id} alone has no judged queries", hint=suggest(f"{id}/test", splits))
    return dataset


def _documents(dataset: Any, total: int) -> Iterator[tuple[str, str, str]]:
    with progress(total, "read corpus", "documents") as bar:
        for document in dataset.docs_iter():
            yield document.doc_id, getattr(document, "title", ""), document.text
            bar.update(1)


@sources.register(
    "ir_datasets",
    "BEIR and LoTTE, downloaded and verified by ir-datasets, or read from $XTRREP_DATA",
    paper="MacAvaney et al., 2021, arXiv 2103.02280",
    install="pip install ir-datasets",
)
class IrDatasets:
    """Downloads `cfg.id` and keeps it as a BEIR folder."""

    @staticmethod
    def content(cfg: Data) -> dict[str, str]:
        library = f"ir_datasets={version('ir_datasets')}"
        return {
            "corpus": f"{corpus_id(cfg.id)}:{library}",
            "queries": content_of_some(f"{cfg.id}:{library}", cfg.max_queries),
            "qrels": f"{cfg.id}:{library}",
        }

    @staticmethod
    def prepare(cfg: Data, out: Path) -> None:
        dataset = _load(cfg.id)
        try:
            # Judgements come first: where the network is missing, this fails before anything is written.
            qrels = [(row.query_id, row.doc_id, row.relevance) for row in dataset.qrels_iter()]
            write_beir(
                out,
                _split(cfg),
                documents=_documents(dataset, dataset.metadata().get("docs", {}).get("count", 0)),
                queries=((query.query_id, query.text) for query in dataset.queries_iter()),
                qrels=qrels,
            )
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors, a bad checksum is a RuntimeError
            raise DataError(f"could not download {cfg.id} ({error})", hint=local_home_hint(cfg.id)) from error

    @staticmethod
    def open(cfg: Data, out: Path) -> Collection:
        return read_folder(cfg.id, out, _split(cfg), cfg.max_queries)


def _split(cfg: Data) -> str:
    return cfg.split or "test"
