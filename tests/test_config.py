"""Composition: every file, every refusal, and what identity depends on."""

from pathlib import Path

import pytest

from xtrrep import config, pipeline
from xtrrep.config import Config, compose, compose_with_origins, composition, places
from xtrrep.config.overrides import for_hydra
from xtrrep.console import DataError, UsageError, XtrrepError
from xtrrep.measure import run_file
from xtrrep.pipeline import identity
from xtrrep.retrieval.engines import engine_of

CHOICES = [(group, name) for group in config.GROUPS for name in config.options(group)]


def test_every_file_is_a_choice() -> None:
    """No file in `configs/` is out of reach."""
    on_disk = {str(path.relative_to(config.config_dir())) for path in config.config_dir().rglob("*.yaml")}
    groups = {f"{group}/{name}.yaml" for group, name in CHOICES}
    defined = {f"{group}/{name}.yaml" for group in ("reproductions", "analyses") for name in config.options(group)}
    assert on_disk == groups | defined | {"root.yaml", "claims.yaml", "costs.yaml"}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_config_composes(group: str, name: str) -> None:
    extra = {"folder": ["data.path=somewhere"], "xtr_multi": ["setup=II"]}.get(name, [])
    cfg = compose([f"{group}={name}", *extra])
    assert isinstance(cfg, Config)
    assert engine_of(cfg.index)


def test_paper_scale_is_the_protocol() -> None:
    """docs/protocol.md 1 and 2, value by value."""
    cfg = compose(["scale=paper", "config=xtr_k128"])
    assert cfg.model.backbone == "BAAI/bge-small-en-v1.5"
    assert (cfg.model.dim, cfg.model.n_query, cfg.model.n_doc) == (128, 32, 300)
    assert cfg.model.query_expansion
    assert cfg.model.skip_punctuation
    assert cfg.model.projection is config.Projection.random
    train = cfg.train
    assert (train.triples, train.max_triples) == ("bclavie/msmarco-10m-triplets", 9_998_000)
    assert (train.batch_size, train.steps, train.learning_rate) == (196, 50_000, 3e-5)
    assert (train.warmup_ratio, train.grad_norm, train.precision) == (0.01, 10.0, config.Precision.bf16)
    assert (config.k_trains(train), config.temperature_of(train)) == ((128,), 0.05)
    assert not train.learn_temperature
    assert config.objective_of(train) == ("retrieved", "zero", "topk")
    assert identity.setting_of(cfg).k_prime == 40_000
    colbert = compose(["scale=paper", "config=colbert"])
    assert (colbert.train.scorer, config.temperature_of(colbert.train)) == (config.Scorer.colbert, 1.0)
    assert config.k_trains(colbert.train) == ()
    assert identity.setting_of(colbert).k_prime == 4_000
    scann = compose(["index=scann"]).index
    assert (scann["num_leaves"], scann["num_leaves_to_search"]) == (2000, 200)
    assert (scann["dimensions_per_block"], scann["anisotropic_quantization_threshold"]) == (1, 0.1)
    assert (scann["training_sample_size"], scann["spherical"]) == (250_000, True)
    for k in (64, 256, 512):
        assert compose(["scale=paper", f"config=xtr_k{k}"]).train.k_train == k


