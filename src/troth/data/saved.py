"""Reading back what was saved: whatever is wrong with the files is one line."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from troth.errors import UserError


@contextmanager
def reading(what: str, path: Path, *, remedy: str) -> Iterator[None]:
    """Turn what goes wrong while files beside ``path`` are read and validated into a UserError.

    Args:
        what: should be there, such as ``a saved report``.
        path: the file that says the rest.
        remedy: for a missing file.
    """
    try:
        yield
    except UserError:  # a ValueError too, and says already what is wrong
        raise
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise UserError(f"no such file: {missing}", where=str(path.parent), remedy=remedy) from error
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{place}: {problem['msg']}", where=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"not {what} ({type(error).__name__}: {error})", where=str(path)) from error
