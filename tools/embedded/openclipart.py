"""OpenClipart drawings as Debian packages them: where they are, and captions from what their makers wrote."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha1, sha256
from pathlib import Path

from render import Job

MARGIN = 4
LICENSE = "CC-PDDC"  # SPDX: Creative Commons Public Domain Dedication and Certification
STARS_KEPT_ONE_IN = 32  # of the 1,375 star polygons of one series, all called "gramastar"
COLLECTION = 4  # a title that so many drawings share may name a collection instead of a drawing
MOST_KEYWORDS = 8

_USELESS = """
    hash, unsorted, special, magick, theme, media, svg, image, images, clipart, clip art, openclipart, menu, mimetypes,
    mime types, hotel, shapes, stock, miscellany, webpage, action, none, unknown, na, externalsource, public domain,
    signs and symbols, united nations member, lemon theme icon
"""
_USELESS_KEYWORDS = frozenset(" ".join(_USELESS.split()).split(", "))
_SPELLED_OUT = {
    "mapsym": "map symbol", "musicsym": "music symbol", "networksym": "network symbol",
    "weathersym": "weather symbol", "arrowshape": "arrow", "musicstuff": "music", "xmas": "christmas",
    "roadsign": "road sign", "bodypart": "body part", "icecream": "ice cream", "signalflag": "signal flag",
    "latinamerica": "latin america", "usholiday": "holiday", "northamerica": "north america",
    "religholiday": "religious holiday", "appicon": "application icon", "airtravel": "air travel",
    "roadtravel": "road travel", "vegitable": "vegetable", "unitedstates": "united states",
    "bullethole": "bullet hole", "mimeicon": "icon", "stickmen": "stick man", "lightbulb": "light bulb",
}  # fmt: skip
_SUITS = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades"}
_RANKS = {"a": "ace", "k": "king", "q": "queen", "j": "jack"}
_NO_DESCRIPTION = re.compile(
    r"https?:|www\.|@|public domain|created with|made with|sodipodi|inkscape|derivative|derived|converted|"
    r"HASH\(|contact:|licen[cs]e|collection|submission|\bI\b|\bI'm\b|\bmy\b|\bme\b|\bSVG\b|copyright|clip ?art",
    re.IGNORECASE,
)
_THEME_NOISE = frozenset({"aiga", "bb", "gnome", "mime", "gtk", "stock", "dev", "fs", "ganson", "aj", "zazou"})
_FOREIGN_AUTHORS = ("rollandin", "guillou")  # their titles are Italian and French
_UNFIT_FOR_TEST = ("computer/icons", "special", "shapes/stars", "recreation/games/cards", "unsorted")


@dataclass(frozen=True, slots=True)
class Drawing:
    """One drawing and the words that go with it."""

    key: str
    captions: tuple[str, ...]
    category: str
    title: str
    author: str
    fit_for_test: bool
    job: Job


@dataclass(frozen=True, slots=True)
class _Metadata:
    path: Path
    title: str
    description: str
    keywords: tuple[str, ...]
    author: str
    license: str


def read_drawings(folder: Path, dropped: Counter[str]) -> list[Drawing]:
    """All drawings worth keeping, by their paths; the others are counted in `dropped` by reason."""
    records: list[_Metadata] = []
    for path in sorted((folder / "svg").rglob("*.svg")):
        if path.is_symlink():
            dropped["openclipart: link to another drawing"] += 1
        elif (record := _read(path)).title == "gramastar" and _hash(path.stem) % STARS_KEPT_ONE_IN:
            dropped["openclipart: thinned series of star polygons"] += 1
        elif record.license and "publicdomain" not in record.license.lower():
            dropped["openclipart: says it has another licence"] += 1
        else:
            records.append(record)
    titles = Counter(record.title for record in records)
    descriptions = Counter(record.description for record in records)
    return [
        _drawing(
            record,
            folder,
            shared_title=titles[record.title] >= COLLECTION,
            shared_description=descriptions[record.description] >= COLLECTION,
        )
        for record in records
    ]


def _hash(text: str) -> int:
    return int(sha256(text.encode()).hexdigest(), 16)


def _read(path: Path) -> _Metadata:
    """The RDF metadata of one file; empty where it says nothing or cannot be read."""
    try:
        work = ElementTree.parse(path).getroot().find(".//{*}Work")
    except ElementTree.ParseError:
        work = None
    if work is None:
        return _Metadata(path, "", "", (), "", "")
    keywords = [item.text for item in work.iterfind("{*}subject//{*}li") if item.text]
    return _Metadata(
        path=path,
        title=_tidy(work.findtext("{*}title") or ""),
        description=_tidy(work.findtext("{*}description") or ""),
        keywords=tuple(keywords),
        author=_author(work.findtext("{*}creator//{*}title") or ""),
        license=next((value for node in work.iterfind("{*}license") for value in node.attrib.values()), ""),
    )


def _tidy(text: str) -> str:
    text = " ".join(html.unescape(text).split())
    with suppress(UnicodeError):
        text = text.encode("latin-1").decode("utf-8")  # some files were encoded twice
    return "" if "HASH(" in text or re.fullmatch(r"\S+@\S+", text) else text


def _author(text: str) -> str:
    """The author's name, without an e-mail address."""
    text = " ".join(re.sub(r"[\[(<]?\S+@\S+", " ", _tidy(text)).split())
    return "" if text.lower() in {"none", "anonymous", "unknown", "c..."} else text


