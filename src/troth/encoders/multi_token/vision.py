"""Image towers with several class tokens."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from troth.encoders.multi_token.config import Trained
from troth.encoders.multi_token.rows import Added, adopt, grown, new_linear, new_projection, no_intermediates, project
from troth.encoders.towers import first_line
from troth.errors import UserError

_WHERE = "model.multi"


class MultiTokenVision(VisionTransformer):  # type: ignore[misc]
    """open_clip's vision transformer with ``m`` class tokens before its patches.

    Every class token has an embedding and a position of its own; the last layer norm and the projection are shared.

    Args:
        tower: whose modules and parameters it takes over; its class token is token 0.
        num_tokens: ``m``.
        sub_dim: dimensions of a token's embedding; a new projection is drawn if the tower's has others.

    Attributes:
        num_tokens: as above.
        added: the parameters that have rows of the added class tokens.

    Raises:
        UserError: if the tower does not end in one class token.
    """

    def __init__(self, tower: VisionTransformer, num_tokens: int, sub_dim: int) -> None:
        _check_pooling(tower)
        adopt(self, tower)
        self.num_tokens = num_tokens
        width, extra = tower.class_embedding.shape[-1], num_tokens - 1
        scale = width**-0.5
        self.added = {"class_embedding": Added(0, 1, extra), "positional_embedding": Added(0, 1, extra)}
        self.class_embedding = grown(
            tower.class_embedding[None], self.added["class_embedding"], scale * torch.randn(extra, width)
        )
        positions = scale * torch.randn(extra, width)
        if not tower.positional_embedding.requires_grad:  # sines and cosines of the patches' places, and no class token
            positions.zero_()
        self.positional_embedding = grown(tower.positional_embedding, self.added["positional_embedding"], positions)
        if sub_dim != tower.output_dim:
            self.proj = new_projection(width, sub_dim)
        self.output_dim = num_tokens * sub_dim

    def _embeds(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B S E"]:
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        tokens = self.class_embedding.to(patches.dtype).expand(len(patches), -1, -1)
        x = torch.cat([tokens, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        first, rest = x[:, : self.num_tokens - 1], x[:, self.num_tokens - 1 :]
        # Patch dropout spares the first token of what it is given.
        return self.ln_pre(torch.cat([first, self.patch_dropout(rest)], dim=1))  # type: ignore[no-any-return]

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the projected class tokens of each picture, side by side: ``D = m n``."""
        tokens = self.transformer(self._embeds(x))[:, : self.num_tokens]
        return project(self.ln_post(tokens), self.proj)

    def forward_intermediates(self, *_: Any, **__: Any) -> Any:
        """Raise a UserError: open_clip's counts on one class token."""
        raise no_intermediates()


def _check_pooling(tower: VisionTransformer) -> None:
    if tower.attn_pool is not None:
        problem = "it ends in an attention pool"
    elif tower.pool_type != "tok":
        problem = f"its pooling is {tower.pool_type!r}"
    elif tower.output_tokens:
        problem = "a decoder takes its patches"
    else:
        return
    raise UserError(
        f"the image tower cannot have several class tokens: {problem}",
        where=_WHERE,
        remedy="take a vision transformer that ends in a class token, such as ViT-B-16",
    )


