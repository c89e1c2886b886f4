"""What the demo's page shows of single pairs, by models that are made up."""

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from troth.audit import AuditTable
from troth.data import CaptionAssignment, Source
from troth.demo import METHODS
from troth.demo.examples import Pictures, retrieval_examples, suspicious_pairs
from troth.demo.outcome import Outcome
from troth.embed import Embedder
from troth.geometry import Sphere

COUNT = 12


class Drawings:
    """Twelve pictures, each with a caption of its own."""

    fingerprint = "drawings"

    def __len__(self) -> int:
        return COUNT

    def captions(self, index: int) -> list[str]:
        return [f"caption {index}"]

    def key(self, index: int) -> str:
        return f"key-{index}"

    def read_image(self, index: int) -> bytes:
        return bytes([index])


@dataclass
class MadeUp:
    """A model that puts every caption beside the picture that it is told to; twelve pictures lie at right angles."""

    beside: list[int]
    geometry: ClassVar[Sphere] = Sphere()

    def images(self, source: Source) -> tuple[Tensor, Tensor]:
        return torch.arange(COUNT), torch.eye(COUNT)

    def texts(self, captions: list[str]) -> Tensor:
        own = torch.tensor([self.beside[int(caption.split()[1])] for caption in captions])
        # A ladder of similarities below the first, so that what is found is one thing only.
        ladder = 0.5 - 0.02 * ((torch.arange(COUNT) - own[:, None]) % COUNT)
        return F.normalize(ladder + torch.eye(COUNT)[own], dim=-1)


def outcomes_of(*models: MadeUp) -> list[Outcome]:
    return [
        Outcome(method, cast(Embedder, model), [], {}, 0.0, None) for method, model in zip(METHODS, models, strict=True)
    ]


def test_one_query_is_shown_of_each_outcome_and_none_of_one_that_no_query_has() -> None:
    right = list(range(COUNT))
    far = [(each + 6) % COUNT for each in right]  # the right one is not among the first five
    plain = MadeUp([*right[:2], *far[2:]])
    robust = MadeUp([far[0], *right[1:]])
    pictures = Pictures(cast(Source, Drawings()), "retrieval")
    found = retrieval_examples(outcomes_of(plain, robust, MadeUp(right)), cast(Source, Drawings()), pictures)
    by_text = [each for each in found if each.query_text]
    # Both find caption 1, the robust one alone first caption 2, the plain one alone caption 0.
    assert [each.query_text for each in by_text] == ["caption 1", "caption 2", "caption 0"]
    hits = [[any(item.right for item in answer.results) for answer in each.answers] for each in by_text]
    assert hits == [[True, True, True], [False, True, True], [True, False, True]]
    assert all(len(answer.results) == 5 for each in found for answer in each.answers)
    shown = {item.image for each in by_text for answer in each.answers for item in answer.results}
    assert shown <= pictures.images.keys()
    assert pictures.images["retrieval-1.webp"] == bytes([1])

    alike = retrieval_examples(outcomes_of(*[MadeUp(right)] * 3), cast(Source, Drawings()), pictures)
    assert [bool(each.query_text) for each in alike] == [True, False]


def test_a_suspicious_pair_is_shown_with_what_it_should_have_had() -> None:
    caption_of = np.arange(COUNT)
    caption_of[[3, 5]] = [5, 3]
    noise = CaptionAssignment(caption_of, caption_of != np.arange(COUNT), "drawings")
    probability = np.full(COUNT, 0.1)
    probability[[3, 7]] = [0.9, np.nan]
    suggested = np.full(COUNT, -1)
    suggested[3] = 5  # what sample 5 was given is 3's own
    table = AuditTable(
        id=np.arange(COUNT),
        key=tuple(f"key-{each}" for each in range(COUNT)),
        caption=tuple(f"caption {owner}" for owner in caption_of),
        caption_key=tuple(f"key-{owner}" for owner in caption_of),
        score=np.linspace(0, 1, COUNT),
        quality=np.linspace(0, 1, COUNT),
        p_mismatch=probability,
        decision=("keep",) * COUNT,
        reason=("",) * COUNT,
        suggested_caption_id=suggested,
    )
    pictures = Pictures(cast(Source, Drawings()), "train")
    pairs = suspicious_pairs(table, noise, cast(Source, Drawings()), pictures)
    assert len(pairs) == COUNT
    first = pairs[0]
    assert (first.id, first.caption, first.own_caption, first.suggested_caption) == (
        3,
        "caption 5",
        "caption 3",
        "caption 3",
    )
    assert (first.mismatched, first.p_mismatch) == (True, 0.9)
    assert (first.image, first.owner_image, first.owner_key) == ("train-3.webp", "train-5.webp", "key-5")
    own = next(each for each in pairs if each.id == 7)
    assert (own.mismatched, own.p_mismatch, own.owner_image, own.owner_key) == (False, None, None, "")
    assert own.suggested_caption == ""
    assert pictures.images.keys() == {f"train-{each}.webp" for each in range(COUNT)}
