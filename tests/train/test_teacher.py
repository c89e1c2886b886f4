"""Teachers, and what else reaches an objective beside the embeddings: which pairs have the same caption."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.embed.test_features import Colours, Lengths
from tests.encoders.test_models import TINY
from tests.torchrun import two_ranks
from tests.train.small import Copying, SmallStream, small_config, small_model
from tests.train.teacher_ranks import main as ranks_main
from troth.data import FeatureStream, Plan
from troth.draws import splitmix64
from troth.embed import FeatureCache, distinct_captions, frozen_features
from troth.encoders import ContrastiveModel, FrozenImageEncoder, Heads, OpenClip, export_open_clip
from troth.errors import UserError
from troth.geometry import Sphere
from troth.objectives.base import Objective
from troth.similarity import GroupMatches, Pairs
from troth.state import State
from troth.train import (
    CachedTeacher,
    OnlineTeacher,
    TaughtRun,
    TaughtStream,
    Trainer,
    dry_run,
)
from troth.train.captions import caption_groups
from troth.train.teacher import FeatureTable, InputFeatures
from troth.train.teacher_tower import FrozenTower
from troth.types import Batch

CPU = torch.device("cpu")


# Captions ------------------------------------------------------------------------------------------------------------


def test_the_mixing_function_is_splitmix64() -> None:
    """The generator's first two outputs from seed 0, as published with it."""
    golden = 0x9E3779B97F4A7C15 - 2**64
    found = splitmix64(torch.tensor([0, golden])).numpy().view(np.uint64).tolist()
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float64, torch.bfloat16])
def test_equal_captions_are_one_group_wherever_they_stand(dtype: torch.dtype) -> None:
    caption = torch.tensor([0, 1, 2, 0, 3, 1, 0])
    distinct = torch.randint(-1000, 1000, (4, 9), generator=torch.Generator().manual_seed(1)).to(dtype)
    groups = caption_groups(distinct[caption])
    assert groups.dtype == torch.int64
    assert torch.equal(groups[:, None] == groups, caption[:, None] == caption)
    order = torch.tensor([5, 2, 0, 6, 4, 1, 3])
    assert torch.equal(caption_groups(distinct[caption][order]), groups[order]), "a row's group is its own affair"
    strided = distinct[caption].t().contiguous().t()
    assert torch.equal(caption_groups(strided), groups)


def test_the_smallest_difference_is_another_group() -> None:
    tokens = torch.zeros(1, 20, dtype=torch.int64)
    flipped = torch.stack(
        [tokens[0] ^ (torch.arange(20) == place) * (1 << bit) for place in range(20) for bit in range(17)]
    )
    swapped = torch.tensor([[1, 2, *[0] * 18], [2, 1, *[0] * 18], [0, 1, 2, *[0] * 17]])
    groups = caption_groups(torch.cat([tokens, flipped, swapped]))
    assert len(groups.unique()) == len(torch.cat([tokens, flipped, swapped]).unique(dim=0)) == 344
    changed = (groups[1:341] ^ groups[0]).numpy().view(np.uint8)
    assert 0.47 < np.unpackbits(changed).mean() < 0.53, "every bit of the number depends on every bit of the row"
    one = torch.tensor([[1.0, 0.5]])
    assert caption_groups(one) != caption_groups(torch.nextafter(one, one + 1))
    assert caption_groups(torch.tensor([[0.0]])) != caption_groups(torch.tensor([[-0.0]])), "bits are compared"


# What the step hands to the objective --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording(Objective):
    """Keeps the pairs it saw."""

    seen: list[Pairs] = field(default_factory=list)
    needs_teacher = True

    def __call__(self, pairs: Pairs, state: State) -> Tensor:
        self.seen.append(pairs)
        return pairs.cross_entropy().image