class MultiTokenTimm(TimmModel):  # type: ignore[misc]
    """A timm vision transformer with ``m`` class tokens, as open_clip's image tower.

    timm builds the trunk with ``m - 1`` of its registers, which stand right behind the class token, with positions of
    their own where the class token has one. What follows the trunk is shared by all tokens. A trunk's own registers
    stand behind the class tokens and stay what they were, unread.

    Args:
        tower: gives weights and preprocessing; a class token of its is token 0.
        vision_cfg: open_clip's configuration of the tower.
        num_tokens: ``m``.
        sub_dim: dimensions of a token's embedding; a new projection is drawn if the tower's has others.
        trained: which weights come from training: a class token and a projection that do not are drawn anew.

    Attributes:
        num_tokens: as above.
        added: the parameters that have rows of the added class tokens.

    Raises:
        UserError: if the tower is neither of timm's ``VisionTransformer`` and ``Eva``, or ends in an attention pool.
    """

    def __init__(
        self, tower: TimmModel, vision_cfg: dict[str, Any], num_tokens: int, sub_dim: int, trained: Trained
    ) -> None:
        adopt(self, tower)
        self.head: nn.Sequential = tower.head
        self.num_tokens = num_tokens
        name, single = vision_cfg["timm_model_name"], tower.trunk
        self.trunk = _trunk_with_tokens(name, single, num_tokens, vision_cfg)
        width = int(single.num_features)
        embeds = not self.trunk.no_embed_class and self.trunk.pos_embed is not None
        own = int(single.cls_token is not None)
        self.added = {"trunk.reg_token": Added(1, 0, num_tokens - 1)} if num_tokens > 1 else {}
        if not own:
            self.added["trunk.cls_token"] = Added(1, 0, 1)
        if embeds:
            self.added["trunk.pos_embed"] = Added(1, own, num_tokens - own)
        _take_over(self.trunk, single, positions=(own, num_tokens) if embeds else (0, 0))
        tokens = [self.trunk.cls_token] if not own or trained == "nothing" else []
        with torch.no_grad():
            # timm starts these at 1e-6 N(0, 1), which would leave all but their positions equal.
            for parameter in (*tokens, *([self.trunk.reg_token[:, : num_tokens - 1]] if num_tokens > 1 else [])):
                parameter.normal_(std=width**-0.5)
        linear = [
            each for head in (self.trunk.head, self.head) for each in head.modules() if isinstance(each, nn.Linear)
        ]
        if trained != "everything" or (linear[-1].out_features if linear else width) != sub_dim:
            self.trunk.head = nn.Identity()
            drop = nn.Dropout(vision_cfg.get("timm_drop", 0.0))
            self.head = nn.Sequential(OrderedDict(drop=drop, proj=new_linear(width, sub_dim)))

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Return the projected class tokens of each picture, side by side: ``D = m n``."""
        trunk = self.trunk
        tokens = trunk.forward_features(x)[:, : self.num_tokens]
        tokens = trunk.head(trunk.head_drop(trunk.fc_norm(tokens)))
        return project(tokens, self.head)

    def forward_intermediates(self, *_: Any, **__: Any) -> Any:
        """Raise a UserError: open_clip's takes what the trunk pools, which is one token."""
        raise no_intermediates()


def _trunk_with_tokens(name: str, single: Any, num_tokens: int, vision_cfg: dict[str, Any]) -> Any:
    import timm
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    registers = {TimmVisionTransformer: "reg_tokens", Eva: "num_reg_tokens"}.get(type(single))
    if registers is None or single.attn_pool is not None:
        problem = f"it is a {type(single).__name__}" if registers is None else "it ends in an attention pool"
        raise UserError(
            f"timm's {name} cannot have several class tokens: {problem}",
            where=_WHERE,
            remedy="take one of timm's VisionTransformer or Eva models, such as vit_base_patch16_224",
        )
    rates = {"drop_path_rate": vision_cfg.get("timm_drop_path"), "patch_drop_rate": vision_cfg.get("patch_dropout")}
    settings: dict[str, Any] = {key: rate for key, rate in rates.items() if rate}
    classes = single.num_classes if isinstance(single.head, nn.Linear) else 0
    settings |= {"class_token": True, "global_pool": "token", registers: num_tokens - 1 + _own_registers(single)}
    try:
        trunk: Any = timm.create_model(name, num_classes=classes, **settings)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise UserError(f"timm's {name} cannot have several class tokens: {first_line(error)}", where=_WHERE) from error
    assert trunk.num_prefix_tokens == num_tokens + _own_registers(single)
    if trunk.patch_embed.img_size != single.patch_embed.img_size:
        trunk.set_input_size(single.patch_embed.img_size)
    return trunk


def _own_registers(trunk: Any) -> int:
    return 0 if trunk.reg_token is None else int(trunk.reg_token.shape[1])


@torch.no_grad()
def _take_over(trunk: Any, single: Any, positions: tuple[int, int]) -> None:
    """Copy the weights of ``single``; of the positions, those of its (0 or 1) class tokens and those of all others."""
    own, theirs = trunk.state_dict(), single.state_dict()
    for name, values in own.items():
        # The norm behind the last block is called fc_norm where it followed the average of the patches.
        source = name if name in theirs else name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name
        if name == "pos_embed":
            before, now = positions
            values[:, :before] = theirs[name][:, :before]
            values[:, now:] = theirs[name][:, before:]
        elif source == "reg_token" and source in theirs:
            values[:, values.shape[1] - theirs[source].shape[1] :] = theirs[source]
        elif source in theirs:
            values.copy_(theirs[source])
        elif name not in ("cls_token", "reg_token"):
            raise UserError(
                f"the image tower cannot have several class tokens: it has no {name} of one with a class token",
                where=_WHERE,
            )
