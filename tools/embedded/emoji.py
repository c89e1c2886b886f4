"""Emoji concepts: names and keywords of emojibase-data, pictures of Noto, Twemoji and OpenMoji."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from render import Job

#: Twemoji is the style never trained on: see "Which style is unseen" in the README.
TRAIN_STYLES = ("noto", "openmoji")
TEST_STYLE = "twemoji"
STYLES = (*TRAIN_STYLES, TEST_STYLE)
LICENSES = {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "openmoji": "CC-BY-SA-4.0"}
MARGINS = {"noto": 1, "twemoji": 4, "openmoji": 0}  # pixels; Noto and OpenMoji have a margin of their own
COMPONENTS = 2  # the emojibase group of skin tones and hair, which are no concepts
MOST_TAGS = 4
_CHAT = """
    adorbs bae bff brb bruh cmon cya gtg idk ily jel lmao lol omg omw rofl smh tbt thx tmi ttfn ttyl wtv xoxo yolo
    you whatever no not the this who what where why
"""
_CHAT_TAGS = frozenset(_CHAT.split())
_PERSON_WORDS = re.compile(r"\b(man|woman|person|men|women|people|boy|girl|child|adult)\b")
_PERSON_CODES = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2", "1f474": "1f9d3"}
_PERSON_CODES |= {"1f475": "1f9d3", "1f478": "1fac5", "1f934": "1fac5", "1f57a": "1f483", "1f385": "1f936"}
_PERSON_CODES |= {"1f930": "1fac4", "1fac3": "1fac4"}
_GENDER_AND_DIRECTION = frozenset({"2640", "2642", "27a1"})


@dataclass(frozen=True, slots=True)
class Variant:
    """A concept as drawn: its base form, or that form with one skin tone."""

    concept: str
    hexcode: str
    name: str
    tone: int | None
    tags: tuple[str, ...]
    category: str
    families: frozenset[str]

    def captions(self) -> list[str]:
        """The name; and the name with its keywords."""
        if not self.tags:
            return [self.name]
        separator = ", " if ":" in self.name else ": "
        return [self.name, self.name + separator + ", ".join(self.tags)]


def canonical(hexcode: str) -> str:
    """The one spelling of a code sequence used here: lower case, no leading zeros, no variation selector."""
    parts = (part.lstrip("0") for part in hexcode.lower().split("-"))
    return "-".join(part for part in parts if part != "fe0f")


def read_variants(npm: Path) -> list[Variant]:
    """All base emoji, each followed by the one toned variant chosen for it, in the order of emojibase."""
    folder = npm / "emojibase-data"
    entries: list[dict[str, Any]] = json.loads((folder / "en" / "data.json").read_text("utf-8"))
    groups: dict[str, str] = json.loads((folder / "meta" / "groups.json").read_text("utf-8"))["groups"]
    entries = [entry for entry in entries if entry.get("group", COMPONENTS) != COMPONENTS]
    frequency = Counter(tag for entry in entries for tag in entry.get("tags", ()))
    variants: list[Variant] = []
    for entry in entries:
        concept = canonical(entry["hexcode"])
        tags = choose_tags(entry["label"], entry.get("tags", []), frequency)
        families = frozenset(_families(concept, entry["label"]))
        for form in (entry, *_one_tone(entry)):
            tone = form.get("tone")
            variants.append(
                Variant(
                    concept=concept,
                    hexcode=canonical(form["hexcode"]),
                    name=form["label"],
                    tone=tone if isinstance(tone, int) else None,
                    tags=tags,
                    category=groups[str(entry["group"])],
                    families=families,
                )
            )
    return variants


def choose_tags(label: str, tags: list[str], frequency: Counter[str]) -> tuple[str, ...]:
    """At most four keywords that add to the name: words, no chat slang, those that many emoji share first."""
    words = re.findall(r"\w+", label.lower())
    useful = [
        tag
        for tag in tags
        if re.fullmatch(r"[a-z][a-z’' -]{2,}", tag)
        and re.search(r"[aeiouy]", tag)
        and tag not in _CHAT_TAGS
        and not all(any(_alike(part, word) for word in words) for part in re.findall(r"\w+", tag))
    ]
    useful.sort(key=lambda tag: (-frequency[tag], tag))
    return tuple(useful[:MOST_TAGS])


def _alike(word: str, other: str) -> bool:
    return word == other or word.rstrip("s") == other.rstrip("s")


def _one_tone(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """One single-tone variant of a toned emoji, chosen by a hash of its code; a list of none or one."""
    toned = [skin for skin in entry.get("skins", ()) if isinstance(skin.get("tone"), int)]
    if not toned:
        return []
    toned.sort(key=lambda skin: int(skin["tone"]))
    return [toned[int(sha256(f"tone:{canonical(entry['hexcode'])}".encode()).hexdigest(), 16) % len(toned)]]


def _families(concept: str, label: str) -> Iterator[str]:
    """Names of the families a concept belongs to; concepts that share one are held out together.

    Gender variants ("man running", "woman running", "person running") and facing directions are one family,
    and so are all families, all kisses, all couples.
    """
    codes = [code for code in concept.split("-") if code not in _GENDER_AND_DIRECTION]
    while codes and codes[-1] == "200d":
        codes.pop()
    mapped = "-".join(_PERSON_CODES.get(code, code) for code in codes).replace("200d-200d", "200d")
    yield "code:" + (mapped or concept)
    plain = _PERSON_WORDS.sub("person", label.lower().removesuffix(": facing right"))
    plain = plain.replace("person and person", "person")
    yield from ("code:1f936",) if "claus" in plain else ()
    group = plain.startswith(("family", "kiss:", "couple with heart"))
    yield "label:" + (plain.split(":")[0] if group else plain)


class Pictures:
    """Where the picture of a code in a style is: an SVG where a package has it, otherwise a 64 px PNG."""

    def __init__(self, npm: Path) -> None:
        noto = npm / "@iconify-json" / "noto"
        self._icons: dict[str, Any] = json.loads((noto / "icons.json").read_text("utf-8"))
        characters: dict[str, str] = json.loads((noto / "chars.json").read_text("utf-8"))
        self._names = {canonical(code): name for code, name in sorted(characters.items())}
        self._files = {
            "twemoji": _by_code(npm / "@twemoji" / "svg", ".svg"),
            "openmoji": _by_code(npm / "openmoji" / "color" / "svg", ".svg"),
            "noto-png": _by_code(npm / "emoji-datasource-google" / "img" / "google" / "64", ".png"),
            "twemoji-png": _by_code(npm / "emoji-datasource-twitter" / "img" / "twitter" / "64", ".png"),
        }

    def job(self, style: str, hexcode: str) -> Job | None:
        """What to draw for this code in this style, or None if the style lacks it."""
        svg = self._noto_svg(hexcode) if style == "noto" else self._files[style].get(hexcode)
        png = self._files.get(f"{style}-png", {}).get(hexcode)
        if svg is None and png is None:
            return None
        return Job(f"{style}-{hexcode}", svg, png, "page", MARGINS[style])

    def _noto_svg(self, hexcode: str) -> str | None:
        name = self._names.get(hexcode)
        icon = self._icons["icons"].get(name) if name else None
        if icon is None:
            return None
        width = icon.get("width", self._icons.get("width", 16))
        height = icon.get("height", self._icons.get("height", 16))
        space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        return f'<svg {space} width="{width}" height="{height}" viewBox="{box}">{icon["body"]}</svg>'


def _by_code(folder: Path, suffix: str) -> dict[str, Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix == suffix)
    return {canonical(path.stem): path for path in found}
