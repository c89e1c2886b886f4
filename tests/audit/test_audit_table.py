"""The audit table: suggestions, decisions, and its files."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from troth.audit import AuditTable, Decisions, Mixture, audit_pairs, pair_scores
from troth.errors import UserError
from troth.geometry import Sphere

SPHERE = Sphere()


def noisy_table(count: int = 200, wrong: int = 60) -> tuple[AuditTable, np.ndarray]:
    """Build a table of pairs of which the first ``wrong`` got the caption of the next."""
    generator = torch.Generator().manual_seed(0)
    image = SPHERE.project(torch.randn(count, 64, generator=generator))
    owner = torch.arange(count)
    owner[:wrong] = (owner[:wrong] + 1) % wrong
    text = SPHERE.project(image + 0.05 * torch.randn(count, 64, generator=generator))[owner]
    table = audit_pairs(
        image,
        text,
        SPHERE,
        ids=np.arange(count) + 1000,
        keys=[f"k{i}" for i in range(count)],
        captions=[f"caption {i}" for i in owner.tolist()],
        caption_keys=[f"k{i}" for i in owner.tolist()],
    )
    return table, owner.numpy()


def test_wrong_pairs_are_dropped_and_their_own_captions_suggested() -> None:
    table, owner = noisy_table()
    assert table.decision[:60] == ("drop",) * 60
    assert set(table.decision[60:]) == {"keep"}
    for row in range(60):
        holder = int(np.flatnonzero(owner == row)[0])
        assert table.suggested_caption_id[row] == holder + 1000
        assert f"“caption {row}” fits better" in table.reason[row]
    assert (table.suggested_caption_id[60:] == -1).all()
    assert "no caption of the set fits better" in table.reason[-1]
    np.testing.assert_array_equal(table.kept(), np.arange(60, 200) + 1000)


def test_the_most_suspicious_are_the_likeliest_then_the_lowest_scores_and_ties_stay_in_order() -> None:
    table, _ = noisy_table()
    unknown = replace(table, p_mismatch=np.full(200, np.nan))
    tied = replace(unknown, score=np.array([3.0, 1.0, 2.0, 1.0] + [9.0] * 196))
    assert tied.most_suspicious(3).tolist() == [1, 3, 2]
    judged = replace(tied, p_mismatch=np.array([0.5, 0.1, 0.9, 0.5] + [0.0] * 195 + [np.nan]))
    assert judged.most_suspicious(4).tolist() == [2, 3, 0, 1]
    assert len(tied.most_suspicious(1000)) == 200


def test_the_suggestion_is_the_best_different_caption_by_a_naive_search() -> None:
    generator = torch.Generator().manual_seed(3)
    image = SPHERE.project(torch.randn(30, 3, generator=generator, dtype=torch.float64))
    kinds = SPHERE.project(torch.randn(7, 3, generator=generator, dtype=torch.float64))
    which = torch.randint(7, (30,), generator=generator)
    captions = [f"kind {k}" for k in which.tolist()]
    table = audit_pairs(image, kinds[which], SPHERE, ids=range(30), keys=captions, captions=captions)
    own = pair_scores(image, kinds[which], SPHERE)
    for row in range(30):
        rivals = {
            captions[j]: float(image[row] @ kinds[which[j]])
            for j in range(30)
            if captions[j] != captions[row] and float(image[row] @ kinds[which[j]]) > own[row]
        }
        suggested = int(table.suggested_caption_id[row])
        if rivals:
            assert captions[suggested] == max(rivals, key=lambda caption: rivals[caption])
            assert captions.index(captions[suggested]) == suggested
        else:
            assert suggested == -1
    assert table.caption_key == (None,) * 30


def test_thresholds_decide() -> None:
    decisions = Decisions(drop_above=0.8, review_above=0.4)
    assert [decisions.decide(p) for p in (0.9, 0.8, 0.5, 0.3, float("nan"))] == [
        "drop",
        "drop",
        "review",
        "keep",
        "keep",
    ]
    with pytest.raises(ValidationError):
        Decisions(drop_above=1.5)


def test_without_an_estimate_everything_is_kept_and_says_why() -> None:
    image = SPHERE.project(torch.randn(5, 4))
    table = audit_pairs(image, image, SPHERE, ids=range(5), keys=list("abcde"), captions=list("vwxyz"))
    assert set(table.decision) == {"keep"}
    assert "no estimate (only" in table.reason[0]


def test_a_given_mixture_is_used() -> None:
    image = SPHERE.project(torch.randn(2, 4))
    mixture = Mixture(True, np.array([0.95, 0.6]), 0.5, (0.0, 1.0), (0.1, 0.1), "")
    table = audit_pairs(image, image, SPHERE, ids=[3, 4], keys=["a", "b"], captions=["x", "y"], mixture=mixture)
    assert table.decision == ("drop", "review")
    assert "60% likely mismatched" in table.reason[1]


def test_the_file_holds_the_table(tmp_path: Path) -> None:
    table, _ = noisy_table(60, 20)
    path = tmp_path / "audit" / "pairs.parquet"
    table.write(path)
    again = AuditTable.read(path)
    for field in fields(AuditTable):
        before, after = getattr(table, field.name), getattr(again, field.name)
        assert type(after) is type(before)
        np.testing.assert_array_equal(after, before)
    assert [p.name for p in path.parent.iterdir()] == ["pairs.parquet"]


def test_unknown_probabilities_are_null_in_the_file(tmp_path: Path) -> None:
    image = SPHERE.project(torch.randn(2, 4))
    table = audit_pairs(image, image, SPHERE, ids=[3, 4], keys=["a", "b"], captions=["x", "y"])
    table.write(tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").column("p_mismatch").null_count == 2
    assert np.isnan(AuditTable.read(tmp_path / "t.parquet").p_mismatch).all()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = noisy_table(60, 20)
    path = tmp_path / "t.parquet"
    path.write_bytes(b"old")

    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", broken)
    with pytest.raises(OSError, match="disk full"):
        table.write(path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_not_an_audit_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        AuditTable.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(UserError, match="not a parquet file"):
        AuditTable.read(tmp_path / "text.parquet")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="no column key, caption, caption_key"):
        AuditTable.read(tmp_path / "other.parquet")


def test_the_subset_file_is_datacomp_s(tmp_path: Path) -> None:
    image = SPHERE.project(torch.randn(3, 4))
    uid = "ffffffffffffffff0000000000000001"
    mixture = Mixture(True, np.array([0.1, 0.1, 1.0]), 0.5, (0.0, 1.0), (0.1, 0.1), "")
    table = audit_pairs(
        image, image, SPHERE, ids=range(3), keys=[uid, "photo.jpg", "bad.jpg"], captions=list("xyz"), mixture=mixture
    )
    table.write_subset(tmp_path / "subset.npy")
    subset = np.load(tmp_path / "subset.npy")
    assert subset.dtype == np.dtype("u8,u8")
    assert len(subset) == 2
    assert (0xFFFFFFFFFFFFFFFF, 1) in subset.tolist()
    assert subset.tolist() == sorted(subset.tolist())


def test_columns_of_another_length_are_refused() -> None:
    image = SPHERE.project(torch.randn(3, 4))
    with pytest.raises(UserError, match="captions: 2 values for 3 pairs"):
        audit_pairs(image, image, SPHERE, ids=range(3), keys=list("abc"), captions=list("xy"))
