"""Draws are exact in law, independent, and functions of their names alone."""

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import special, stats

from troth.draws import PairDraws, SampleDraws, bits, keyed, log_gamma_quantile
from troth.errors import UserError

SHAPES = (0.05, 0.3, 0.5, 1.0, 2.5, 5.0, 6.0, 10.0, 11.0, 20.0, 100.0, 1e4)
NAMES = {"seed": 3, "step": 17, "stream": "test"}


def pair_draws(rows: int = 64, columns: int = 48, **names: object) -> PairDraws:
    return PairDraws.from_ids(
        **(NAMES | names), row_ids=torch.arange(rows) * 7 + 1, column_ids=torch.arange(columns) + 1000
    )


def of_tile(draws: PairDraws, shape: float, rows: slice, columns: slice) -> torch.Tensor:
    return torch.stack(draws.tile(rows, columns).log_gamma(shape))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# The reference: one pair at a time, in Python's integers and float64.


def reference_key(role: str, sample: int, seed: int, step: int, stream: str) -> tuple[int, int]:
    def splitmix64(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    digest = hashlib.sha256(repr((seed, step, stream, role)).encode()).digest()
    first, second = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")
    key = splitmix64((splitmix64(sample % 2**64 ^ first) + second) % 2**64)
    return key % 2**32, key >> 32


def reference_mix(a: int, b: int) -> tuple[int, int]:
    primes = (2654435761, 2246822519, 3266489917, 668265263, 374761393)  # of xxHash32
    for number, multiplier in enumerate((*primes, 2654435769)):  # and 2^32 over the golden ratio
        a = (a + b * multiplier) % 2**32
        signed = a - 2**32 if a >= 2**31 else a
        b ^= (signed >> (15 if number % 2 == 0 else 16)) % 2**32
        a, b = b, a
    return a, b


def reference_log_gamma(row: tuple[int, int], column: tuple[int, int], shape: float) -> tuple[float, float]:
    def signed(x: int) -> int:
        return x - 2**32 if x >= 2**31 else x

    def log_uniform(x: int) -> float:
        return math.log(abs(signed(x | 1)) / 2**31)

    a, b = reference_mix(row[0] ^ column[0], (row[1] + column[1]) % 2**32)
    radius, angle = math.sqrt(-2 * log_uniform(a)), signed(b) * math.pi / 2**31
    boosts = [0.0, 0.0]
    if shape < 1:
        boosts = [log_uniform(word) / shape for word in reference_mix(a | 1, b)]
        shape += 1
    draws = []
    for z, boost in zip((radius * math.cos(angle), radius * math.sin(angle)), boosts, strict=True):
        quantile = (
            special.gammaincinv(shape, special.ndtr(z)) if z < 0 else special.gammainccinv(shape, special.ndtr(-z))
        )
        draws.append(math.log(quantile) + boost)
    return draws[0], draws[1]


@pytest.mark.parametrize("shape", [0.05, 0.5, 1.0, 5.0, 100.0])
def test_pairs_draw_what_the_reference_draws(shape: float) -> None:
    rows, columns = [0, 5, 2**40, -3], [9, 5, 0]
    image, text = PairDraws.from_ids(**NAMES, row_ids=torch.tensor(rows), column_ids=torch.tensor(columns)).log_gamma(
        shape
    )
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            keys = reference_key("row", row, **NAMES), reference_key("column", column, **NAMES)
            assert (image[i, j].item(), text[i, j].item()) == pytest.approx(
                reference_log_gamma(*keys, shape), rel=2e-6, abs=2e-6
            )


@pytest.mark.parametrize("shape", [0.5, 5.0])
def test_samples_draw_what_the_reference_draws(shape: float) -> None:
    drawn = SampleDraws.from_ids(**NAMES, ids=torch.arange(5)).log_gamma(shape)
    for sample, values in enumerate(zip(*drawn, strict=True)):
        expected = reference_log_gamma(reference_key("sample", sample, **NAMES), (0, 0), shape)
        assert [value.item() for value in values] == pytest.approx(expected, rel=2e-6, abs=2e-6)


# The law.


@pytest.mark.parametrize("shape", [1.0, 1.05, 1.3, 1.5, 2.5, 5.0, 6.0, 10.0, 11.0, 20.0, 100.0, 1e4, 1e6])
def test_the_quantile_is_exact_to_the_rounding_of_float32(shape: float) -> None:
    z = torch.linspace(-6.556, 6.556, 20_001)
    log_draw = log_gamma_quantile(z, shape).double().numpy()
    probability = special.ndtr(-np.abs(z.double().numpy()))  # of the nearer tail
    draw = np.exp(log_draw)
    reached = np.where(z.numpy() < 0, special.gammainc(shape, draw), special.gammaincc(shape, draw))
    density = stats.loggamma.pdf(log_draw, shape)
    one_unit = 2.0**-23 * np.maximum(1, np.abs(log_draw))
    assert (np.abs(reached - probability) <= 3 * density * one_unit * np.exp(3 * one_unit * np.abs(draw - shape))).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_follow_their_law(shape: float) -> None:
    log_draws = torch.stack(pair_draws(1000, 500).log_gamma(shape)).double().flatten().numpy()
    draws = np.exp(log_draws)
    assert stats.kstest(special.gammainc(shape, draws), "uniform").pvalue > 1e-3
    mean, *cumulants = (special.polygamma(order, shape) for order in range(4))
    moments = (0, cumulants[0], cumulants[1], cumulants[2] + 3 * cumulants[0] ** 2)
    for k, of_log in enumerate(moments, 1):
        of_draw = math.prod((shape + i) / shape for i in range(k))
        for powers, expected in (((log_draws - mean) ** k, of_log), ((draws / shape) ** k, of_draw)):
            assert abs(powers.mean() - expected) < 4.5 * powers.std() / math.sqrt(len(powers))


@pytest.mark.parametrize("shape", [0.3, 5.0])
def test_samples_draws_follow_their_law(shape: float) -> None:
    for direction in SampleDraws.from_ids(**NAMES, ids=torch.arange(400_000)).log_gamma(shape):
        assert stats.kstest(special.gammainc(shape, direction.double().exp().numpy()), "uniform").pvalue > 1e-3


# Independence.


def uniforms(draws: PairDraws, shape: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities that the draws have: uniform numbers."""
    image, text = draws.log_gamma(shape)
    return special.gammainc(shape, image.double().exp().numpy()), special.gammainc(shape, text.double().exp().numpy())


def assert_independent(*numbers: np.ndarray, cells: int) -> None:
    """Chi-square test that uniform numbers fill the cells of a grid evenly, together."""
    places = sum(np.minimum((each.ravel() * cells).astype(int), cells - 1) * cells**k for k, each in enumerate(numbers))
    assert stats.chisquare(np.bincount(places, minlength=cells ** len(numbers))).pvalue > 1e-3


@pytest.mark.parametrize("shape", [0.3, 1.0])
def test_the_two_directions_are_independent(shape: float) -> None:
    assert_independent(*uniforms(pair_draws(700, 700), shape), cells=64)


@pytest.mark.parametrize("shape", [0.3, 1.0])
def test_neighbours_and_the_corners_of_rectangles_are_independent(shape: float) -> None:
    for x in uniforms(pair_draws(800, 800), shape):
        assert_independent(x[:, ::2], x[:, 1::2], cells=64)
        assert_independent(x[::2], x[1::2], cells=64)
        assert_independent(x[::2, ::2], x[::2, 1::2], x[1::2, ::2], x[1::2, 1::2], cells=8)


def test_the_two_directions_of_a_rectangle_are_independent() -> None:
    x, y = uniforms(pair_draws(800, 800))
    assert_independent(*(u[i::2, j::2] for u in (x, y) for i in (0, 1) for j in (0, 1)), cells=3)


def test_a_block_of_draws_has_no_structure_of_low_rank() -> None:
    size = 600
    for x in uniforms(pair_draws(size, size)):
        largest = np.linalg.norm((x - 0.5) * math.sqrt(12), 2)
        assert largest == pytest.approx(2 * math.sqrt(size), rel=0.03)  # of independent numbers; Marchenko and Pastur


def test_the_corners_of_a_rectangle_are_not_tied_bit_by_bit() -> None:
    def words(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        lanes = torch.empty(3, len(row), dtype=torch.int32)
        bits.combine((row[:, 0], row[:, 1]), (column[:, 0], column[:, 1]), (lanes[0], lanes[1]), lanes[2])
        return lanes[:2]

    count = 200_000
    i, k = (bits.keys(**NAMES, role="row", ids=torch.arange(count) + start) for start in (0, count))
    j, m = (bits.keys(**NAMES, role="column", ids=torch.arange(count) + start) for start in (0, count))
    corners = [words(i, j), words(i, m), words(k, j), words(k, m)]
    together = corners[0] ^ corners[1] ^ corners[2] ^ corners[3]
    ones = torch.stack([(together >> bit) & 1 for bit in range(32)]).double().mean(-1)
    assert (ones - 0.5).abs().max() < 4.5 * 0.5 / math.sqrt(count)


def test_every_bit_of_the_state_flips_every_bit_of_the_result_half_the_time() -> None:
    def mixed(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        lanes = torch.stack([a, b])
        bits.mix((lanes[0], lanes[1]), torch.empty_like(a))
        return lanes

    count = 10_000
    state = bits.keys(**NAMES, role="row", ids=torch.arange(count)).T.contiguous()
    start = mixed(state[0], state[1])
    worst = 0.0
    for lane in range(2):
        for bit in range(32):
            flipped = state.clone()
            flipped[lane] ^= (1 << bit) - (2**32 if bit == 31 else 0)
            changed = mixed(flipped[0], flipped[1]) ^ start
            rates = torch.stack([(changed >> place) & 1 for place in range(32)]).double().mean(-1)
            worst = max(worst, (rates - 0.5).abs().max().item())
    assert worst < 5 * 0.5 / math.sqrt(count)


# Functions of their names alone.


@pytest.mark.parametrize("shape", [0.3, 1.0, 5.0, 100.0])
def test_a_tile_draws_what_the_whole_draws_there(shape: float, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    draws = pair_draws(301, 533)
    torch.set_num_threads(1)
    whole = torch.stack(draws.log_gamma(shape))
    places = [(slice(0, 301), slice(3, 4)), (slice(7, 58), slice(31, 533)), (slice(300, 301), slice(0, 17))]
    for rows, columns in places:
        assert torch.equal(of_tile(draws, shape, rows, columns), whole[:, rows, columns])
    for block in (379, 100_000):  # less than a row, and not a whole number of rows
        monkeypatch.setattr(keyed, "BLOCK", block)
        assert torch.equal(torch.stack(draws.log_gamma(shape)), whole)
    for count in (2, 3):
        torch.set_num_threads(count)
        assert torch.equal(torch.stack(draws.log_gamma(shape)), whole)


@pytest.mark.parametrize("shape", [0.3, 1.0, 5.0, 100.0])
def test_chosen_pairs_draw_what_the_tile_draws_there(shape: float, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = pair_draws(50, 70)
    rows, columns = torch.tensor([0, 49, 7, 7, 12]), torch.tensor([69, 0, 3, 3, 12])
    whole = torch.stack(draws.log_gamma(shape))
    for block in (keyed.BLOCK, 2):
        monkeypatch.setattr(keyed, "BLOCK", block)
        assert torch.equal(torch.stack(draws.log_gamma_at(rows, columns, shape)), whole[:, rows, columns])


def test_another_shape_has_the_same_normals() -> None:
    draws = pair_draws(30, 30)
    own = torch.arange(30)
    for tile, other in zip(draws.log_gamma(5.0), draws.log_gamma_at(own, own, 6.0), strict=True):
        assert torch.equal(tile.diagonal().argsort(), other.argsort())
        assert (other > tile.diagonal()).all()


def test_ranks_draw_their_rows_of_the_whole() -> None:
    ids = torch.tensor([5, 2, 9, 4, 1, 7])
    whole = PairDraws.from_ids(**NAMES, row_ids=ids, column_ids=ids).log_gamma(5.0)
    mine = PairDraws.from_ids(**NAMES, row_ids=ids[3:], column_ids=ids).log_gamma(5.0)
    assert all(torch.equal(a[3:], b) for a, b in zip(whole, mine, strict=True))


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 18}, {"stream": "tests"}, {"seed": 17, "step": 3}])
def test_another_seed_step_or_stream_draws_anew(change: dict[str, object]) -> None:
    for a, b in zip(uniforms(pair_draws(500, 500)), uniforms(pair_draws(500, 500, **change)), strict=True):
        assert_independent(a, b, cells=32)


def test_pairs_are_ordered_and_apart_from_samples() -> None:
    ids = torch.arange(500)
    square, _ = uniforms(PairDraws.from_ids(**NAMES, row_ids=ids, column_ids=ids))
    above = np.triu_indices(500, 1)
    assert_independent(square[above], square.T[above], cells=16)
    pairs = PairDraws.from_ids(**NAMES, row_ids=ids, column_ids=ids).log_gamma_at(ids, ids, 1.0)
    samples = SampleDraws.from_ids(**NAMES, ids=ids).log_gamma(1.0)
    assert abs(stats.spearmanr(pairs[0].numpy(), samples[0].numpy()).statistic) < 0.15


def test_torchs_generator_is_left_alone_and_no_gradient_passes() -> None:
    before = torch.get_rng_state()
    image, _ = pair_draws().log_gamma(0.3)
    assert not image.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_go_into_a_given_buffer() -> None:
    out = torch.empty(2, 64, 48)
    image, text = pair_draws().log_gamma(5.0, out=out)
    assert (image.data_ptr(), text.data_ptr()) == (out[0].data_ptr(), out[1].data_ptr())
    assert torch.equal(out, torch.stack(pair_draws().log_gamma(5.0)))


def test_no_pairs_no_draws() -> None:
    assert pair_draws(0, 5).log_gamma(5.0)[0].shape == (0, 5)
    assert pair_draws(5, 0).log_gamma(0.5)[1].shape == (5, 0)
    assert SampleDraws.from_ids(**NAMES, ids=torch.arange(0)).log_gamma(1.0)[0].shape == (0,)


@pytest.mark.parametrize("shape", [0.0, -1.0, math.inf, math.nan])
def test_a_shape_that_is_none_is_refused(shape: float) -> None:
    with pytest.raises(UserError, match="positive number"):
        pair_draws().log_gamma(shape)


def test_ids_are_integers() -> None:
    with pytest.raises(ValueError, match="integer"):
        SampleDraws.from_ids(**NAMES, ids=torch.rand(3))
    with pytest.raises(ValueError, match="from 1"):
        log_gamma_quantile(torch.zeros(1), 0.5)
