"""Random draws that are pure functions of (seed, step, stream, sample ids): for pairs of a batch, and for its samples.

A method that draws a number for every pair of a large batch cannot keep the numbers: 65,536 x 65,536 of them in float32
are 16 GiB, and they are needed twice, forward and backward. Here a draw is *computed* from the names of its pair
whenever it is wanted, so that tiles, ranks, threads and resume points cannot change it:

.. code-block:: text

    ids --splitmix64--> a 64-bit key a row, a 64-bit key a column         once a step
        --mix--> 64 bits a pair --Box and Muller--> two normals a pair    one for each direction
        --quantile--> log F^-1(Phi(z)), the logarithm of a Gamma draw     a short polynomial in z

The law is exact up to the rounding of float32 and the resolution of 32-bit uniforms: no normal exceeds 6.556, which one
of 2e10 would. A float32 logarithm resolves a draw to 1e-7 of itself near 1 and to 1e-6 at 1e4; what is finer than that
in the narrow laws of very large shapes is lost. Nothing here touches torch's generators, and no gradient passes through
a draw.
"""

from __future__ import annotations

from troth.draws.bits import splitmix64
from troth.draws.keyed import PairDraws, SampleDraws
from troth.draws.quantile import log_gamma_quantile

__all__ = ["PairDraws", "SampleDraws", "log_gamma_quantile", "splitmix64"]
