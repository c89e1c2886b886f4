"""What an objective notes is in the log: a loss whose value says nothing has InfoNCE's beside it."""

import json
from pathlib import Path

import pytest

from tests.train.small import SmallStream, small_config, small_model
from troth.objectives import DeCL, GammaWeights, InfoNCE, Objective, Sum
from troth.train import Trainer


def train_records(objective: Objective, folder: Path) -> list[dict]:
    config = small_config(epochs=1)
    Trainer(small_model(), objective, SmallStream(), config=config, folder=folder, progress=False).run()
    lines = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return [line for line in lines if line.get("event", line.get("kind")) == "train"]


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (GammaWeights(), "infonce"),
        (DeCL(), "infonce"),
        (Sum(((1.0, InfoNCE()), (0.5, GammaWeights(similarity="logits")))), "1-gamma_weights/infonce"),
    ],
)
def test_objectives_with_meaningless_values_log_infonce(objective: Objective, name: str, tmp_path: Path) -> None:
    plain = train_records(InfoNCE(), tmp_path / "plain")
    noted = train_records(objective, tmp_path / "noted")
    assert noted[0][name] == pytest.approx(plain[0]["loss"], rel=1e-5)  # before any step the models are the same
    assert all(name in record for record in noted)
    assert name not in plain[0]
