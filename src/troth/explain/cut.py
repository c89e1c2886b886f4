"""Cutting a network's graph at one place: what passes there becomes the variable that a score is differentiated by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: Puts a function into a network that replaces what passes, and returns what takes it out again.
Site = Callable[[Callable[[Tensor], Tensor]], Callable[[], None]]


class Cut:
    """What passed a place of a network in the last call, as the start of a new graph.

    Attributes:
        values: the activations, which require a gradient; they belong to no earlier graph.
    """

    def __init__(self) -> None:
        self.values: Tensor | None = None

    def __call__(self, passing: Tensor) -> Tensor:
        """Keep what passes and return a copy, which a layer behind may overwrite."""
        self.values = passing.detach().requires_grad_()
        return self.values.clone()


@contextmanager
def cut_at(site: Site) -> Iterator[Cut]:
    """Run a network with gradients from ``site`` on.

    What passes the site by, such as the residual stream beside a norm, needs :func:`without_gradients` to keep no graph
    of the layers before.
    """
    cut = Cut()
    remove = site(cut)
    try:
        with torch.enable_grad():
            yield cut
    finally:
        remove()


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Let no parameter of a module require a gradient, and afterwards those that did."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def output_of(module: nn.Module) -> Site:
    """The place behind a module."""

    def put(replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return module.register_forward_hook(lambda _module, _inputs, output: replace(output)).remove

    return put


def input_of(module: nn.Module) -> Site:
    """The place before a module: its first argument, or the one that transformers calls ``hidden_states``."""

    def put(replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def before(_module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
            if positional:
                return (replace(positional[0]), *positional[1:]), named
            return positional, {**named, "hidden_states": replace(named["hidden_states"])}

        return module.register_forward_pre_hook(before, with_kwargs=True).remove

    return put


def result_of(module: nn.Module, method: str) -> Site:
    """The place behind a method of a module, which the module calls itself."""

    def put(replace: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        original = getattr(module, method)

        def replaced(*positional: Any, **named: Any) -> Tensor:
            return replace(original(*positional, **named))

        # The instance's attribute hides the class's method until it is deleted.
        module.__dict__[method] = replaced
        return lambda: module.__dict__.pop(method, None)

    return put
