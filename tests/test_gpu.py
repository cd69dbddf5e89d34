"""The objective, encoding and training on a GPU beside the processor; exact search has test_exact_device.py.

Those marked `gpu` are skipped, with the reason, where there is none; scripts/gpu_check.sh runs them where there is. The
same code runs on the processor everywhere, so that it cannot rot unseen.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xtrrep.config import Encode, Machine, Precision, compose
from xtrrep.model.encoder import build
from xtrrep.store.encode import encode
from xtrrep.train.maxsim import maxsim_scores
from xtrrep.train.xtr import xtr_scores

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]

TEXTS = [(f"d{i}", " ".join(["a graph of nodes and edges"] * (1 + i % 5))) for i in range(23)]


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scorer", ["xtr", "maxsim"])
def test_the_objective_is_that_of_the_processor(scorer: str, masked: bool, where: str) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.nn.functional.normalize(torch.randn((6, 8, 32), generator=generator), dim=-1)
    documents = torch.nn.functional.normalize(torch.randn((6, 2, 20, 32), generator=generator), dim=-1)
    mask = torch.ones((6, 2, 20), dtype=torch.bool)
    if masked:
        mask[:, 1, 13:] = False
    found = []
    for device in ("cpu", where):
        q, d = (x.to(device).detach().requires_grad_() for x in (queries, documents))
        kept = mask.to(device)
        scores = xtr_scores(q, d, None, kept, k_train=16) if scorer == "xtr" else maxsim_scores(q, d, None, kept)
        assert isinstance(scores, torch.Tensor)
        torch.nn.functional.cross_entropy(scores / 0.05, torch.arange(6, device=device) * 2).backward()
        assert q.grad is not None
        assert d.grad is not None
        found.append([scores.detach().cpu(), q.grad.cpu(), d.grad.cpu()])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_text_has_the_vectors_that_the_processor_gives_it(tmp_path: Path, precision: str, where: str) -> None:
    cfg = compose([]).model
    for name, device, wanted in (("theirs", "cpu", "fp32"), ("ours", where, precision)):
        (tmp_path / name).mkdir()
        how = Encode(precision=Precision(wanted))
        encode(build(cfg, device), TEXTS, len(TEXTS), tmp_path / name, how, task="document", device=device)
    ours, theirs = (np.load(tmp_path / n / "vectors" / "00000.npy").astype(np.float32) for n in ("ours", "theirs"))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)  # float16 rounds them off 1
    assert ((ours * theirs).sum(axis=1) / lengths).min() > {"fp32": 0.9999, "bf16": 0.98, "fp16": 0.999}[precision]
    ids = [np.load(tmp_path / name / "tokens" / "00000.npy") for name in ("ours", "theirs")]
    np.testing.assert_array_equal(*ids)


@pytest.mark.parametrize("where", DEVICES)
def test_a_training_ends_with_finite_losses(tmp_path: Path, where: str) -> None:
    from datasets import Dataset

    from xtrrep.train.losses import contrastive
    from xtrrep.train.trainer import fit

    cfg = compose(["model.layers=2", "train.n_doc=32", "model.n_query=16"])
    train = replace(cfg.train, steps=6, batch_size=4, checkpoint_every=3, eval_data=None, precision=Precision.bf16)
    rows = {name: [f"{name} {i} of a graph" for i in range(24)] for name in ("query", "positive", "negative")}
    model = build(cfg.model, where)
    machine = Machine(tensorboard=False)
    facts = fit(model, Dataset.from_dict(rows), train, tmp_path, where, loss=contrastive(model, train), machine=machine)
    assert facts["units"] == {"steps": 6}
    assert facts["device"] == where
    assert facts["diverged_at"] is None
    assert np.isfinite([facts["loss_first"], facts["loss_last"]]).all()
