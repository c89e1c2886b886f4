"""Grad-CAM of a dual encoder: the similarity of a picture and a caption, traced to places and to words."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from troth.data import SampleError
from troth.embed.pictures import Decoded, picture_transform
from troth.encoders import ContrastiveModel, HeadsEncoder, OpenClipEncoder
from troth.encoders.evaluating import evaluating
from troth.errors import UserError
from troth.explain.cut import cut_at, input_of, without_gradients
from troth.explain.explanation import Explanation, Importance
from troth.explain.gradcam import largest_to_one, min_max, token_strength, upsampled
from troth.explain.places import (
    Grid,
    TextPlace,
    frozen_image_place,
    image_place,
    last_layer,
    text_place,
)
from troth.explain.words import Words, words_of
from troth.geometry import Oblique

if TYPE_CHECKING:
    from troth.encoders import FrozenImageEncoder, FrozenTextEncoder

#: A picture: encoded bytes, or already decoded.
Picture = bytes | Image.Image


@dataclass(frozen=True)
class _Seen:
    """A picture that went through the image tower: ``point`` is a function of ``values`` alone."""

    picture: UInt8[npt.NDArray[np.uint8], "H W 3"]
    point: Float[Tensor, "1 D"]
    values: Tensor
    grid: Grid
    cells: Callable[[Tensor], Float[Tensor, "T C"]]


@dataclass(frozen=True)
class _Read:
    """A caption that went through the text tower, likewise."""

    words: Words
    point: Float[Tensor, "1 D"]
    values: Tensor
    pieces: Callable[[Tensor], Float[Tensor, "T C"]]


class _Sides(Protocol):
    """How a kind of encoder is looked into."""

    def see(self, picture: bytes) -> _Seen: ...

    def read(self, caption: str) -> _Read: ...


class Explainer:
    """Explains one model's similarities.

    .. code-block:: text

        y          = similarity(u, v), or of a single pair of spheres <u_k, v_k> (an inner product), -angle (geodesics)
        weight_c   = mean_t dy / dA_tc
        strength_t = max(0, sum_c weight_c A_tc)

    ``A`` are the activations where the last block of a tower begins (behind the block's first norm, if it begins with
    one) of the patches, or of the pieces of words; class, start, end and padding tokens are left out. A convolutional
    tower's are the cells of its last feature map. Maps of pictures are stretched to [0, 1] between their least and
    largest value and spread over the picture. A word is as strong as its strongest piece, and words are divided by the
    strongest: stretched as maps are, a caption of two words would always have one of weight 0.

    A sphere's cosine and its negative angle have the same map: one is an increasing function of the other.

    Args:
        model: the trained model; its modes, its gradients and its weights stay as they are. Heads load the frozen
            encoders that they are named with, once.

    Raises:
        UserError: if the model takes vectors.

    Source: Selvaraju et al. 2017 (Grad-CAM); "Design of the topology for contrastive visual-textual alignment"
    (submission to TMLR), section 4.5 and appendix A.8, for captions and for single pairs of tokens. The paper does not
    say where it takes the activations.
    """

    def __init__(self, model: ContrastiveModel) -> None:
        self.model = model
        encoder = model.encoder
        if isinstance(encoder, OpenClipEncoder):
            self._sides: _Sides = _Towers(model, encoder)
        elif isinstance(encoder, HeadsEncoder):
            self._sides = _Heads(model, encoder)
        else:
            raise UserError(
                "the model takes vectors: there is no picture to explain",
                where="model.kind",
                remedy='explain towers, or "heads" on the features of frozen encoders',
            )

    def explain(self, picture: Picture, caption: str, *, spheres: Sequence[int] = ()) -> Explanation:
        """Explain how similar a picture and a caption are.

        Args:
            picture: encoded bytes, or an RGB picture.
            caption: any text with words.
            spheres: pairs of spheres to explain one by one as well; oblique geometries have some.

        Raises:
            UserError: if the picture cannot be read, the caption has no words, or there is no such sphere.
        """
        scores = [self._similarity, *(self._sphere(number) for number in spheres)]
        with evaluating(self.model), without_gradients(self.model):
            try:
                seen = self._sides.see(_encoded(picture))
            except SampleError as error:
                detail = f" ({error.detail})" if error.detail else ""
                raise UserError(f"the picture cannot be read: {error.reason}{detail}", where="IMAGE") from None
            read = self._sides.read(caption)
            with torch.enable_grad():
                parts = [_importance(score(seen.point, read.point), seen, read) for score in scores]
        return Explanation(seen.picture, read.words.words, parts[0], dict(zip(spheres, parts[1:], strict=True)))

    def _similarity(self, image: Float[Tensor, "1 D"], text: Float[Tensor, "1 D"]) -> Float[Tensor, " 1"]:
        return self.model.geometry.paired_similarity(image, text)

    def _sphere(self, number: int) -> Callable[[Tensor, Tensor], Float[Tensor, " 1"]]:
        geometry = self.model.geometry
        if not isinstance(geometry, Oblique):
            raise UserError(f"a geometry of kind {geometry.kind!r} has no pairs of spheres", where="spheres")
        if not 0 <= number < geometry.num_spheres:
            raise UserError(
                f"there is no sphere {number}", where="spheres", remedy=f"they are 0 to {geometry.num_spheres - 1}"
            )
        one = replace(geometry, num_spheres=1)
        part = slice(number * geometry.sub_dim, (number + 1) * geometry.sub_dim)
        return lambda image, text: one.paired_similarity(image[:, part], text[:, part])


def explain(model: ContrastiveModel, picture: Picture, caption: str, *, spheres: Sequence[int] = ()) -> Explanation:
    """Explain one similarity; see :class:`Explainer`, which explains many."""
    return Explainer(model).explain(picture, caption, spheres=spheres)


def _importance(score: Float[Tensor, " 1"], seen: _Seen, read: _Read) -> Importance:
    # A geometry may stop a gradient altogether, as at a zero vector.
    gradients = torch.autograd.grad(
        score.sum(), (seen.values, read.values), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    cells = token_strength(seen.cells(seen.values.detach()), seen.cells(gradients[0])).view(seen.grid).cpu()
    pieces = token_strength(read.pieces(read.values.detach()), read.pieces(gradients[1])).cpu()
    words = read.words.strength(pieces)
    return Importance(
        score=float(score.detach()),
        image=upsampled(min_max(cells), seen.picture.shape[:2]).numpy(),
        words=largest_to_one(words).numpy(),
        cell_strength=cells.numpy(),
        word_strength=words.numpy(),
    )


class _Towers:
    """Both towers of an open_clip model."""

    def __init__(self, model: ContrastiveModel, encoder: OpenClipEncoder) -> None:
        self.model, self.encoder = model, encoder
        self.transform = picture_transform(encoder, train=False)
        self.image_place, self.text_place = image_place(encoder.clip.visual), text_place(encoder.clip)

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def see(self, picture: bytes) -> _Seen:
        images = self.transform(picture)[None].to(self.device)
        shown = _shown(images[0], self.encoder.preprocess_cfg["mean"], self.encoder.preprocess_cfg["std"])
        place = self.image_place
        with cut_at(place.site) as cut:
            point = self.model.embed_image(images.to(next(self.encoder.parameters()).dtype))
        values = _passed(cut.values)
        grid = place.grid(values, shown.shape[:2])
        return _Seen(shown, point, values, grid, lambda each: place.cells(each, grid))

    def read(self, caption: str) -> _Read:
        ids = self.encoder.tokenize([caption]).to(self.device)
        words = words_of(self.encoder.tokenize, ids[0].tolist())
        place = self.text_place
        with cut_at(place.site) as cut:
            point = self.model.embed_text(ids)
        return _Read(words, point, _passed(cut.values), lambda each: place.pieces(each, ids, words.columns))


class _Heads:
    """Heads on frozen encoders: what is looked at lies in the frozen encoders, and the score behind the heads."""

    def __init__(self, model: ContrastiveModel, encoder: HeadsEncoder) -> None:
        self.model, self.encoder = model, encoder

    @cached_property
    def frozen(self) -> tuple[FrozenImageEncoder, FrozenTextEncoder]:
        image, text = self.encoder.config.open_encoders()
        for side, has, wanted in (
            ("image", image.dim, self.encoder.image_feature_dim),
            ("text", text.dim, self.encoder.text_feature_dim),
        ):
            if has != wanted:
                raise UserError(
                    f"the heads take {side} vectors of {wanted} dimensions, which the frozen encoder does not give",
                    where=f"model.{side}_encoder",
                    remedy="explain heads that learned from pictures",
                )
        return image, text

    def see(self, picture: bytes) -> _Seen:
        frozen = self.frozen[0]
        pixels = Decoded(frozen.transform, frozen.image_size)(picture)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (frozen.mean, frozen.std))
        images = ((pixels[None].float() / 255 - mean) / std).to(frozen.device)
        place = frozen_image_place(frozen.module)
        with cut_at(place.site) as cut:
            point = self.model.embed_image(self._moved(frozen.module(images)))
        values = _passed(cut.values)
        shown = pixels.permute(1, 2, 0).numpy()
        grid = place.grid(values, shown.shape[:2])
        return _Seen(shown, point, values, grid, lambda each: place.cells(each, grid))

    def read(self, caption: str) -> _Read:
        frozen = self.frozen[1]
        pipeline = frozen.pipeline
        ids = torch.tensor(pipeline.token_ids([caption]), device=frozen.device)
        words = words_of(pipeline.tokenizer, ids[0].tolist())
        place = TextPlace(input_of(last_layer(pipeline.module)))
        mask = torch.ones_like(ids)
        with cut_at(place.site) as cut:
            hidden = pipeline.module(input_ids=ids, attention_mask=mask).last_hidden_state
            point = self.model.embed_text(self._moved(pipeline.pool(hidden, mask)))
        return _Read(words, point, _passed(cut.values), lambda each: place.pieces(each, ids, words.columns))

    def _moved(self, features: Tensor) -> Tensor:
        own = next(self.encoder.parameters())
        return features.to(own.device, own.dtype)


def _passed(values: Tensor | None) -> Tensor:
    assert values is not None, "nothing passed the place that was cut"
    return values


def _encoded(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "png")
    return stream.getvalue()


def _shown(
    image: Float[Tensor, "3 H W"], mean: Sequence[float], std: Sequence[float]
) -> UInt8[npt.NDArray[np.uint8], "H W 3"]:
    """Undo the normalisation."""
    pixels = image.cpu().permute(1, 2, 0) * torch.tensor(std) + torch.tensor(mean)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy()
