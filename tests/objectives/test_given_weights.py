"""Weights from a table: keyed by sample id, remembered by checkpoints, refused in one line when they do not fit."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from tests.objectives.instances import features
from troth.errors import UserError
from troth.objectives import GivenWeights, InfoNCE, Reweighted
from troth.similarity import Pairs
from troth.state import State


def write(path: Path, **columns: list) -> str:
    parquet.write_table(pa.table(columns), path)
    return str(path)


def test_a_tables_weights_reach_their_samples_whatever_the_order(tmp_path: Path) -> None:
    file = write(tmp_path / "w.parquet", id=[5, 0, 2, 3], p_mismatch=[0.9, 0.25, None, 1.0])
    objective = Reweighted(InfoNCE(), by=GivenWeights(file=file, column="p_mismatch", complement=True))
    state, index = State(7, "data"), torch.tensor([2, 5, 6, 0, 3])
    objective.prepare(state)
    image, text = features(5)
    pairs = Pairs(image, text, torch.tensor(5.0, dtype=torch.float64), index=index)
    plain = InfoNCE()(pairs, State(7, "data"))
    expected = torch.tensor([1.0, 0.1, 1.0, 0.75, 0.0], dtype=torch.float64)
    torch.testing.assert_close(objective(pairs, state), plain * expected, rtol=1e-6, atol=1e-7)


def test_a_resumed_run_keeps_the_weights_it_began_with(tmp_path: Path) -> None:
    file = write(tmp_path / "w.parquet", id=[0, 1], weight=[0.5, 2.0])
    weight, state = GivenWeights(file=file), State(2, "data")
    weight.prepare(state)
    Path(file).unlink()
    resumed = State(2, "data")
    resumed.load_state_dict(state.state_dict(), "data")
    weight.prepare(resumed)
    assert resumed.read("weight").tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("columns", "settings", "place", "says"),
    [
        (None, {}, "objective.by.file", "no such file"),
        ({"id": [0], "score": [1.0]}, {}, "objective.by.column", "no column 'weight'"),
        ({"sample": [0], "weight": [1.0]}, {}, "objective.by.file", "no column 'id'"),
        ({"id": [0, 9], "weight": [1.0, 1.0]}, {}, "objective.by.file", "sample ids from 0 to 9"),
        ({"id": [0], "weight": [-1.0]}, {}, "objective.by.column", "a weight of -1"),
        ({"id": [0], "weight": [2.0]}, {"complement": True}, "objective.by.column", "a weight of -1"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, columns: dict | None, settings: dict, place: str, says: str
) -> None:
    file = str(tmp_path / "w.parquet") if columns is None else write(tmp_path / "w.parquet", **columns)
    with pytest.raises(UserError, match=says) as error:
        GivenWeights(file=file, **settings).prepare(State(5, "data"))
    assert error.value.where == place


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.parquet"
    path.write_text("id,weight\n0,1\n")
    with pytest.raises(UserError, match="no parquet table"):
        GivenWeights(file=str(path)).prepare(State(5, "data"))
