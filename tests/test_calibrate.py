"""A calibration is made by the parts that a real run uses, and a plan reads what it leaves."""

from pathlib import Path

import pytest

from xtrrep.config import compose
from xtrrep.console import DataError, UsageError
from xtrrep.plan import calibrate, cost, operations


def test_a_calibration_measures_and_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(calibrate, "PROCESSOR", calibrate.Size(2, 3, 4, 64, 10))
    monkeypatch.setattr(calibrate, "PRODUCT_SECONDS", 0.01)
    cfg = compose(["model.n_query=8", "train.n_doc=24", "machine.device=cpu", "encode.precision=fp32"])
    path, found = calibrate.calibrate(cfg)
    known = cost.calibration()
    assert path == tmp_path / "home" / cost.CALIBRATION
    assert known is not None
    assert set(known.rates) == set(cost.RATES)
    assert known.rates == found["rates"]
    assert known.hardware
    assert not known.assumed
    assert list(path.parent.iterdir()) == [path]
    # The rate is the counted work over the time said.
    milliseconds = float(found["measured"]["train"].split(" ms")[0].replace(",", ""))
    work = operations.training_operations(
        compose(["train.batch_size=2", "train.n_doc=24", "model.n_query=8"]), distil=False
    )
    assert work is not None
    assert found["rates"]["train"] == pytest.approx(work / (milliseconds / 1000), rel=0.05)


def test_an_encoder_without_figures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"no figures for .*some/other"):
        calibrate.calibrate(compose(["model.backbone=some/other"]))
    with pytest.raises(UsageError, match="whole encoder"):
        calibrate.calibrate(compose(["model.layers=1"]))
