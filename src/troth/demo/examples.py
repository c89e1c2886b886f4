"""What the demo's page shows of single pairs: the ones trusted least, and what each model finds."""

from __future__ import annotations

from collections.abc import Sequence

from troth.audit import AuditTable
from troth.data import CaptionAssignment, Source
from troth.demo.outcome import Outcome
from troth.report import MethodAnswer, RetrievalExample, RetrievedItem, SuspiciousPair
from troth.similarity import topk

SUSPICIOUS = 24
RESULTS = 5


class Pictures:
    """A source's pictures that the page shows, under the names it gives them.

    Args:
        source: where they are.
        prefix: of their names.

    Attributes:
        images: the pictures shown so far, as files of the page by their names.
    """

    def __init__(self, source: Source, prefix: str) -> None:
        self._source, self._prefix = source, prefix
        self.images: dict[str, bytes] = {}

    def show(self, index: int) -> str:
        """Keep a picture for the page and return its name."""
        name = f"{self._prefix}-{index}.webp"
        self.images[name] = self._source.read_image(index)
        return name


def suspicious_pairs(
    table: AuditTable, noise: CaptionAssignment, source: Source, pictures: Pictures
) -> tuple[SuspiciousPair, ...]:
    """Return the pairs that an audit of ``source`` trusts least, each with what it should have had."""
    row_of = {int(sample): row for row, sample in enumerate(table.id)}
    pairs = []
    for row in table.most_suspicious(SUSPICIOUS).tolist():
        sample, suggested = int(table.id[row]), int(table.suggested_caption_id[row])
        owner = int(noise.caption_of[sample])
        pairs.append(
            SuspiciousPair(
                id=sample,
                image=pictures.show(sample),
                caption=table.caption[row],
                score=float(table.score[row]),
                mismatched=bool(noise.mismatched[sample]),
                p_mismatch=float(table.p_mismatch[row]) if table.p_mismatch[row] == table.p_mismatch[row] else None,
                owner_image=pictures.show(owner) if owner != sample else None,
                owner_key=source.key(owner) if owner != sample else "",
                own_caption=source.captions(sample)[0],
                suggested_caption=table.caption[row_of[suggested]] if suggested in row_of else "",
            )
        )
    return tuple(pairs)


def retrieval_examples(outcomes: Sequence[Outcome], source: Source, pictures: Pictures) -> tuple[RetrievalExample, ...]:
    """Return, each way, the first query that both noisy models answer, that only one of them does, and only the other.

    Takes the outcomes of :data:`~troth.demo.methods.METHODS`, in that order: the first two are the noisy models.
    A fixed rule that shows the models' differences without choosing whom they flatter; an outcome that no query has is
    left out.
    """
    captions = [source.captions(index)[0] for index in range(len(source))]

    examples = []
    for by_text in (True, False):
        found = [_answers(outcome, source, captions, by_text) for outcome in outcomes]
        hits = [[any(captions[i] == captions[query] for i, _ in answer) for query, answer in one] for one in found]
        for wanted in ((True, True), (False, True), (True, False)):
            places = (p for p in range(len(found[0])) if (hits[0][p], hits[1][p]) == wanted)
            place = next(places, None)
            if place is None:
                continue
            query = found[0][place][0]
            answers = tuple(
                MethodAnswer(
                    outcome.method.name,
                    tuple(
                        RetrievedItem(
                            captions[i] == captions[query], value, pictures.show(i) if by_text else None, captions[i]
                        )
                        for i, value in one[place][1]
                    ),
                )
                for outcome, one in zip(outcomes, found, strict=True)
            )
            asked = {"query_text": captions[query]} if by_text else {"query_image": pictures.show(query)}
            examples.append(RetrievalExample(answers, **asked))
    return tuple(examples)


def _answers(
    outcome: Outcome, source: Source, captions: Sequence[str], by_text: bool
) -> list[tuple[int, list[tuple[int, float]]]]:
    """Return, for each readable sample, its id and the closest samples of the other modality with their similarity."""
    index, image_points = outcome.embedder.images(source)
    text_points = outcome.embedder.texts(captions)[index]
    queries, candidates = (text_points, image_points) if by_text else (image_points, text_points)
    values, rows = topk(queries, candidates, RESULTS, outcome.embedder.geometry)
    found = index[rows].tolist()
    return [
        (query, list(zip(ids, similarities, strict=True)))
        for query, ids, similarities in zip(index.tolist(), found, values.tolist(), strict=True)
    ]
