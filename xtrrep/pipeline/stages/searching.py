"""The `index` and `retrieve` stages: an engine's files, and ranked documents as a TREC run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from xtrrep import artifacts
from xtrrep import config as configs
from xtrrep.artifacts import Folders, Spec, Specs, digest
from xtrrep.artifacts.hashes import hash_outside
from xtrrep.config import Config
from xtrrep.console import DataError, say
from xtrrep.data import open_collection
from xtrrep.measure import run_file
from xtrrep.pipeline.identity import (
    GivenRun,
    answerer,
    content_of,
    engine_label,
    model_label,
    needs_model,
    place_of,
    setting_of,
    slug,
    words_config,
)
from xtrrep.report.table import Table
from xtrrep.retrieval import words
from xtrrep.retrieval.engines import (
    DocumentEngine,
    TextEngine,
    TextSearcher,
    TokenEngine,
    engine_of,
    files,
    split_params,
)
from xtrrep.retrieval.imputation import imputations
from xtrrep.retrieval.retrieve import (
    Counts,
    Outcome,
    Setting,
    keep_run,
    retrieve,
    retrieve_documents,
    retrieve_run,
)
from xtrrep.retrieval.words import Words


def index_spec(cfg: Config, specs: Specs) -> Spec:
    if isinstance(engine_of(cfg.index), TextEngine):  # refuses an unknown engine or parameter
        config = dict(cfg.index)
        content = {"corpus": content_of(cfg.data)["corpus"]}
        return Spec("index", f"{config['engine']}--{specs['data'].label}", 2, config, content=content)
    return files.index_spec(specs["documents"].label, specs["documents"].fingerprint, cfg.index)


def index_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    from xtrrep.store.encode import Store

    engine, place = engine_of(cfg.index), place_of(cfg)
    if cfg.scale == "paper" and not engine.resumes and not (isinstance(engine, TokenEngine) and engine.exhaustive):
        say(f"  note: {engine_label(cfg)} builds its index in one piece; if it is interrupted, the build begins again")
    if isinstance(engine, TextEngine):
        texts = [text for _, text in open_collection(cfg.data, folders["data"]).documents()]
        if not texts:
            raise DataError(f"{cfg.data.id} holds no documents", hint="is its download or its folder complete?")
        facts = engine.build(texts, out, place)
        files.check_written(out)
        return facts
    return files.build_index(Store.open(folders["documents"], specs["documents"].fingerprint), cfg.index, out, place)


def words_spec(cfg: Config, specs: Specs) -> Spec:
    return index_spec(words_config(cfg), specs)


def words_run(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    return index_run(words_config(cfg), specs, folders, out)


def _from_run(cfg: Config) -> Path:
    path = Path(str(cfg.retrieve.from_run)).expanduser()
    if not path.is_file():
        raise DataError(f"no run file {path}", hint="check the path; xtrrep retrieve --index bm25 --out FILE makes one")
    return path


def retrieve_spec(cfg: Config, specs: Specs) -> Spec:
    setting, answer = setting_of(cfg), answerer(cfg)
    if setting.scoring == "xtr" and isinstance(answer, TokenEngine):
        imputations.get(setting.imputation)  # refuses an unknown one before anything runs
    content = {} if needs_model(cfg) else {k: content_of(cfg.data)[k] for k in ("queries", "qrels")}
    config: dict[str, Any] = dict(vars(setting))
    if setting.fuse is None:
        del config["fuse"]  # it came after the first runs
    if isinstance(answer, GivenRun):
        path = _from_run(cfg)
        content["from_run"] = hash_outside(path, configs.artifacts_root())
        upstream = {name: specs[name].fingerprint for name in retrieve_needs(cfg) if name != "data"}
        over = specs["documents" if answer.rerank else "data"].label
        return Spec("retrieve", f"run-{slug(path.stem)}--{over}", 2, config, upstream, content)
    config["search"] = split_params(cfg.index)[1]
    if isinstance(answer, TokenEngine) and not answer.prefix:
        config["search"]["searched_to"] = setting.k_prime  # its k' best are not the first k' of a deeper search
    upstream = {"index": specs["index"].fingerprint}
    if setting.fuse is not None:
        upstream["words"] = specs["words"].fingerprint
    if isinstance(answer, TextEngine) and not needs_model(cfg):
        return Spec("retrieve", specs["index"].label, 2, config, upstream, content)
    upstream["queries"] = specs["queries"].fingerprint
    if isinstance(answer, TextEngine):
        label = f"{cfg.index['engine']}-{setting.rerank}--{specs['documents'].label}"
        return Spec("retrieve", label, 2, config, upstream | {"documents": specs["documents"].fingerprint})
    told = f"--{setting.scoring}-{setting.k_prime}" if isinstance(answer, TokenEngine) else ""
    return Spec("retrieve", specs["index"].label + told, 2, config, upstream)


def retrieve_needs(cfg: Config) -> list[str]:
    stores = ["documents", "queries"] if needs_model(cfg) else []
    texts = not stores or isinstance(answerer(cfg), TextEngine) or cfg.retrieve.fuse is not None
    words = ["words"] if cfg.retrieve.fuse is not None else []
    return [*(["index"] if cfg.retrieve.from_run is None else []), *words, *stores, *(["data"] if texts else [])]


def retrieve_many(cfgs: Sequence[Config], specs: Specs, folders: Folders) -> list[Outcome]:
    """Runs for several configs that share index, queries and search parameters, from one token search."""
    cfg, settings = cfgs[0], [setting_of(c) for c in cfgs]
    outcomes = _rankings(cfg, settings, specs, folders)
    if cfg.retrieve.fuse is None:
        return outcomes
    collection = open_collection(cfg.data, folders["data"])
    other = Words(words_beside(cfg, specs, folders), [name for name, _ in collection.documents()])
    return [
        words.fuse(outcome, other, collection.queries, setting)
        for outcome, setting in zip(outcomes, settings, strict=True)
    ]


def _rankings(cfg: Config, settings: Sequence[Setting], specs: Specs, folders: Folders) -> list[Outcome]:
    """What the engine, or the run in its place, answers under each setting."""
    from xtrrep.store.encode import Store

    answer = answerer(cfg)
    if isinstance(answer, GivenRun) and not answer.rerank:
        run = run_file.read(_from_run(cfg))
        collection = open_collection(cfg.data, folders["data"])
        _check_judged(run, collection.queries, _from_run(cfg))
        return [keep_run(run, collection.queries, setting) for setting in settings]
    if isinstance(answer, TextEngine):
        collection = open_collection(cfg.data, folders["data"])
        asked, ids = collection.queries, [name for name, _ in collection.documents()]
        searcher = open_text_index(cfg, specs, folders)
        if not needs_model(cfg):
            return [words.retrieve_text(searcher, ids, asked, s.top_k, drop_self=s.drop_self) for s in settings]
    documents = Store.open(folders["documents"], specs["documents"].fingerprint)
    queries = Store.open(folders["queries"], specs["queries"].fingerprint)
    batch = cfg.machine.query_batch
    if isinstance(answer, TextEngine):
        return [words.retrieve_reranked(Words(searcher, ids), asked, documents, queries, s) for s in settings]
    if isinstance(answer, GivenRun):
        run, path = run_file.read(_from_run(cfg)), _from_run(cfg)
        _check_judged(run, queries.ids, path)
        return [retrieve_run(run, documents, queries, setting, str(path)) for setting in settings]
    searcher = open_index(cfg, specs, folders)
    if isinstance(answer, DocumentEngine):
        return [retrieve_documents(searcher, documents, queries, setting, batch) for setting in settings]
    outcomes = retrieve(searcher, documents, queries, list(dict.fromkeys(settings)), batch)
    return [outcomes[setting] for setting in settings]


def _check_judged(run: run_file.Run, queries: Iterable[str], path: Path) -> None:
    """A run that answers none of the queries is of another collection."""
    if not run.keys() & set(queries):
        raise DataError(
            f"{path} answers none of the judged queries", hint="data=ID of the collection that the run is of"
        )


def open_text_index(cfg: Config, specs: Specs, folders: Folders) -> TextSearcher:
    """The searcher of a built text index. Raises DataError for a damaged one, TypeError for another engine."""
    engine = engine_of(cfg.index)
    if not isinstance(engine, TextEngine):
        raise TypeError(f"{cfg.index['engine']} is no text engine")
    artifacts.check(folders["index"], specs["index"].fingerprint)
    return engine.load(folders["index"], place_of(cfg))


def words_beside(cfg: Config, specs: Specs, folders: Folders) -> TextSearcher:
    """The searcher of the words that a model's ranking is made one with."""
    own = {**specs, "index": specs["words"]}, {**folders, "index": folders["words"]}
    return open_text_index(words_config(cfg), *own)


