"""Random members of the class, and random data of small shapes."""

import torch
from hypothesis import strategies as st

from troth.theory import ContrastiveLoss, LinearEncoders

temperatures = st.floats(0.3, 5.0)


@st.composite
def losses(draw: st.DrawFn) -> ContrastiveLoss:
    psi = draw(st.sampled_from(["identity", "exp", "softplus", "hinge"]))
    phi = draw(st.sampled_from(["identity", "log", "power"] if psi in ("exp", "softplus") else ["identity"]))
    nu = draw(st.sampled_from([0.0, 0.5, 1.0, 1.5]))
    eps = draw(st.sampled_from([0.5, 1.0] if nu == 0 else [0.0, 0.5, 1.0]))
    tau, q = draw(temperatures), draw(st.floats(0.05, 1.0))
    return ContrastiveLoss(phi, psi, nu, eps, tau, q, draw(st.booleans()))


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, LinearEncoders]:
    """Images, captions and encoders."""
    count, image_dim, text_dim = draw(st.integers(2, 7)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rank = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shapes = ((count, image_dim), (count, text_dim), (rank, image_dim), (rank, text_dim))
    x, y, g1, g2 = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, y, LinearEncoders(0.7 * g1, 0.7 * g2)