def _drawing(record: _Metadata, folder: Path, *, shared_title: bool, shared_description: bool) -> Drawing:
    path = record.path.relative_to(folder / "svg")
    category = path.parent.as_posix()
    first = _with_category(caption(record.title, path.stem, record.author, category, shared_title), category)
    keywords = _keywords(record, first)
    captions = [first]
    if keywords:
        captions.append(f"{first}: {', '.join(keywords)}" if len(first) <= 60 else ", ".join(keywords))
    description = record.description.replace("_", " ")
    if not shared_description and _describes(description, first):
        captions.append(description)
    has_text = re.search(rb"<(svg:)?(text|flowRoot)\b", record.path.read_bytes()) is not None
    png = folder / "png" / path.with_suffix(".png")
    slug = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:32].strip("-")
    key = f"openclipart-{slug}-{sha1(path.as_posix().encode()).hexdigest()[:6]}"
    crop = "alpha" if "flags" in path.parts else "ink"
    fallback = png if png.exists() else None
    # Text is drawn with the fonts of the machine: the PNG that the package ships is the same everywhere.
    job = Job(key, None if has_text and fallback else record.path, fallback, crop, MARGIN)
    fit = _fit_for_test(first, category, record.author)
    return Drawing(key, tuple(captions), category, record.title, record.author, fit, job)


def _fit_for_test(first: str, category: str, author: str) -> bool:
    """Whether the caption can be expected to be an English name of the drawing."""
    foreign = any(name in author.lower() for name in _FOREIGN_AUTHORS)
    readable = re.search(r"[aeiouy]", first.lower()) is not None
    return readable and not foreign and not category.startswith(_UNFIT_FOR_TEST)


def caption(title: str, stem: str, author: str, category: str, shared: bool) -> str:
    """A short name of the drawing: its title, or its file's name where the title names no drawing."""
    card = re.fullmatch(r"(\w+)_([cdhs])_(a|k|q|j|\d+)", stem)
    if card and "cards" in category:
        return f"{_RANKS.get(card[3], card[3])} of {_SUITS[card[2]]} ({card[1]} playing card)"
    star = re.fullmatch(r"star_(\d+)pt(\d+)step", stem)
    if star:
        return f"star polygon with {int(star[1])} points"
    pasted = title.startswith("Clipart by ")
    slug = re.sub(r"[^a-z0-9]", "", title.lower())[:10]
    names_file = bool(slug) and re.sub(r"[^a-z0-9]", "", stem.lower()).startswith(slug)
    if title and not pasted and (names_file or not shared) and re.search(r"[^\W\d_]{3}", title):
        return clean_title(title)
    from_file = clean_stem(stem, author)
    if re.search(r"[^\W\d_]{3}", from_file):
        return from_file
    if title and not pasted and not title.startswith(("Part of", "Lemon", "Etiquette")):
        return clean_title(title)
    return category.rsplit("/", 1)[-1].replace("_", " ").replace("-", " ")


