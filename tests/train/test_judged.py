"""A judge's table: read and refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from troth.errors import UserError
from troth.train import Judged


def written(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata or {}), path)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    columns = {"id": [4, 0], "score": [0.5, -2.0], "p_mismatch": [0.25, None]}
    found = Judged.read(written(tmp_path / "j.parquet", columns, {"noise_rate": "0.375"}), 5)
    assert found.id.tolist() == [4, 0]
    assert found.score.tolist() == [0.5, -2.0]
    assert found.noise_rate == 0.375
    np.testing.assert_array_equal(found.p_mismatch, [0.25, np.nan])


def test_probabilities_and_the_noise_rate_may_be_unknown(tmp_path: Path) -> None:
    found = Judged.read(written(tmp_path / "j.parquet", {"id": [0], "score": [1.0]}), 1)
    assert np.isnan(found.p_mismatch).all()
    assert np.isnan(found.noise_rate)


def test_a_run_without_a_judge_has_left_nothing(tmp_path: Path) -> None:
    assert Judged.of_run(tmp_path, 1) is None
    written(tmp_path / "judgement.parquet", {"id": [0], "score": [1.0]})
    found = Judged.of_run(tmp_path, 1)
    assert found is not None
    assert found.score.tolist() == [1.0]


@pytest.mark.parametrize(
    ("columns", "metadata", "message"),
    [
        ({"id": [0, 1]}, {}, "no column score"),
        ({"id": [0, 0], "score": [0.5, 0.5]}, {}, "distinct numbers of 2 pairs"),
        ({"id": [0, 2], "score": [0.5, 0.5]}, {}, "distinct numbers of 2 pairs"),
        ({"id": [0.5, 1.0], "score": [0.5, 0.5]}, {}, "distinct numbers of 2 pairs"),
        ({"id": [None, 1], "score": [0.5, 0.5]}, {}, "distinct numbers of 2 pairs"),
        ({"id": ["a", "b"], "score": [0.5, 0.5]}, {}, "id holds no numbers"),
        ({"id": [0, 1], "score": [0.5, None]}, {}, "scores are not finite"),
        ({"id": [0, 1], "score": [0.5, 0.5], "p_mismatch": [3.0, 0.5]}, {}, "no probabilities"),
        ({"id": [0, 1], "score": [0.5, 0.5]}, {"noise_rate": "much"}, "no number"),
    ],
)
def test_a_judgement_that_cannot_be_used_is_one_line(
    tmp_path: Path, columns: dict[str, Any], metadata: dict[str, str], message: str
) -> None:
    path = written(tmp_path / "j.parquet", columns, metadata)
    with pytest.raises(UserError, match=message) as raised:
        Judged.read(path, 2)
    assert str(path) in str(raised.value)
    assert "remove it" in str(raised.value)
    with pytest.raises(UserError, match="start a new run"):
        Judged.read(path, 2, remedy="start a new run")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_not_parquet_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no parquet")
    for name in ("none", "text"):
        with pytest.raises(UserError, match="not a judgement") as raised:
            Judged.read(tmp_path / name, 2)
        assert "\n" not in str(raised.value)