class _Repeating(SmallStream):
    """Samples 3 i, 3 i + 1 and 3 i + 2 have one caption."""

    def __init__(self) -> None:
        super().__init__()
        self.text = self.text[torch.arange(len(self.text)) // 3]


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_pairs_carry_their_teacher_and_their_matches(micro_batch_size: int | None) -> None:
    objective, stream = Recording(), _Repeating()
    table = torch.arange(40.0)[:, None] * torch.ones(5)
    model = small_model(dtype=torch.float64)
    stream.image, stream.text = stream.image.double(), stream.text.double()
    step = small_config(micro_batch_size=micro_batch_size).step_maker(model, objective, State(40, "f"), 0)
    for number, loaded in enumerate(TaughtStream(stream, FeatureTable(table, "a table")).batches(0, 2)):
        step(loaded, number, 0.0)
    assert len(objective.seen) == 2
    for number, pairs in enumerate(objective.seen):
        assert torch.equal(pairs.index, stream.indices(number))
        assert torch.equal(pairs.teacher_image, table[pairs.index].double())
        assert isinstance(pairs.matches, GroupMatches)
        caption = pairs.index // 3
        assert torch.equal(pairs.matches.group[:, None] == pairs.matches.group, caption[:, None] == caption)
    assert any(len((pairs.index // 3).unique()) < 8 for pairs in objective.seen), "no caption came twice"


def test_an_objective_that_needs_a_teacher_says_so() -> None:
    step = small_config().step_maker(small_model(), Copying(), State(40, "f"), 0)
    with pytest.raises(UserError, match=r"^teacher: the objective copies a teacher, and there is none"):
        step(next(SmallStream().batches(0, 1)), 0, 0.0)


def test_which_teacher_it_is_belongs_to_the_stream() -> None:
    stream = SmallStream()
    taught = TaughtStream(stream, InputFeatures())
    assert taught.fingerprint == stream.fingerprint, "nothing that the stream does not know"
    assert (taught.num_samples, taught.steps_per_epoch, taught.batch_size) == (40, 5, 8)
    prints = {TaughtStream(stream, FeatureTable(torch.zeros(40, 2), name)).fingerprint for name in "aba"}
    assert len(prints) == 2
    assert stream.fingerprint not in prints


def test_a_taught_run_resumes_bit_for_bit_and_only_with_its_teacher(tmp_path: Path) -> None:
    def trainer(folder: Path, stream: SmallStream, teacher: str = "a table") -> Trainer:
        table = torch.randn(40, 9, generator=torch.Generator().manual_seed(2))
        return Trainer(
            small_model(dropout=0.3),
            Copying(),
            TaughtStream(stream, FeatureTable(table, teacher)),
            config=small_config(checkpoint_every_steps=4),
            folder=folder,
            progress=False,
        )

    class Stopping(SmallStream):
        def batches(self, start_step, stop_step, *, view=0):
            yield from super().batches(start_step, 9, view=view)
            raise InterruptedError

    whole = trainer(tmp_path / "whole", SmallStream()).run().checkpoint
    with pytest.raises(InterruptedError):
        trainer(tmp_path / "parts", Stopping()).run()
    with pytest.raises(UserError, match="the content of the data"):
        trainer(tmp_path / "parts", SmallStream(), "another").run(resume=True)
    parts = trainer(tmp_path / "parts", SmallStream()).run(resume=True).checkpoint
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    report = dry_run(small_model(), Copying(), TaughtStream(SmallStream(), InputFeatures()), small_config(epochs=1))
    assert report.total_steps == 5


def test_two_ranks_are_taught_what_one_is(tmp_path: Path) -> None:
    two_ranks("tests.train.teacher_ranks", tmp_path / "two")
    ranks_main(tmp_path / "one")
    one = torch.load(tmp_path / "one" / "0.pt")
    two = [torch.load(tmp_path / "two" / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(two[0]["weights"], one["weights"], rtol=1e-9, atol=1e-10)
    assert [part["teacher"].shape for part in two] == [(15, 4, 12)] * 2
    assert torch.equal(torch.cat([part["teacher"] for part in two], dim=1), one["teacher"])


# Teachers ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student():
    encoder = TINY.build(0)
    encoder.preprocess_cfg.update(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    return encoder


@pytest.fixture(scope="module")
def open_clip_teacher(tmp_path_factory: pytest.TempPathFactory) -> OpenClip:
    encoder = TINY.build(5)
    encoder.preprocess_cfg.update(mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))
    folder = export_open_clip(ContrastiveModel(encoder, Sphere()), tmp_path_factory.mktemp("teacher") / "clip")
    return OpenClip(name=f"local-dir:{folder}")


@pytest.fixture(scope="module")
def timm_teacher(tmp_path_factory: pytest.TempPathFactory) -> FrozenTower:
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(6)
        save_file(timm.create_model("test_byobnet", num_classes=0).state_dict(), path)
    return FrozenTower(image_encoder="timm:test_byobnet", image_size=64, image_weights=str(path))


def pictures(size: int) -> Tensor:
    noise = [Image.effect_noise((size, size), 90) for _ in range(5)]
    return torch.stack([torch.from_numpy(np.stack([np.asarray(image)] * 3)) for image in noise])


def normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return torch.stack([(pixels[:, c] / 255 - mean[c]) / std[c] for c in range(3)], dim=1)


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_an_online_open_clip_teacher_sees_the_students_own_pixels(
    student, open_clip_teacher: OpenClip, micro_batch_size: int | None
) -> None:
    config = OnlineTeacher(encoder=open_clip_teacher, micro_batch_size=micro_batch_size)
    teacher = config.build(TaughtRun(student, Colours(), CPU))
    pixels = pictures(32)
    batch = Batch(torch.arange(5), normalised(pixels, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), torch.zeros(5, 4))
    tower = open_clip_teacher.build().eval()
    with torch.no_grad():
        expected = tower.encode_image(normalised(pixels, (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)))
    found = teacher(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not found.requires_grad
    assert not found.is_inference(), "an objective may save it for its backward pass"
    squeezed = OnlineTeacher(encoder=open_clip_teacher, precision="bfloat16")
    near = squeezed.build(TaughtRun(student, Colours(), CPU))(batch)
    assert near.dtype == torch.float32
    assert 0 < float((near - expected).norm() / expected.norm()) < 0.1


def test_an_online_timm_teacher_sees_them_at_its_own_size(student, timm_teacher: FrozenTower) -> None:
    import torchvision.transforms.functional as vision
    from safetensors.torch import load_file

    teacher = OnlineTeacher(encoder=timm_teacher).build(TaughtRun(student, Colours(), CPU))
    pixels = pictures(32)
    batch = Batch(torch.arange(5), normalised(pixels, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), torch.zeros(5, 4))
    tower = timm.create_model("test_byobnet", num_classes=0).eval()
    tower.load_state_dict(load_file(timm_teacher.image_weights))
    cfg = tower.default_cfg
    resized = vision.resize(pixels / 255, [64, 64], vision.InterpolationMode(cfg["interpolation"]), antialias=True)
    assert resized.max() > 1, "the filter has not overshot"
    with torch.no_grad():
        expected = tower(normalised(resized.clamp(0, 1) * 255, cfg["mean"], cfg["std"]))
    torch.testing.assert_close(teacher(batch), expected, rtol=1e-4, atol=1e-5)


def test_a_cached_teacher_looks_up_by_sample_id(tmp_path: Path, student, open_clip_teacher: OpenClip) -> None:
    calls = []
    run = TaughtRun(student, Colours(), CPU, FeatureCache(tmp_path), on_progress=lambda *at: calls.append(at))
    teacher = CachedTeacher(encoder=open_clip_teacher).build(run)
    tower = open_clip_teacher.build().eval()
    transform = tower.image_transform(train=False)
    rows = [transform(Image.new("RGB", (40, 30), (index * 40, 10, 0))) for index in (0, 1, 3, 5)]
    with torch.no_grad():
        expected = tower.encode_image(torch.stack(rows))
    for order in ([0, 1, 3, 5], [5, 0, 3, 1], [3, 3]):
        index = torch.tensor(order)
        found = teacher(Batch(index, torch.zeros(len(index), 3, 32, 32), torch.zeros(len(index), 4)))
        place = torch.tensor([[0, 1, 3, 5].index(sample) for sample in order])
        torch.testing.assert_close(found, expected[place], rtol=1e-4, atol=1e-5)
        assert not found.is_inference()
    assert {entry.key for entry in teacher.ledger} == {"colour-2", "colour-4"}, "what it could not read is known"
    assert calls == [(6, 6)]
    again = CachedTeacher(encoder=open_clip_teacher).build(run)
    assert calls == [(6, 6)], "the second time comes from the cache"
    assert torch.equal(again.features, teacher.features)
    assert again.identity == teacher.identity


def test_a_cached_teacher_shares_its_features_with_heads(tmp_path: Path, timm_teacher: FrozenTower) -> None:
    cache = FeatureCache(tmp_path)
    heads = Heads(text_feature_dim=2, image_feature_dim=3).build()
    teacher = CachedTeacher(encoder=timm_teacher).build(TaughtRun(heads, Colours(), CPU, cache))
    before = sorted(tmp_path.iterdir())
    encoder = FrozenImageEncoder("timm:test_byobnet", image_size=64, weights=timm_teacher.image_weights)
    features = frozen_features(Colours(), encoder, Lengths(), cache)
    assert torch.equal(features.image_features, teacher.features)
    assert len(list(tmp_path.iterdir())) == len(before) + 1, "the captions alone were new"


@pytest.mark.parametrize("kind", ["input", "cached"])
def test_heads_are_taught_this_ranks_rows(kind: str) -> None:
    source, table = Colours(8), torch.arange(8.0)[:, None] + torch.tensor([0.0, 100.0])
    captions = distinct_captions(source)
    teacher = InputFeatures() if kind == "input" else FeatureTable(-table, "another")
    for rank in range(2):
        stream = FeatureStream(
            source,
            Plan(8, 4, seed=0),
            image_features=table,
            captions=captions,
            text_features=torch.ones(len(captions), 2),
            rank=rank,
            world_size=2,
        )
        for loaded in TaughtStream(stream, teacher).batches(0, 4):
            assert loaded.teacher_image.shape == (2, 2)
            assert torch.equal(loaded.teacher_image, (1 if kind == "input" else -1) * table[loaded.batch.index])


def test_another_view_is_not_taught() -> None:
    asked: list[int] = []

    class Counting:
        identity = "counting"
        ledger = ()

        def __call__(self, batch):
            asked.append(len(batch))
            return batch.image

    stream = TaughtStream(SmallStream(), Counting())
    assert all(loaded.teacher_image is None for loaded in stream.batches(0, 2, view=1))
    assert asked == []
    assert all(loaded.teacher_image is not None for loaded in stream.batches(0, 2))
    assert len(asked) == 2
