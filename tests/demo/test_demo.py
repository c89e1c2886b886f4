"""The demo, first to last, on a small part of the embedded data: heads, concept test, audit and report included."""

import json
from pathlib import Path

import pytest

from troth.audit import AuditTable, estimates_of_run
from troth.data import EmbeddedSource, IndexedSource
from troth.demo import METHODS, run_demo
from troth.report import ReportData

#: How many samples of each split take part; every one of a test's emoji must keep its name among the classes.
SIZES = {"train": 240, "style-shift": 96, "retrieval": 48, "concept": 24}


@pytest.fixture
def small_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = EmbeddedSource.open

    def part(self: EmbeddedSource) -> IndexedSource:
        source = whole(self)
        index = source.index.slice(0, SIZES[self.split])
        return IndexedSource(source.name, index, source.reader, source.ledger)

    monkeypatch.setattr(EmbeddedSource, "open", part)


def test_the_demo_trains_evaluates_audits_and_reports(
    small_embedded: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    data = run_demo(out, noise=0.25, seed=1, settings=("train.epochs=3", "train.batch_size=64"))

    assert [method.name for method in data.methods] == [method.name for method in METHODS]
    assert [method.ceiling for method in data.methods] == [False, False, True]
    for method in data.methods:
        assert set(method.metrics) == {metric.name for metric in data.metrics}
        assert all(estimate.standard_error is not None for estimate in method.metrics.values() if estimate.value)
        assert len(method.loss_curve.step) >= 2
    assert [method.judged for method in data.methods] == [False, True, False]
    judged = estimates_of_run(out / "robust", 240)
    assert judged is not None
    audited = AuditTable.read(out / "robust" / "audit.parquet")
    assert audited.id.tolist() == judged.id.tolist()
    assert audited.p_mismatch.tolist() == judged.p_mismatch.tolist()
    assert data.suspicious_by == "Robust"
    for method in data.methods[:2]:
        assert method.true_noise_rate == pytest.approx(0.25)
        assert sum(method.histogram.wrong) == 60
        table = AuditTable.read(out / method.name / "audit.parquet")
        assert len(table) == 240
    assert len(data.suspicious) == 24

    page = (out / "report.html").read_text(encoding="utf-8")
    assert data.suspicious[0].caption.split("&")[0] in page
    assert ReportData.load(out / "report").title == data.title == "Learning from 240 pairs, 25% of them wrong"
    assert "AUROC" in capsys.readouterr().out
    ceiling = json.loads((out / "clean" / "evaluation.json").read_text())
    assert ceiling["standard_errors"]
    assert not (out / "clean" / "noise.npz").exists()

    again = run_demo(out, noise=0.25, seed=1, settings=("train.epochs=3", "train.batch_size=64"))
    assert [m.metrics for m in again.methods] == [m.metrics for m in data.methods], "the same seed, other numbers"