def test_paper_scale_of_setup_two_is_the_protocol() -> None:
    """docs/protocol.md 1 and 2, value by value."""
    cfg = compose(["scale=paper", "setup=II", "config=xtr_multi", "stage=kd"])
    assert cfg.model.backbone == "answerdotai/ModernBERT-base"
    assert (cfg.model.dim, cfg.model.n_query, cfg.model.n_doc) == (128, 32, 300)
    train, kd = cfg.train, cfg.distill
    assert train.triples == "bclavie/msmarco-10m-triplets"
    assert (train.batch_size, train.steps, train.learning_rate, train.n_doc) == (64, 50_000, 3e-5, 512)
    assert (train.warmup_ratio, train.learn_temperature, train.temperature_lr) == (0.0, True, None)
    assert (config.k_trains(train), config.temperature_of(train)) == ((128, 256, 512), 0.05)
    assert config.temperature_of(compose(["scale=paper", "setup=II", "config=colbert"]).train) == 0.2
    assert kd.lists == "lightonai/ms-marco-en-bge-gemma"
    assert (kd.n_ways, kd.batch_size, kd.steps, kd.learning_rate) == (16, 16, 20_000, 4e-6)
    assert (kd.temperature, kd.learn_temperature, config.min_max_of(kd)) == (1.0, True, True)
    assert (kd.loss, kd.kd_multi) == (config.DistillLoss.kl, config.KdMulti.losses)
    released = compose(["scale=paper", "setup=II", "config=xtr_multi", "stage=kd", "protocol=released"])
    assert released.distill.kd_multi is config.KdMulti.scores
    assert config.objective_of(released.train) == ("positive_clamped", "zero", "topk")


def test_each_difference_of_the_released_code_is_set() -> None:
    """configs/protocol/released.yaml names them; docs/protocol.md has the sources. Nothing else differs."""
    found = {}
    for setup, model in (("I", "xtr_k128"), ("II", "xtr_multi_kd")):
        for data in ("beir/arguana", "beir/nfcorpus/test"):
            words = ["scale=paper", f"setup={setup}", f"config={model}", f"data={data}"]
            stated, released = (config.flat(compose([*words, f"protocol={name}"])) for name in ("stated", "released"))
            found[setup] = {key: released[key] for key in released if released[key] != stated[key]}
        dropped = [
            identity.setting_of(compose([f"setup={setup}", "data=beir/arguana", f"protocol={name}"])).drop_self
            for name in ("stated", "released")
        ]
        assert dropped == [True, setup == "I"]
    same = {"protocol.name": "released", "protocol.missing_slots": "zero", "protocol.self_match": "released",
            "distill.kd_multi": "scores"}  # fmt: skip
    loops = {f"{loop}.{key}": value for loop in ("train", "distill")
             for key, value in (("grad_norm", 1.0), ("precision", "fp16"))}  # fmt: skip
    assert found["I"] == {**same, "train.objective": "authors_raw"}
    assert found["II"] == {**same, **loops, "train.objective": "authors"}
    assert compose(["setup=II", "protocol=released", "train.grad_norm=3"]).train.grad_norm == 3


@pytest.mark.parametrize("scale", ["demo", "desk", "lab"])
def test_small_scales_let_the_temperature_move_as_far_as_the_study_does(scale: str) -> None:
    """Adam moves it by at most the sum of the learning rates: half of steps x rate, which falls to 0."""
    study, small = (compose([f"scale={name}", "setup=II", "config=colbert_kd"]) for name in ("paper", scale))
    for there, here in ((study.train, small.train), (study.distill, small.distill)):
        assert there.temperature_lr is None
        assert here.temperature_lr is not None
        assert here.steps * here.temperature_lr == pytest.approx(there.steps * there.learning_rate, rel=0.05)


def test_a_distilled_models_name_can_be_typed() -> None:
    cfg = compose(["setup=II", "config=xtr_k256_kd"])
    assert (cfg.config, cfg.stage) == ("xtr_k256", config.TrainStage.kd)
    assert identity.model_label(cfg) == "II/xtr_k256_kd"
    assert cfg == compose(["setup=II", "config=xtr_k256", "stage=kd"])


