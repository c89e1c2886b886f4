"""Troth: contrastive vision-language learning from image-text pairs that cannot be trusted.

Importing the package imports nothing heavy; take what you need from its rooms, such as ``troth.objectives``,
``troth.similarity``, ``troth.data`` or ``troth.train``.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # Looking up the installed version costs a quarter of `troth --help`; only those who ask pay for it.
    if name == "__version__":
        from importlib.metadata import version

        return version("troth")
    raise AttributeError(f"module 'troth' has no attribute {name!r}")
