"""The table of how likely pairs are wrong: written, read and refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from troth.errors import UserError
from troth.train import MismatchEstimates


def written(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata or {}), path)
    return path


def read(path: Path, num_pairs: int) -> MismatchEstimates:
    return MismatchEstimates.read(path, num_pairs, remedy="do it again")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    scores, probability = np.array([0.5, -2.0]), np.array([0.25, np.nan])
    estimates = MismatchEstimates(np.array([4, 0]), scores, 0.375, probability, ("features", "words"))
    estimates.write(tmp_path / "j.parquet")
    assert pq.read_table(tmp_path / "j.parquet")["weight"].to_pylist() == [0.75, 0.0]
    found = read(tmp_path / "j.parquet", 5)
    assert found.id.tolist() == [4, 0]
    assert found.score.tolist() == [0.5, -2.0]
    assert found.noise_rate == 0.375
    assert found.evidence == ("features", "words")
    np.testing.assert_array_equal(found.p_mismatch, probability)


def test_probabilities_noise_rate_and_evidence_may_be_unknown(tmp_path: Path) -> None:
    found = read(written(tmp_path / "j.parquet", {"id": [0], "score": [1.0]}), 1)
    assert np.isnan(found.p_mismatch).all()
    assert np.isnan(found.noise_rate)
    assert found.evidence == ()


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
        ({"id": [0, 1], "score": [0.5, 0.5]}, {"noise_rate": "much"}, "no number from 0 to 1"),
        ({"id": [0, 1], "score": [0.5, 0.5]}, {"noise_rate": "7.0"}, "no number from 0 to 1"),
    ],
)
def test_a_judgement_that_cannot_be_used_is_one_line(
    tmp_path: Path, columns: dict[str, Any], metadata: dict[str, str], message: str
) -> None:
    path = written(tmp_path / "j.parquet", columns, metadata)
    with pytest.raises(UserError, match=message) as raised:
        read(path, 2)
    assert str(path) in str(raised.value)
    assert "(do it again)" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_not_parquet_or_damaged_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no parquet")
    rows = np.random.default_rng(0).permutation(2000)
    whole = written(tmp_path / "whole", {"id": rows, "score": rows / 7}).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page").write_bytes(whole[:100] + bytes(len(whole) // 2) + whole[100 + len(whole) // 2 :])
    (tmp_path / "footer").write_bytes(whole[:-60] + bytes(40) + whole[-20:])
    for name in ("none", "text", "cut", "page", "footer"):
        with pytest.raises(UserError, match="not a judgement") as raised:
            read(tmp_path / name, 2000)
        assert "\n" not in str(raised.value)
