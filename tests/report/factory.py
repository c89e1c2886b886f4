"""A small report with everything in it."""

from __future__ import annotations

import io

from PIL import Image

from troth.report import (
    Curve,
    Estimate,
    Histogram,
    MethodAnswer,
    MethodResult,
    Metric,
    Provenance,
    ReportData,
    RetrievalExample,
    RetrievedItem,
    SuspiciousPair,
)

NASTY = "<script>alert('x')</script> & \"quotes\" {{ 7 * 7 }} $x$"


def picture(color: str, size: tuple[int, int] = (300, 200)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "png")
    return buffer.getvalue()


def method(name: str, label: str, top1: float, rank: float, error: float | None = 0.01) -> MethodResult:
    steps = tuple(float(step) for step in range(900))
    return MethodResult(
        name=name,
        label=label,
        explanation=f"About {label}.",
        metrics={"top1": Estimate(top1, error), "rank": Estimate(rank, 0.5)},
        loss_curve=Curve(steps, tuple(5.0 / (1 + step / 100) for step in steps)),
        scale_curve=Curve((0.0, 10.0), (14.3, 20.0)),
        histogram=Histogram((-1.0, 0.0, 0.5, 1.0), (1.0, 5.0, 20.0), (9.0, 3.0, 0.0)),
        auroc=Estimate(0.91, 0.004),
        average_precision=0.8,
        true_noise_rate=0.3,
        estimated_noise_rate=0.28,
        seconds=100.0,
    )


def report(label: str = "Robust", caption: str = "a red square", baseline: str = "plain") -> ReportData:
    answers = tuple(
        MethodAnswer(name, (RetrievedItem(False, 0.5, "blue.png"), RetrievedItem(True, -0.25, "red.png")))
        for name in ("plain", "robust")
    )
    words = tuple(MethodAnswer(name, (RetrievedItem(True, 0.5, text=caption),)) for name in ("plain", "robust"))
    return ReportData(
        title="A test",
        introduction="Two models.",
        metrics=(
            Metric("top1", "Top-1 accuracy", "What it asks.", group="Zero-shot"),
            Metric("rank", "Median rank", unit="number", higher_is_better=False, group="Retrieval"),
        ),
        methods=(method("plain", "InfoNCE", 0.40, 9.0), method("robust", label, 0.46, 8.5)),
        baseline=baseline,
        facts={"Pairs": "1,000"},
        retrievals=(
            RetrievalExample(answers, query_text=caption),
            RetrievalExample(words, query_text="query words", query_image="red.png"),
        ),
        suspicious=(
            SuspiciousPair(7, "red.png", caption, -0.1, True, 0.97, "blue.png", "key/blue.png", "own words", "better"),
            SuspiciousPair(8, "blue.png", "fine", 0.1, False),
            SuspiciousPair(9, "broken.png", "who knows", 0.1),
            SuspiciousPair(10, None, "no picture", 0.1),
        ),
        suspicious_by="Robust",
        provenance=Provenance("troth demo --seed 3", 3, 3725.0, "today", "2 cores", {"troth": "0.1"}, ("A note.",)),
        images={"red.png": picture("red"), "blue.png": picture("blue"), "broken.png": b"not a picture"},
    )
