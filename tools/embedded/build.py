"""Build the embedded data set from installed packages: `python tools/embedded/build.py --npm DIR`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import emoji
import openclipart
import splits
from PIL import features
from render import Canvas, Job, Picture, draw_all
from shards import Sample, write_split

ROOT = Path(__file__).resolve().parents[2]
NPM_PACKAGES = (
    "@iconify-json/noto",
    "@twemoji/svg",
    "emoji-datasource-google",
    "emoji-datasource-twitter",
    "emojibase-data",
    "openmoji",
)
DEBIAN_PACKAGES = ("openclipart-svg", "openclipart-png")
SPLITS = ("train", "retrieval", "concept", "style-shift")


class MissingPackageError(Exception):
    """A package that has to be installed first."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    npm: Path
    openclipart: Path
    output: Path
    canvas: Canvas
    workers: int
    timeout: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, and say what was built."""
    options = parse(arguments)
    try:
        packages = package_versions(options)
    except MissingPackageError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 2
    manifest = build(options, packages)
    size = sum(shard["bytes"] for shard in manifest["shards"].values())
    print(f"{manifest['counts']} in {len(manifest['shards'])} shards, {size:,} bytes")
    print(f"dropped: {manifest['dropped']}")
    return 0


def parse(arguments: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--npm", type=Path, required=True, help="folder with node_modules, or itself")
    parser.add_argument("--openclipart", type=Path, default=Path("/usr/share/openclipart"))
    parser.add_argument("--output", type=Path, default=ROOT / "src" / "troth" / "data" / "embedded")
    parser.add_argument("--side", type=int, default=112, help="pixels of an image's side")
    parser.add_argument("--quality", type=int, default=80, help="WebP quality")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one drawing")
    given = parser.parse_args(arguments)
    modules = given.npm / "node_modules"
    return Options(
        npm=modules if modules.is_dir() else given.npm,
        openclipart=given.openclipart,
        output=given.output,
        canvas=Canvas(given.side, given.quality),
        workers=given.workers,
        timeout=given.timeout,
    )


def package_versions(options: Options) -> dict[str, str]:
    """The versions of all packages used; raises if one is not installed."""
    found: dict[str, str] = {}
    for name in NPM_PACKAGES:
        description = options.npm / name / "package.json"
        if not description.is_file():
            raise MissingPackageError(f"npm package {name} is missing in {options.npm}: npm install {name}")
        found[f"npm {name}"] = str(json.loads(description.read_text("utf-8"))["version"])
    for name, folder in zip(DEBIAN_PACKAGES, ("svg", "png"), strict=True):
        if not (options.openclipart / folder).is_dir():
            place = options.openclipart / folder
            raise MissingPackageError(f"Debian package {name} is missing ({place}): apt-get install {name}")
        found[f"debian {name}"] = debian_version(name)
    found |= {f"pypi {name}": version(name) for name in ("numpy", "pillow", "resvg-py")}
    found["libwebp"] = str(features.version_module("webp"))
    found["zlib"] = zlib.ZLIB_RUNTIME_VERSION
    return found


def debian_version(name: str, status: Path = Path("/var/lib/dpkg/status")) -> str:
    """The installed version of a Debian package, or "unknown" where there is no dpkg."""
    if status.is_file():
        for paragraph in status.read_text("utf-8").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line)
            if fields.get("Package") == name:
                return fields.get("Version", "unknown")
    return "unknown"


def build(options: Options, packages: Mapping[str, str]) -> dict[str, Any]:
    """Read, draw, split, write; returns the manifest."""
    dropped: Counter[str] = Counter()
    drawings = openclipart.read_drawings(options.openclipart, dropped)
    variants = emoji.read_variants(options.npm)
    jobs = [drawing.job for drawing in drawings] + emoji_jobs(options.npm, variants, dropped)
    pictures = draw_pictures(jobs, options, dropped)
    drawings = distinct_drawings(drawings, pictures, dropped)
    samples = assemble(drawings, variants, pictures, dropped)
    return publish(options.output, samples, facts(options, packages, samples, pictures, dropped))


def facts(
    options: Options,
    packages: Mapping[str, str],
    samples: Mapping[str, Sequence[Sample]],
    pictures: Mapping[str, Picture],
    dropped: Counter[str],
) -> dict[str, Any]:
    """What the manifest says besides the shards."""
    used = {sample.key for members in samples.values() for sample in members}
    png = Counter(key.split("-")[0] for key in pictures if key in used and pictures[key].from_png)
    return {
        "image": {"side": options.canvas.side, "format": "webp", "quality": options.canvas.quality},
        "counts": {split: len(samples[split]) for split in SPLITS},
        "styles": {
            split: dict(sorted(Counter(str(sample.record["style"]) for sample in samples[split]).items()))
            for split in SPLITS
        },
        "concepts": {
            "all": len(samples["style-shift"]),
            "held_out": sum(sample.record["held_out"] for sample in samples["style-shift"]),
        },
        "near_duplicate_correlation": splits.NEAR_DUPLICATE,
        "drawn_from_png": dict(sorted(png.items())),
        "dropped": dict(sorted(dropped.items())),
        "packages": dict(packages),
    }


def emoji_jobs(npm: Path, variants: Sequence[emoji.Variant], dropped: Counter[str]) -> list[Job]:
    """What to draw for the emoji: base forms in all styles, toned forms in the training styles."""
    places = emoji.Pictures(npm)
    jobs: list[Job] = []
    for variant in variants:
        for style in emoji.STYLES if variant.tone is None else emoji.TRAIN_STYLES:
            job = places.job(style, variant.hexcode)
            if job is None:
                dropped[f"{style}: not in this style"] += 1
            else:
                jobs.append(job)
    return jobs


def draw_pictures(jobs: Sequence[Job], options: Options, dropped: Counter[str]) -> dict[str, Picture]:
    """Draw everything; what cannot be drawn is counted by style and reason."""
    pictures: dict[str, Picture] = {}
    drawn = draw_all(jobs, options.canvas, options.workers, options.timeout)
    for done, (job, outcome) in enumerate(drawn, 1):
        if isinstance(outcome, Picture):
            pictures[job.key] = outcome
        else:
            dropped[f"{job.key.split('-')[0]}: {outcome}"] += 1
        if done % 1000 == 0:
            print(f"drawn {done} of {len(jobs)}", file=sys.stderr)
    return dict(sorted(pictures.items()))


def distinct_drawings(
    drawings: Sequence[openclipart.Drawing], pictures: dict[str, Picture], dropped: Counter[str]
) -> list[openclipart.Drawing]:
    """Those with a picture that do not repeat an earlier one to the pixel under the same first caption."""
    seen: set[tuple[str, str]] = set()
    kept: list[openclipart.Drawing] = []
    for drawing in drawings:
        if drawing.key not in pictures:
            continue
        identity = (pictures[drawing.key].digest, drawing.captions[0].casefold())
        if identity in seen:
            dropped["openclipart: same picture and caption as another"] += 1
            del pictures[drawing.key]
        else:
            seen.add(identity)
            kept.append(drawing)
    return kept


def assemble(
    drawings: Sequence[openclipart.Drawing],
    variants: Sequence[emoji.Variant],
    pictures: Mapping[str, Picture],
    dropped: Counter[str],
) -> dict[str, list[Sample]]:
    """The samples of each split."""
    concepts = splits.complete_concepts(variants, pictures)
    dropped["emoji: concept not in all three styles"] = sum(v.tone is None for v in variants) - len(concepts)
    families = splits.concept_families(concepts, pictures)
    held_out = splits.held_out_concepts(families)
    emoji_captions = [text for variant in variants for text in variant.captions()]
    tested = splits.retrieval_drawings(drawings, emoji_captions, pictures)
    unseen = {splits.plain_name(v.name) for v in concepts if v.concept in held_out}
    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for drawing in drawings:
        if drawing.key in tested:
            samples["retrieval"].append(drawing_sample(drawing, pictures))
        elif unseen.isdisjoint(splits.plain_name(text) for text in drawing.captions):
            samples["train"].append(drawing_sample(drawing, pictures))
        else:
            dropped["openclipart: names a held-out concept"] += 1
    for variant in variants:
        if variant.concept in families:
            for split, sample in emoji_samples(variant, variant.concept in held_out, pictures):
                samples[split].append(sample)
    return samples


def emoji_samples(
    variant: emoji.Variant, held_out: bool, pictures: Mapping[str, Picture]
) -> Iterator[tuple[str, Sample]]:
    """The samples of one emoji with their splits: toned forms are for training only."""
    if variant.tone is None:
        yield "style-shift", emoji_sample(variant, emoji.TEST_STYLE, pictures, held_out=held_out)
    elif held_out or any(f"{style}-{variant.hexcode}" not in pictures for style in emoji.TRAIN_STYLES):
        return
    for style in emoji.TRAIN_STYLES:
        yield "concept" if held_out else "train", emoji_sample(variant, style, pictures)


def drawing_sample(drawing: openclipart.Drawing, pictures: Mapping[str, Picture]) -> Sample:
    """An OpenClipart drawing as a sample."""
    record = {
        "captions": list(drawing.captions),
        "category": drawing.category,
        "style": "openclipart",
        "license": openclipart.LICENSE,
        "title": drawing.title if drawing.title != drawing.captions[0] else "",
        "author": drawing.author,
    }
    return Sample(drawing.key, pictures[drawing.key].webp, record)


def emoji_sample(
    variant: emoji.Variant, style: str, pictures: Mapping[str, Picture], held_out: bool | None = None
) -> Sample:
    """An emoji in one style as a sample."""
    key = f"{style}-{variant.hexcode}"
    record = {
        "captions": variant.captions(),
        "category": variant.category,
        "style": style,
        "concept": variant.concept,
        "name": variant.name,
        "tone": variant.tone,
        "held_out": held_out,
        "license": emoji.LICENSES[style],
    }
    return Sample(key, pictures[key].webp, record)


def publish(output: Path, samples: Mapping[str, Sequence[Sample]], known: Mapping[str, Any]) -> dict[str, Any]:
    """Write shards and manifest beside their place, then move them in; older shards go away."""
    output.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".embedded-", dir=output.parent))
    try:
        shards = {
            path.name: {
                "split": split,
                "samples": count,
                "bytes": path.stat().st_size,
                "sha256": sha256(path.read_bytes()).hexdigest(),
            }
            for split in SPLITS
            for path, count in write_split(temporary, split, samples[split])
        }
        manifest = {"format": 1, **known, "shards": shards}
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (temporary / "manifest.json").write_text(text, encoding="utf-8")
        for path in sorted(temporary.iterdir()):
            path.replace(output / path.name)
    finally:
        shutil.rmtree(temporary)
    for path in output.glob("*.tar.gz"):
        if path.name not in shards:
            path.unlink()
    return manifest


if __name__ == "__main__":
    sys.exit(main())
