"""The errors a user can cause, told apart from the errors we make.

A :class:`UserError` is one clear line: what is wrong, where, and what would be right. The command line prints it
without a traceback. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations


class UserError(ValueError):
    """Bad input from the user, with its place and its remedy.

    Args:
        message: what is wrong, in one line.
        where: the file, recipe field or column at fault, if there is one.
        remedy: what would be right, if we can say.
    """

    def __init__(self, message: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.message = message
        self.where = where
        self.remedy = remedy
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text} ({remedy})" if remedy else text)


class NonFiniteLossError(RuntimeError):
    """Training met a loss that is not finite and stopped; the state was saved for inspection."""