def clean_title(title: str) -> str:
    """Underscores and camel case to spaces, serial numbers away, "(B and W)" spelled out."""
    text = title.replace("_", " ").strip(" .\"'-")
    if " " not in text:
        text = text.replace("-", " ")
    text = re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z]{2})", " ", text)
    text = re.sub(r"\(B (and|&) W\)|\bbw\b|\bb/w\b", "(black and white)", text, flags=re.IGNORECASE)
    text = re.sub(r"\.svg$", "", text, flags=re.IGNORECASE)
    shorter = re.sub(r"(\s+0\d{1,2}|#\s*\d+|(?<=[a-z]{4})\d{1,3})$", "", text).strip(" -")
    return " ".join((shorter if re.search(r"[^\W\d_]{3}", shorter) else text).split())


def clean_stem(stem: str, author: str) -> str:
    """The words of a file name, without the author's name, serial numbers and the prefixes of icon themes."""
    stem = re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z]{2})", "_", stem)
    words = [word for word in re.split(r"[\s_.\-]+", stem) if word]
    initials = {re.sub(r"\W", "", word.lower()) for word in author.split()}
    for place in range(1, len(words)):
        if len(words[place]) >= 3 and words[place].lower() in initials:
            words = words[:place]
            break
    words = [word for word in words if word.lower() not in _THEME_NOISE] or words
    words = [re.sub(r"^\d+(?=[a-z]{3})|(?<=[a-z]{3})\d+$", "", word) for word in words]
    while len(words) > 1 and re.fullmatch(r"v?\d+\w?|[a-z]", words[-1]):
        words.pop()
    return clean_title(" ".join("black and white" if word == "bw" else word for word in words))


def _with_category(name: str, category: str) -> str:
    """Say what only the folder says: that the picture is a flag, or an icon."""
    parts = category.split("/")
    if "flags" in parts and "flag" not in name.lower():
        historic = re.fullmatch(r"historic\s*-\s*(.+)", name, flags=re.IGNORECASE)
        name = historic[1] if historic else name
        name = name[0].upper() + name[1:]
        return f"{'historic ' if historic else ''}flag of {name}"
    if category.startswith("computer/icons") and "icon" not in name.lower():
        return f"{name} icon"
    return name


def _keywords(record: _Metadata, first: str) -> list[str]:
    """The keywords that add something to the first caption, spelled out."""
    said = set(re.findall(r"\w+", first.lower()))
    author = record.author.lower()
    kept: list[str] = []
    for raw in record.keywords:
        word = " ".join(raw.lower().replace("_", " ").replace("-", " ").split())
        word = _SPELLED_OUT.get(word, word)
        words = re.findall(r"\w+", word)
        useless = (
            word in _USELESS_KEYWORDS
            or word.rstrip("s") in {earlier.rstrip("s") for earlier in kept}
            or (word == "sign" and "flag" in said)
            or (author and (word in author or author in word))
            or not re.search(r"[^\W\d_]{2}", word)
            or re.search(r"hash|0x|\d{3}|@|rollandin|theme", word)
            or len(word) > 30
            or all(part in said or part.rstrip("s") in said or part + "s" in said for part in words)
        )
        if not useless:
            kept.append(word)
    return kept[:MOST_KEYWORDS]


def _describes(description: str, first: str) -> bool:
    plain = re.sub(r"\W+", " ", description.lower()).strip()
    said = re.sub(r"\W+", " ", first.lower()).strip()
    return 5 <= len(description) <= 200 and plain != said and not _NO_DESCRIPTION.search(description)
