"""What needs a CUDA GPU beside exact search (test_exact_device.py): the objective, encoding and training on one.

Skipped, with the reason, where there is none; scripts/gpu_check.sh runs them where there is.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xtrrep.config import Encode, Machine, Precision, compose
from xtrrep.encode import encode
from xtrrep.model.encoder import build
from xtrrep.scoring.maxsim import maxsim_scores
from xtrrep.scoring.xtr import xtr_scores

pytestmark = pytest.mark.gpu

TEXTS = [(f"d{i}", " ".join(["a graph of nodes and edges"] * (1 + i % 5))) for i in range(23)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scorer", ["xtr", "maxsim"])
def test_the_objective_is_that_of_the_processor(scorer: str, masked: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.nn.functional.normalize(torch.randn((6, 8, 32), generator=generator), dim=-1)
    documents = torch.nn.functional.normalize(torch.randn((6, 2, 20, 32), generator=generator), dim=-1)
    mask = torch.ones((6, 2, 20), dtype=torch.bool)
    if masked:
        mask[:, 1, 13:] = False
    found = []
    for device in ("cpu", "cuda"):
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


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_text_has_the_vectors_that_the_processor_gives_it(tmp_path: Path, precision: str) -> None:
    cfg = compose([]).model
    for device, wanted in (("cpu", "fp32"), ("cuda", precision)):
        (tmp_path / device).mkdir()
        how = Encode(precision=Precision(wanted))
        encode(
            build(cfg, device), TEXTS, len(TEXTS), tmp_path / device, how, task="document", device=device, batch_size=8
        )
    ours, theirs = (np.load(tmp_path / d / "vectors" / "00000.npy").astype(np.float32) for d in ("cuda", "cpu"))
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)  # float16 rounds them off 1
    assert ((ours * theirs).sum(axis=1) / lengths).min() > {"fp32": 0.9999, "bf16": 0.98, "fp16": 0.999}[precision]
    ids = [np.load(tmp_path / d / "tokens" / "00000.npy") for d in ("cuda", "cpu")]
    np.testing.assert_array_equal(*ids)


def test_a_training_on_the_gpu_ends_with_finite_losses(tmp_path: Path) -> None:
    from datasets import Dataset

    from xtrrep.train.losses import contrastive
    from xtrrep.train.trainer import fit

    cfg = compose(["model.layers=2", "train.n_doc=32", "model.n_query=16"])
    train = replace(cfg.train, steps=6, batch_size=4, checkpoint_every=3, eval_data=None, precision=Precision.bf16)
    rows = {name: [f"{name} {i} of a graph" for i in range(24)] for name in ("query", "positive", "negative")}
    model = build(cfg.model, "cuda")
    machine = Machine(tensorboard=False)
    facts = fit(
        model, Dataset.from_dict(rows), train, tmp_path, "cuda", loss=contrastive(model, train), machine=machine
    )
    assert facts["units"] == {"steps": 6}
    assert facts["device"] == "cuda"
    assert facts["diverged_at"] is None
    assert np.isfinite([facts["loss_first"], facts["loss_last"]]).all()
