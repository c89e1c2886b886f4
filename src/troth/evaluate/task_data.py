"""What the tasks share in reading their data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from troth.data import Source, SourceConfig
from troth.errors import UserError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


def opened(config: SourceConfig, field: str) -> Source:
    """Open a task's source; what is wrong with it is said of the task's field."""
    try:
        return config.open()
    except UserError as error:
        where = f"{field}.{error.where}" if error.where else field
        raise UserError(error.message, where=where, remedy=error.remedy) from None


def class_name(source: Source, index: int, field: str) -> str | None:
    """Return what a metadata field, or ``category``, calls a sample's class, a number too; None if it says nothing."""
    value = _value(source, index, field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def required_class_name(source: Source, index: int, field: str) -> str:
    """Return a sample's class, as :func:`class_name`. Raises UserError if it has none."""
    name = class_name(source, index, field)
    if name is None:
        raise UserError(
            f"{source.key(index)} of {source.name} has no {field!r}",
            where="class_field",
            remedy="name a metadata field that holds each picture's class name",
        )
    return name


def _value(source: Source, index: int, field: str) -> object:
    return source.category(index) if field == "category" else source.metadata(index).get(field)