def open_index(cfg: Config, specs: Specs, folders: Folders) -> Any:
    """The searcher of a built index; raises as `index.files.open_index`."""
    from xtrrep.store.encode import Store

    store = Store.open(folders["documents"], specs["documents"].fingerprint)
    return files.open_index(folders["index"], store, cfg.index, place_of(cfg), specs["index"].fingerprint)


def _say_empty_slots(outcome: Outcome, k_prime: int) -> None:
    if outcome.tokens < k_prime:
        say(
            f"  note: k'={k_prime:,} is more than the collection's {outcome.tokens:,} tokens: all of them are retrieved"
        )
    elif outcome.missing:
        share = outcome.missing / outcome.slots
        say(f"  note: the token search left {share:.1%} of the k'={k_prime:,} slots empty (no hit, not 0)")


def write_run(cfg: Config, outcome: Outcome, out: Path, **extra: float) -> dict[str, Any]:
    setting = setting_of(cfg)
    tag = f"{slug(model_label(cfg))}-{setting.scoring}" if needs_model(cfg) else engine_label(cfg)
    run_file.write(out / "run.trec", outcome.run, tag)
    columns = ["query", *(f.name for f in fields(Counts))]
    counts = Table("", columns, [[name, *vars(count).values()] for name, count in outcome.counts.items()])
    artifacts.write_atomic(out / "candidates.csv", lambda file: file.write(counts.csv().encode()))
    if setting.k_prime is not None:
        _say_empty_slots(outcome, setting.k_prime)
    return {**outcome.facts(setting), **extra}


def retrieve_run_stage(cfg: Config, specs: Specs, folders: Folders, out: Path) -> dict[str, Any]:
    return write_run(cfg, retrieve_many([cfg], specs, folders)[0], out)


def one_search(spec: Spec) -> tuple[str, ...]:
    """Runs with one answer here share a search: index, queries (upstream or content) and search parameters."""
    return (*spec.upstream.values(), *spec.content.values(), digest(spec.config.get("search")))
