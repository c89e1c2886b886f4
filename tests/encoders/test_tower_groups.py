"""Groups of a tower's parameters: open_clip's own for its towers, timm's for timm's."""

import json
from pathlib import Path

import open_clip
import pytest
from open_clip.tokenizer import HFTokenizer
from timm.models import group_parameters
from torch import nn
from transformers import BertTokenizerFast

from tests.encoders.test_models import TINY, TINY_TIMM
from tests.train.small import SmallEncoder
from troth.encoders import Heads, OpenClip, OpenClipEncoder, Small, Timm
from troth.encoders.base import DualEncoder
from troth.encoders.tower_groups import tower_groups
from troth.encoders.towers import quiet_open_clip
from troth.errors import UserError

DEEP = Small(**{**TINY.__dict__, "vision_layers": 3, "text_layers": 2})
TIMM_VIT = Timm(name="test_vit", image_size=160, embed_dim=32, text_width=64, text_layers=1, text_heads=1)


def hugging_face(folder: Path) -> OpenClipEncoder:
    """A small vision transformer beside a small BERT, from files of this machine."""
    (folder / "bert").mkdir(parents=True, exist_ok=True)
    bert = {
        "model_type": "bert",
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 12,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    (folder / "bert" / "config.json").write_text(json.dumps(bert))
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 64},
        "text_cfg": {
            "hf_model_name": str(folder / "bert"),
            "hf_tokenizer_name": str(folder / "bert"),
            "hf_proj_type": "linear",
            "hf_pooler_type": "mean_pooler",
        },
    }
    with quiet_open_clip():
        clip = open_clip.CustomTextCLIP(
            config["embed_dim"], config["vision_cfg"], {**config["text_cfg"], "hf_model_pretrained": False}
        )
    open_clip.set_model_preprocess_cfg(clip, {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(97 + i) for i in range(26))]
    (folder / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")

    def tokenizer() -> HFTokenizer:
        BertTokenizerFast(str(folder / "bert" / "vocab.txt")).save_pretrained(str(folder / "bert"))
        return HFTokenizer(str(folder / "bert"), context_length=12)

    return OpenClipEncoder(clip, config, tokenizer, pretrained=False)


def learning(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("config", [DEEP, OpenClip(name="ViT-S-32-alt")], ids=["small", "stock"])
@pytest.mark.parametrize("unlocked", [0, 1, 2, 3])
def test_they_are_those_of_open_clips_lock(config, unlocked: int) -> None:
    encoder = config.build(0)
    image, text = tower_groups(encoder, "image"), tower_groups(encoder, "text")
    everything = {name for name, _ in encoder.named_parameters()}
    assert {name for group in (*image, *text) for name in group} == everything
    assert sum(map(len, (*image, *text))) == len(everything)
    encoder.clip.lock_image_tower(unlocked_groups=unlocked)
    encoder.clip.lock_text_tower(unlocked_layers=unlocked)
    for groups in (image, text):
        own = {name for group in groups for name in group}
        assert learning(encoder) & own == {name for group in groups[len(groups) - unlocked :] for name in group}


@pytest.mark.parametrize("config", [TIMM_VIT, TINY_TIMM], ids=lambda config: config.name)
def test_timms_trunks_group_themselves_and_the_projection_is_last(config: Timm) -> None:
    encoder = config.build(0)
    groups, trunk = tower_groups(encoder, "image"), encoder.clip.visual.trunk
    theirs = group_parameters(trunk, trunk.group_matcher(coarse=False))
    assert [sorted(group) for group in groups[:-1]] == [
        sorted(f"clip.visual.trunk.{name}" for name in theirs[number]) for number in sorted(theirs)
    ]
    assert groups[-1] == ["clip.visual.head.proj.weight"]
    assert len(groups) > 3


def test_a_resnet_of_open_clip_has_stem_stages_and_pool() -> None:
    visual = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    clip = open_clip.CLIP(16, visual, text)
    open_clip.set_model_preprocess_cfg(clip, {"size": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    config = {"embed_dim": 16, "vision_cfg": visual, "text_cfg": text}
    groups = tower_groups(OpenClipEncoder(clip, config, lambda: None, pretrained=False), "image")
    assert [group[0].removeprefix("clip.visual.").split(".")[0] for group in groups] == [
        *("conv1", "layer1", "layer2", "layer3", "layer4", "attnpool")
    ]


def test_a_hugging_face_tower_has_embeddings_blocks_and_projection(tmp_path: Path) -> None:
    encoder = hugging_face(tmp_path)
    groups = tower_groups(encoder, "text")
    assert len(groups) == 4
    assert all(".embeddings." in name for name in groups[0])
    for number in (0, 1):
        assert all(f".encoder.layer.{number}." in name for name in groups[1 + number])
    assert groups[3] == ["clip.text.proj.weight"]
    assert {name for group in groups for name in group} == {
        name for name, _ in encoder.named_parameters() if name.startswith("clip.text.")
    }
    assert [len(group) for group in tower_groups(encoder, "image")][-1] == 1


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_heads_count_by_block(depth: int) -> None:
    groups = tower_groups(Heads(hidden_dim=16, depth=depth).build(0), "text")
    assert len(groups) == depth + 2
    assert [len(group) for group in groups] == ([4, *[6] * (depth - 1), 8, 2] if depth else [6, 2])
    assert all(name.startswith("text_head.") for group in groups for name in group)


def test_other_encoders_count_by_module() -> None:
    assert tower_groups(SmallEncoder(), "text") == [
        ["text_tower.0.weight", "text_tower.0.bias"],
        ["text_tower.3.weight", "text_tower.3.bias"],
    ]

    class One(SmallEncoder):
        def __init__(self) -> None:
            DualEncoder.__init__(self)
            self.shared = nn.Linear(2, 2)

    with pytest.raises(UserError, match="no image tower of its own"):
        tower_groups(One(), "image")