@pytest.mark.parametrize(
    ("words", "kind", "says", "hints"),
    [
        (["train.stps=3"], UsageError, "train.stps", "train.steps"),
        (["retrieve.kprime=3"], UsageError, "retrieve.kprime", "retrieve.k_prime"),
        (["index.num_leaves=3"], UsageError, "index.num_leaves", "--index scann"),
        (["index=scann", "index.nprobe=3"], UsageError, "index.nprobe", "--index plaid or --index warp"),
        (["data.measures=["], UsageError, "'data.measures=[' cannot be read", "bracket"),
        (["index=scann", "index.leaves=3"], UsageError, "index.leaves", "index.num_leaves"),
        (["index=scann", "index.num_leaves=many"], UsageError, "index.num_leaves", "2000"),
        (["+train.steps=3"], UsageError, "+train.steps", "train.steps=3"),
        (["~train.steps"], UsageError, "~train.steps", "show"),
        (["config=xtr_k12"], UsageError, "xtr_k12", "xtr_k128"),
        (["data=beir/nfcorpu/test"], DataError, "beir/nfcorpu/test", "beir/nfcorpus/test"),
        (["index=wrap"], DataError, "wrap", "warp"),
        (["index=plaid/paper"], DataError, "plaid/paper", "plaid/library"),
        (["train.learning_rate=abc"], UsageError, "train.learning_rate", None),
        (["train.scorer=xrt"], UsageError, "train.scorer", None),
        (["train.steps=0"], UsageError, "train.steps", None),
        (["train.k_train=null"], UsageError, "k_train", "[128,256,512]"),
        (["train.k_train=abc"], UsageError, "k_train", "[128,256,512]"),
        (["train.k_train=[128,0]"], UsageError, "k_train", "[128,256,512]"),
        (["train.k_train=[128,128]"], UsageError, "twice", None),
        (["config=xtr_k256_kd"], UsageError, "setup (I)", "setup=II"),
        (["config=xtr_multi"], UsageError, "setup (I)", "setup=II"),
        (["config=nothing_kd"], UsageError, "nothing_kd", "xtr"),
        (["train.eval_every=5"], UsageError, "eval_data", "pydoc/test"),
        (["train.keep=[60,200]"], UsageError, "outside the training, which has 120", "train.keep=[60]"),
        (["train.keep=[0]", "model.step=60"], UsageError, "model.step=60 is not kept", "train.keep=[0,60]"),
        (["model.step=500"], UsageError, "train.steps=120", "model.step=null"),
        (["model.step=0", "model.source=untrained"], UsageError, "a step of a training", "model.step=null"),
        (["setup=II", "stage=kd", "model.step=30"], UsageError, "distill.keep=[]", "distill.keep=[30]"),
        (["distill.n_ways=1"], UsageError, "n_ways", None),
        (["train.temperature=-1"], UsageError, "train.temperature", None),
        (["distill.temperature_lr=0"], UsageError, "distill.temperature_lr", None),
        (["setup=II", "stage=kd", "distill.lists=x.jsonl"], UsageError, "distill.lists", "null"),
        (["retrieve.k_prime=10,100"], UsageError, "several values", "[10,100]"),
        (["config=colbert", "config=xtr_k64"], UsageError, "twice", None),
        (["machine.device=${oc.env:HOME}"], UsageError, "${oc.env:HOME}", "the value itself"),
        (["index=warp", "index.nprobe=: :"], UsageError, "not of type int", None),
        (["index=warp", "index.nprobe=2001-99-99"], UsageError, "not of type int", None),
        (["train"], UsageError, "KEY=VALUE", "retrieve.k_prime=1000"),
        (["train=3"], UsageError, "group of keys", "train.steps"),
        (["stage=kdd"], UsageError, "expected one of [contrastive, kd]", "stage=contrastive"),
        (["retrieve.k_prime=many"], UsageError, "retrieve.k_prime", "retrieve.k_prime=null"),  # None would be a text
        (["qqqq.zz=1"], UsageError, "qqqq.zz", "xtrrep show"),
        (["analyze.models=colbert"], UsageError, "'analyze.models=colbert' is not a list", "analyze.models=[colbert]"),
        (
            ["model.source=vectors", "model.vectors=x", "encode.pool_factor=2"],
            UsageError,
            "not pooled",
            "pool_factor=1",
        ),
        (["analyze.resamples=5"], UsageError, "too few", "at least 100"),
        (["claims.resamples=200"], UsageError, "claims.resamples", "analyze.resamples"),
        (["model.checkpoint=here"], UsageError, "checkpoint", None),
        (["train.triples=x.jsonl"], UsageError, "train.triples", "train.data=null"),
    ],
)
def test_refusals(words: list[str], kind: type[XtrrepError], says: str, hints: str | None) -> None:
    with pytest.raises(kind) as caught:
        compose(words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    if hints is not None:
        assert hints in caught.value.hint


def test_a_typo_in_a_file_is_refused_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    copy = tmp_path / "configs"
    shutil.copytree(config.config_dir(), copy)
    path = copy / "config" / "xtr_k128.yaml"
    path.write_text(path.read_text() + "  stepss: 3\n")
    monkeypatch.setattr(places, "config_dir", lambda: copy)
    with pytest.raises(UsageError) as caught:
        compose([])
    assert "stepss" in str(caught.value)
    assert "configs/config/xtr_k128.yaml" in str(caught.value)
    assert "train.steps" in caught.value.hint


def test_origins_name_file_and_override() -> None:
    _, origins = compose_with_origins(["train.steps=7"])
    assert origins["train.steps"] == "override train.steps=7"
    assert origins["train.batch_size"] == "configs/scale/demo.yaml"
    assert origins["train.k_train"] == "configs/config/xtr_k128.yaml"
    assert origins["model.dim"] == "configs/setup/I.yaml"
    assert origins["data.split"] == "configs/data/pydoc/test.yaml"
    assert origins["train.weight_decay"] == "schema default"


def fingerprints(*words: str) -> dict[str, str]:
    return {name: spec.fingerprint for name, spec in pipeline.plan(compose(list(words)), "evaluate").specs.items()}


@pytest.mark.parametrize(
    ("word", "first_changed"),
    [
        ("machine.query_batch=8", None),
        ("machine.encode_tokens=512", None),
        ("train.checkpoint_every=7", None),
        ("train.keep=[]", None),
        ("train.keep=[120]", None),  # the last one is there anyway
        ("train.keep=[60,0]", "train"),
        ("model.step=120", None),
        ("train.learning_rate=1e-4", "train"),
        ("train.seed=7", "triples"),
        ("config=xtr_k64", "train"),
        ("model.n_doc=100", None),  # pydoc/test has its own
        ("data.n_doc=100", "documents"),
        ("data.n_query=24", "queries"),
        ("encode.transform=none", None),
        ("encode.transform=centre", "documents"),
        ("retrieve.expansion=true", None),
        ("retrieve.expansion=false", "queries"),
        ("analyze.steps=[7]", None),
        ("retrieve.k_prime=17", "retrieve"),
        ("protocol=released", "train"),  # its objective
        ("train.objective=stated", None),
        ("train.z=retrieved", None),  # what it is anyway
        ("train.k_train=[14]", None),
        ("train.k_train=128", "train"),  # the number, and not the study's sparsity
        ("train.sparse_as.k64=9", None),
        ("train.sparse_as.k128=9", "train"),
        ("train.temperature=0.05", None),
        ("train.temperature_colbert=9", None),
        ("train.temperature_lr=1e-3", None),  # nothing is learned
        ("train.learn_temperature=true", "train"),
        ("train.missing=drop", "train"),
        ("train.eval_every=null", None),
        ("machine.gradient_checkpointing=true", None),
        ("distill.steps=9", None),  # not distilled
        ("data.measures=[P@5]", "evaluate"),
    ],
)
def test_identity_changes_from_the_stage_that_reads_the_value(word: str, first_changed: str | None) -> None:
    before, after = fingerprints(), fingerprints(word)
    changed = [name for name in before if before[name] != after[name]]
    if first_changed is None:
        assert not changed
        return
    assert changed[0] == first_changed
    assert "evaluate" in changed


def test_a_kept_step_is_a_model_of_its_own() -> None:
    """One training, other encodings; the last step is the same however it is asked for."""
    last = fingerprints("train.keep=[0,60]")
    assert fingerprints("train.keep=[0,60,120,60]", "model.step=120") == last
    found = [last, *(fingerprints("train.keep=[0,60]", f"model.step={step}") for step in (0, 60))]
    assert len({prints["train"] for prints in found}) == 1
    for stage in ("documents", "queries", "index", "retrieve", "evaluate"):
        assert len({prints[stage] for prints in found}) == 3


def test_the_temperatures_rate_is_part_of_a_model_that_learns_it() -> None:
    """Those of setup (I) are what they were before scales had such a rate; null is the rate of the weights."""
    assert fingerprints("train.temperature_lr=null") == fingerprints()
    learned = ("setup=II", "config=colbert")
    assert fingerprints(*learned, "train.temperature_lr=null")["train"] != fingerprints(*learned)["train"]
    as_weights = fingerprints(*learned, "train.temperature_lr=3e-5")
    assert as_weights["train"] == fingerprints(*learned, "train.temperature_lr=null")["train"]


def test_distillation_starts_from_the_contrastive_model() -> None:
    words = ("setup=II", "config=xtr_k256")
    before, after = fingerprints(*words), fingerprints(*words, "stage=kd")
    assert before["train"] == after["train"]
    assert before["documents"] != after["documents"]
    changed = fingerprints(*words, "stage=kd", "distill.kd_multi=scores")
    assert changed["distill"] == after["distill"]  # one k_train has nothing to stack
    assert fingerprints(*words, "stage=kd", "distill.temperature=0.5")["distill"] != after["distill"]
    assert fingerprints(*words, "stage=kd", "distill.n_ways=4")["scored"] != after["scored"]


def test_untrained_is_the_same_model_whatever_the_config() -> None:
    one = fingerprints("model.source=untrained", "config=colbert")
    two = fingerprints("model.source=untrained", "config=xtr_k64")
    assert "train" not in one
    assert (one["documents"], one["queries"]) == (two["documents"], two["queries"])


def test_explicit_scoring_equal_to_the_models_own_is_the_same_run() -> None:
    assert fingerprints("retrieve.scoring=xtr", "retrieve.k_prime=40000") == fingerprints()


def test_splits_of_one_text_index_keep_their_own_queries(
    tmp_path: Path, collections: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BM25 on train and test carried out together: one index, two settings each, each split its own queries."""
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path))
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    words = [(split, k) for split in ("train", "test") for k in (5, 9)]
    plans = [
        pipeline.plan(compose([f"data=beir/mini/{split}", "index=bm25", f"retrieve.top_k={k}"]), "retrieve")
        for split, k in words
    ]
    done = pipeline.run(plans)
    found = [run_file.read(folders["retrieve"] / "run.trec") for folders in done.folders]
    for (split, k), run in zip(words, found, strict=True):
        assert all(int(query[1:]) % 2 == (split == "test") for query in run)
        assert len(run) == 20
        assert max(map(len, run.values())) <= k


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["setup=II", "config=xtr_multi", "index=warp", "data=beir/arguana", "scale=paper", "stage=kd"],
        ["scale=lab", "index=scann/library", "index.num_leaves=3", "data.max_queries=7", "retrieve.k_prime=9"],
        ["config=colbert", "index=plaid", "stage=contrastive", "train.steps=4", "data.measures=[RR@10,nDCG@10]"],
    ],
)
def test_sections_composed_apart_are_those_of_one_composition(given: list[str]) -> None:
    """Only `data` and `index` set their own keys, so that a grid of cells composes each part once."""
    from omegaconf import OmegaConf

    groups, values = composition._group_overrides(given)
    whole = OmegaConf.to_object(composition._load([*groups, *(for_hydra(text) for text in values)]))
    assert config.compose(given) == whole


def test_a_composed_config_is_nobody_elses() -> None:
    """Sections are composed once a process; changing a field of one config leaves the next as it was."""
    first = config.compose(["scale=demo"])
    first.train.steps = 1
    assert config.compose(["scale=demo"]).train.steps != 1
