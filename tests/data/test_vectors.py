"""Sources of vectors: what a file may hold, what is refused, and names that equal vectors share."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from troth.data import (
    CaptionAssignment,
    FeatureStream,
    FolderSource,
    Noise,
    Plan,
    SpikedSource,
    VectorSource,
    VectorsSource,
    carries_vectors,
    check_source,
    paired_vectors,
)
from troth.errors import UserError

DRAWS = np.random.default_rng(3)
IMAGE, TEXT = DRAWS.normal(size=(6, 4)), DRAWS.normal(size=(6, 3)).astype(np.float32)


def saved(folder: Path, **arrays: object) -> VectorsSource:
    path = folder / "pairs.npz"
    np.savez(path, **arrays)
    return VectorsSource(path=str(path))


def test_a_file_opens_to_its_vectors_labels_and_names(tmp_path: Path) -> None:
    ids = np.array([f"pair {letter}" for letter in "abcdef"])
    source = saved(tmp_path, image=IMAGE, text=TEXT, label=np.array([3, 3, 1, 1, 0, 0]), id=ids).open()
    assert len(source) == 6
    assert source.image_vectors.dtype == source.text_vectors.dtype == torch.float32
    np.testing.assert_array_equal(source.image_vectors.numpy(), IMAGE.astype(np.float32))
    np.testing.assert_array_equal(source.text_vectors.numpy(), TEXT)
    assert [source.category(i) for i in range(6)] == ["3", "3", "1", "1", "0", "0"]
    assert source.key(2) == "pair c"
    assert source.metadata(0) == {"label": "3"}
    assert source.captions(2)[0].startswith("text pair c (")
    assert not check_source(source).counts()


def test_labels_and_names_may_be_missing_and_halves_are_read_as_floats(tmp_path: Path) -> None:
    source = saved(tmp_path, image=IMAGE.astype(np.float16), text=TEXT).open()
    assert [source.key(0), source.key(5)] == ["0", "5"]
    assert source.category(0) is None
    assert source.metadata(0) == {}
    np.testing.assert_array_equal(source.image_vectors.numpy(), IMAGE.astype(np.float16).astype(np.float32))


def test_safetensors_hold_the_same_source(tmp_path: Path) -> None:
    label = torch.tensor([0, 1, 0, 1, 0, 1])
    save_file(
        {"image": torch.tensor(IMAGE), "text": torch.tensor(TEXT), "label": label}, tmp_path / "pairs.safetensors"
    )
    source = VectorsSource(path=str(tmp_path / "pairs.safetensors")).open()
    assert source.fingerprint == saved(tmp_path, image=IMAGE, text=TEXT, label=label.numpy()).open().fingerprint


def test_the_fingerprint_is_of_every_bit_and_not_of_the_place(tmp_path: Path) -> None:
    arrays = {"image": IMAGE, "text": TEXT, "label": np.arange(6)}
    first = saved(tmp_path, **arrays).open().fingerprint
    (tmp_path / "other").mkdir()
    assert saved(tmp_path / "other", **arrays).open().fingerprint == first
    for name, place in (("image", (5, 3)), ("text", (0, 0)), ("label", 2)):
        changed = arrays[name].copy()
        changed[place] += 1
        assert saved(tmp_path, **{**arrays, name: changed}).open().fingerprint != first, name


def test_equal_vectors_have_one_name_and_different_ones_of_two_sources_two(tmp_path: Path) -> None:
    text = TEXT.copy()
    text[4] = text[1]
    source = saved(tmp_path, image=IMAGE, text=text).open()
    names = [source.captions(i)[0] for i in range(6)]
    assert names[4] == names[1]
    assert len(set(names)) == 5
    other = saved(tmp_path, image=IMAGE, text=text + 1).open()
    assert not {other.captions(i)[0] for i in range(6)} & set(names)
    vectors = paired_vectors(source, other)
    assert len(vectors.captions) == len(vectors.text) == 10
    for index in range(6):
        row = vectors.captions.index(source.captions(index)[0])
        torch.testing.assert_close(vectors.text[row], source.text_vectors[index], rtol=0, atol=0)


def test_batches_hold_the_pairs_and_noise_moves_their_texts() -> None:
    source = SpikedSource(num_samples=40).open()
    noise = Noise(fraction=0.25).bind(source, 5)
    assert isinstance(noise, CaptionAssignment)
    vectors = paired_vectors(source)
    stream = FeatureStream(
        source,
        Plan(40, 8, seed=5),
        image_features=vectors.image,
        captions=vectors.captions,
        text_features=vectors.text,
        noise=noise,
    )
    wrong = 0
    for loaded in stream.batches(0, 5):
        ids = loaded.batch.index
        torch.testing.assert_close(loaded.batch.image, source.image_vectors[ids], rtol=0, atol=0)
        owners = torch.from_numpy(noise.caption_of)[ids]
        torch.testing.assert_close(loaded.batch.text, source.text_vectors[owners], rtol=0, atol=0)
        wrong += int(loaded.mismatched.sum())
    assert wrong == 10


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": IMAGE}, "there is no array 'text'"),
        ({"image": IMAGE, "text": TEXT[:5]}, "6 rows of 'image' and 5 of 'text'"),
        ({"image": IMAGE[:0], "text": TEXT[:0]}, "holds no pair"),
        ({"image": IMAGE[0], "text": TEXT}, r"'image' has the shape \(4,\), not \(N, D\)"),
        ({"image": IMAGE[:, :0], "text": TEXT}, r"'image' has the shape \(6, 0\)"),
        ({"image": np.arange(24).reshape(6, 4), "text": TEXT}, "'image' holds int64, not floats"),
        (
            {"image": IMAGE, "text": np.where(TEXT[2, 1] < TEXT, np.nan, TEXT)},
            "rows of 'text' are not finite, the first",
        ),
        ({"image": IMAGE * 1e300, "text": TEXT}, "6 rows of 'image' are not finite, the first is row 0"),
        ({"image": IMAGE, "text": TEXT, "label": np.arange(5)}, r"'label' has the shape \(5,\), not \(6,\)"),
        ({"image": IMAGE, "text": TEXT, "label": TEXT[:, 0]}, "'label' holds float32, not integers or strings"),
        ({"image": IMAGE, "text": TEXT, "id": np.array([1, 2, 3, 4, 2, 6])}, "rows 1 and 4 have one 'id', '2'"),
        ({"image": IMAGE, "text": TEXT, "id": np.array(["a", "b", " ", "d", "e", "f"])}, "row 2 of 'id' is blank"),
        ({"image": np.array([object()] * 6), "text": TEXT}, "cannot be read"),
    ],
)
def test_a_file_that_will_not_do_is_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        saved(tmp_path, **arrays).open()
    assert str(caught.value).startswith("path: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pairs.npz", "pairs.safetensors"])
def test_bytes_that_are_no_arrays_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not arrays at all" * 3)
    with pytest.raises(UserError, match=f"{name} cannot be read") as caught:
        VectorsSource(path=str(tmp_path / name)).open()
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_of_no_known_kind(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("1 2 3")
    np.save(tmp_path / "bare.npy", IMAGE)
    (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
    for path, message in (
        ("", "there is no file ''"),
        (str(tmp_path / "no.npz"), "there is no file"),
        (str(tmp_path / "pairs.txt"), "the suffix of 'pairs.txt' names no format"),
        (str(tmp_path / "bare.npz"), "bare.npz cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            VectorsSource(path=path).open()


def test_there_is_no_picture_in_a_source_of_vectors_and_no_vector_in_one_of_pictures(tmp_path: Path) -> None:
    source = saved(tmp_path, image=IMAGE, text=TEXT).open()
    assert carries_vectors(source)
    with pytest.raises(UserError, match="carries vectors, not pictures"):
        source.read_image(0)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.png").write_bytes(b"x")
    pictures = FolderSource(path=str(tmp_path)).open()
    assert not carries_vectors(pictures)
    with pytest.raises(UserError, match="carries pictures and captions, not vectors"):
        paired_vectors(pictures)


def test_a_view_with_vectors_of_its_own_counts_as_a_source_of_vectors() -> None:
    whole = SpikedSource(num_samples=9).open()
    rows = [1, 4, 8]

    class View:
        """As a subset of a source is: everything passed through."""

        name, ledger, fingerprint = "view", whole.ledger, "view"
        image_vectors, text_vectors = whole.image_vectors[rows], whole.text_vectors[rows]

        def __len__(self) -> int:
            return 3

        def captions(self, index: int) -> tuple[str, ...]:
            return whole.captions(rows[index])

    view = View()
    assert carries_vectors(view)
    vectors = paired_vectors(view)
    assert vectors.captions == tuple(whole.captions(row)[0] for row in rows)
    torch.testing.assert_close(vectors.text, whole.text_vectors[rows])


def test_a_reserve_of_another_dimension_is_refused() -> None:
    source, reserve = SpikedSource(num_samples=5).open(), SpikedSource(num_samples=5, text_dim=20).open()
    with pytest.raises(UserError, match="its text vectors have 20 dimensions, those of spiked train 39"):
        paired_vectors(source, reserve)


def spiked(**options: object) -> VectorSource:
    return SpikedSource(**options).open()


def test_the_spiked_bases_are_orthonormal_and_shared_by_the_splits() -> None:
    train, test = SpikedSource(split="train", num_samples=5), SpikedSource(split="test", num_samples=7)
    for one, other, dim in zip(train.bases(), test.bases(), (40, 39), strict=True):
        assert one.shape == (dim, 10)
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one.T @ one, np.eye(10), atol=1e-12)
    assert not np.allclose(train.bases()[0], SpikedSource(seed=1).bases()[0])


def test_the_spiked_model_has_the_moments_it_says() -> None:
    config = SpikedSource(split="test", num_samples=40_000, noise=0.3)
    source = config.open()
    image_basis, text_basis = config.bases()
    x, y = source.image_vectors.double().numpy(), source.text_vectors.double().numpy()
    # A covariance of 40,000 samples is off by about 1 / sqrt(40,000) = 0.005 an entry.
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(x.T @ x / len(x), image_basis @ image_basis.T + 0.09 * np.eye(40), atol=0.03)
    np.testing.assert_allclose(y.T @ y / len(y), text_basis @ text_basis.T + 0.09 * np.eye(39), atol=0.03)
    np.testing.assert_allclose(x.T @ y / len(x), image_basis @ text_basis.T, atol=0.03)


def test_without_noise_both_sides_are_the_signal() -> None:
    config = SpikedSource(num_samples=20, noise=0.0)
    source = config.open()
    image_basis, text_basis = config.bases()
    signal = source.image_vectors.double().numpy() @ image_basis
    np.testing.assert_allclose(source.text_vectors.numpy(), signal @ text_basis.T, atol=1e-5)


def test_the_splits_are_independent_samples() -> None:
    splits = [spiked(split=split, num_samples=20_000) for split in ("train", "unpaired", "validation", "test")]
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            a, b = one.image_vectors.double(), other.image_vectors.double()
            assert float((a.T @ b / len(a)).abs().max()) < 0.04
    assert len({source.key(0) for source in splits}) == 4


def test_a_longer_sample_begins_with_the_shorter_and_a_seed_changes_all() -> None:
    short, long = spiked(num_samples=10), spiked(num_samples=25)
    torch.testing.assert_close(long.image_vectors[:10], short.image_vectors, rtol=0, atol=0)
    torch.testing.assert_close(long.text_vectors[:10], short.text_vectors, rtol=0, atol=0)
    assert spiked(num_samples=10).fingerprint == short.fingerprint
    assert spiked(num_samples=10, seed=1).fingerprint != short.fingerprint


def test_a_rank_above_the_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at most the smaller dimension, 8"):
        SpikedSource(image_dim=8, rank=9)
