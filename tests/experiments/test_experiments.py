"""The experiments: tables and figures from small runs, and pages that say what was measured."""

import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from tools.docs import theory_pages

from troth import cli, experiments
from troth.errors import UserError
from troth.experiments import (
    EXPERIMENTS,
    Table,
    affinity,
    convergence,
    gamma_histograms,
    heterogeneity,
    rate,
    unpaired,
    wrong_pairs,
)
from troth.experiments.table import by_method, mean_of, plus_minus
from troth.objectives import GammaWeights

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every experiment a matter of a second."""
    monkeypatch.setattr(heterogeneity, "COUNT", 100)
    monkeypatch.setattr(wrong_pairs, "COUNT", 60)
    monkeypatch.setattr(wrong_pairs, "GRID", (0.0, 0.2, 0.4, 0.6, 0.8))
    monkeypatch.setattr(convergence, "COUNT", 50)
    monkeypatch.setattr(rate, "GRID", (64, 128, 256, 512))
    monkeypatch.setattr(rate, "FITTED", (128, 256, 512))
    monkeypatch.setattr(affinity, "SPREADS", (40.0,))
    monkeypatch.setattr(convergence, "STEPS", 50)
    monkeypatch.setattr(gamma_histograms, "COUNT", 40)
    monkeypatch.setattr(unpaired, "GRID", (100, 150))
    monkeypatch.setattr(unpaired, "PUBLISHED", (0.1, 0.2))
    monkeypatch.setattr(unpaired, "CANDIDATES", 100)
    monkeypatch.setattr(unpaired, "Training", lambda: unpaired_training)
    small = {name: unpaired.Variant(each.detection, each.whole, (100,)) for name, each in unpaired.VARIANTS.items()}
    monkeypatch.setattr(unpaired, "VARIANTS", small)


unpaired_training = unpaired.Training(passes=2)


def test_all_of_them_write_a_table_and_a_figure(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["theory", "all", "--out", str(tmp_path), "--seeds", "2"])
    assert ended.value.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{ending}" for name in EXPERIMENTS for ending in ("csv", "png")
    )
    printed = capsys.readouterr().out
    for name, experiment in EXPERIMENTS.items():
        assert re.search(rf"^{name}: .+\n  [\d.]+ s, .*{name}\.csv", printed, re.M)
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 600
        assert experiment.tabulate(Table.load(tmp_path / f"{name}.csv")).count("|") > 10


def test_the_command_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    for name in EXPERIMENTS:
        assert re.search(rf"\b{name}[,.]", cli.THEORY_HELP)
    for wrong, message in (
        (["theory", "nothing"], "unknown experiment 'nothing' (one of: all, heterogeneity, wrong-pairs,"),
        (["theory", "rate", "--seeds", "0"], "--seeds: 0 runs measure nothing"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(wrong)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: object, *arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiments.run("affinity-simulation", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["affinity-simulation.csv"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_pages_say_what_the_committed_tables_say(name: str) -> None:
    made = theory_pages.page(EXPERIMENTS[name])
    page = made.path.read_text(encoding="utf-8")
    assert made.renewed(page) == page, "run python -m tools.docs.theory_pages"
    assert f"](../figures/theory-{name}.png)" in page
    assert theory_pages.figure(EXPERIMENTS[name]).stat().st_size < 120_000
    assert f"theory/{name}.md" in (DOCS / "theory.md").read_text(encoding="utf-8")


def test_tables_come_back_as_they_were_saved(tmp_path: Path) -> None:
    table = Table(
        ("seed", "x", "method", "y"), ((0.0, 1.0, "a, b", 0.5), (1.0, 1.0, "a, b", 1.5), (0.0, 2.0, "c", 7.0))
    )
    table.save(tmp_path / "table.csv")
    assert Table.load(tmp_path / "table.csv") == table
    assert table.mean("y", method="a, b") == (1.0, 0.5)
    assert table.curve("x", "y", method="c")[0] == [2.0]
    assert math.isnan(table.mean("y", method="c").error)
    assert by_method(table, "x", "y", plus_minus(1)).splitlines()[2:] == ["| a, b | 1.0 ± 0.5 | – |", "| c | – | 7.0 |"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), ("", "no table"), ("a,b\n1\n", "rows of different lengths")]
)
def test_a_wrong_table_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        Table.load(path)


def test_the_moved_caption_is_on_its_circle() -> None:
    image, text = affinity.fixed_points(40.0)
    assert torch.allclose(torch.linalg.vector_norm(torch.cat([image, text]), dim=1), torch.ones(5).double())
    for angle in (0.0, 77.0, 200.0):
        assert float(affinity.on_circle(image[2], 20.0, angle) @ image[2]) == pytest.approx(math.cos(math.radians(20)))
    assert not torch.allclose(affinity.on_circle(image[2], 20.0, 0.0), affinity.on_circle(image[2], 20.0, 90.0))


def test_the_contrastive_loss_is_the_sources() -> None:
    image, text = affinity.fixed_points(40.0)
    text = torch.cat([text, affinity.on_circle(image[2], 30.0, 50.0)[None]])
    logits = 5.0 * image @ text.T
    both = [-(logits.log_softmax(dim).diagonal()).mean() for dim in (0, 1)]
    assert affinity.contrastive_loss(image, text, 5.0) == pytest.approx(float(sum(both)), rel=1e-10)


def test_gamma_weights_have_the_moments_of_their_distribution() -> None:
    """Over its row's mean, a weight is G_ij / s_ij of the row: the log's mean is digamma(a) less log s."""
    image, text = gamma_histograms.embedded(0)
    method = GammaWeights(a_minus=20.0, similarity="cosine")
    weights = gamma_histograms.drawn(method, image, text) * math.log(10)
    again = gamma_histograms.drawn(method, image, text) * math.log(10)
    assert torch.equal(weights, again)
    off = ~torch.eye(len(image), dtype=torch.bool)
    residual = (weights + image @ text.T)[off].view(len(image), -1)
    residual = residual - residual.mean(1, keepdim=True)
    trigamma = float(torch.polygamma(1, torch.tensor(20.0)))
    assert float(residual.var()) == pytest.approx(trigamma, rel=0.03)
    torch.testing.assert_close(
        (10 ** gamma_histograms.drawn(method, image, text)).mean(1), torch.ones(len(image)).double()
    )


def test_means_have_standard_errors() -> None:
    assert mean_of([1.0, 3.0]) == (2.0, 1.0)
    assert plus_minus(1, 100)(mean_of([0.5])) == "50.0"
    assert rate.FITTED[0] == 4096
