"""nf of changes that lie unevenly in the base's directions, against Monte Carlo by numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polarax import kernels

DRAWS = 200
# Rows, columns, rank of the base, drift. The drift of a long matrix is large, so that what is outside shortens vectors.
CASES = {
    "square": (24, 24, 24, 1e-4),
    "tall": (40, 20, 20, 1e-4),
    "wide": (20, 40, 20, 1e-4),
    "long": (400, 8, 8, 0.3),
    "of lower rank": (40, 24, 16, 0.02),
    "square of lower rank": (24, 24, 16, 0.02),
}
PLACES = {"leading": -1.0, "trailing": 1.0, "rows alone": None}


def haar(rng, size):
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def spectrum(rank):
    return np.geomspace(2.0 if rank < 10 else 10.0, 1.0, rank)


def frame_of(rng, shape):
    """Maps a matrix in a base's frame to another frame."""
    left, right = (haar(rng, side) for side in shape)
    return lambda x: left @ x @ right


def based(s, shape):
    """The matrix diag(s), of which the frame is the identity."""
    base = np.zeros(shape)
    np.fill_diagonal(base, np.pad(s, (0, min(shape) - len(s))))
    return base


def deviations(place, shape, rank):
    """Of the entries of a change, (m, n): a product, and outside of the base's space the mean one of those inside."""
    s, scales = spectrum(rank), []
    for axis, side in enumerate(shape):
        power = (0.0 if axis else -1.0) if place is None else place
        inside = s**-power
        scales.append(np.concatenate([inside, np.full(side - rank, np.sqrt(np.mean(inside**2)))]))
    return np.outer(*scales)


def polar_factor(x, rank):
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    return u[:, :rank] @ vt[:rank]


def nf(base, post, rank):
    """||P_p^T P_b - I|| / sqrt(r) of a post of full rank."""
    if base.shape[0] < base.shape[1]:
        base, post = base.T, post.T
    cols = base.shape[1]
    return np.linalg.norm(polar_factor(post, cols).T @ polar_factor(base, rank) - np.eye(cols)) / np.sqrt(cols)


def isotropic(shape, s, size):
    """Mean square of nf and the standard deviation of nf under isotropic noise of a norm, as the docs have it."""
    longer, shorter, rank = max(shape), min(shape), len(s)
    variance = size**2 / (longer * shorter)
    pairs = 2 * variance / np.add.outer(s, s)[~np.eye(rank, dtype=bool)] ** 2
    shortened = 1 - s / np.sqrt(s**2 + variance * (longer - rank))
    lacking = shorter - rank
    turn = np.sum(pairs) + np.sum(shortened**2) + 2 * variance * lacking * np.sum(1 / s**2)
    return (turn + lacking) / shorter, np.sqrt(4 * np.sum(pairs**2)) / (2 * np.sqrt(turn * shorter))


@jax.jit
def controls(base, post):
    """The ratios of nf's root mean square and deviation, and the share outside."""
    pair = kernels.frames(base, post)
    return *kernels.placed_turn(pair), kernels.placed_outside(pair)


def placed(base, change):
    """The same in float64, of matrices (..., m, n): (3, ...)."""
    with jax.enable_x64(True):
        return np.array(controls(jnp.asarray(base), jnp.asarray(base + change)))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_changes_of_that_place_show(case, place):
    """The kernel is given a change whose entries are plus or minus the deviations; those of the draws are normal."""
    rows, cols, rank, drift = CASES[case]
    shape, rng = (rows, cols), np.random.default_rng([list(CASES).index(case), list(PLACES).index(place)])
    s, std = spectrum(rank), deviations(PLACES[place], (rows, cols), rank)
    base, std = based(s, shape), std * drift * np.linalg.norm(s) / np.linalg.norm(std)
    drawn = np.array([nf(base, base + std * rng.standard_normal(shape), rank) for _ in range(DRAWS)])
    to_frame = frame_of(rng, shape)
    ratio, ratio_std, _ = placed(to_frame(base), to_frame(std * rng.choice([-1.0, 1.0], shape)))
    square, spread = isotropic(shape, s, np.linalg.norm(std))
    lacking = min(shape) - rank
    turn = min(shape) * drawn**2 - lacking
    error = 5 * np.std(turn) / np.sqrt(DRAWS)
    # What first order leaves out is of the order of drift times condition number, and for pairs of its square.
    missed = 0.05 if drift > 1e-3 else 1e-3
    assert min(shape) * ratio**2 * square - lacking == pytest.approx(np.mean(turn), abs=error + missed * np.mean(turn))
    if not lacking and case != "long":
        # A deviation of normal numbers is known to 1 / sqrt(2 N), of sums of few squares to twice that.
        assert ratio_std * spread == pytest.approx(np.std(drawn), rel=5 * 2 / np.sqrt(2 * DRAWS))


@pytest.mark.parametrize("place", ["leading", "trailing"])
def test_where_a_change_lies_makes_a_difference(place):
    base, std = based(spectrum(24), (24, 24)), deviations(PLACES[place], (24, 24), 24)
    ratio = placed(base, 1e-4 * std)[0]
    assert ratio < 0.7 if place == "leading" else ratio > 1.4


@pytest.mark.parametrize("rank", [1, 3, None], ids=["one direction", "three", "full rank"])
@pytest.mark.parametrize("case", ["square", "tall", "wide"])
def test_of_random_directions_it_is_one(case, rank):
    rows, cols, _, drift = CASES[case]
    rng, base = np.random.default_rng(5), based(spectrum(min(rows, cols)), (rows, cols))
    changes = rng.standard_normal((DRAWS, rows, rank or cols))
    changes = changes @ rng.standard_normal((DRAWS, rank, cols)) if rank else changes
    changes *= drift / np.linalg.norm(changes, axis=(1, 2), keepdims=True)
    squares = placed(np.broadcast_to(base, changes.shape), changes)[0] ** 2
    # Of normal entries, rho_i gamma_j / T has the mean of E_ij^2, but for the entry that it shares with both.
    error = 5 * np.std(squares) / np.sqrt(DRAWS)
    assert np.mean(squares) == pytest.approx(1, abs=error + 2 / (min(rows, cols) ** 2))


def test_directions_that_neither_matrix_has_do_not_count():
    """Columns of zeros in base and post: what the others show is what they show without them."""
    rng = np.random.default_rng(6)
    base, change = based(spectrum(12), (30, 12)), 1e-3 * rng.standard_normal((30, 12))
    wider = [np.pad(x, ((0, 0), (0, 5))) for x in (base, change)]
    size = np.linalg.norm(change)
    found = [
        ratio**2 * isotropic(shape, spectrum(12), size)[0]
        for ratio, shape in ((placed(base, change)[0], (30, 12)), (placed(*wider)[0], (30, 17)))
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-9)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", ["square", "tall", "wide", "of lower rank", "square of lower rank"])
def test_the_share_outside_goes_on_from_the_last_directions(case, place):
    """Energies of a product of scales, of which those outside are the mean of the last quarter's."""
    rows, cols, rank, drift = CASES[case]
    shape, rng = (rows, cols), np.random.default_rng(9)
    std = deviations(PLACES[place], shape, rank)
    factors = [np.linalg.norm(std[:rank, :rank], axis=axis) for axis in (1, 0)]
    longer = [np.pad(x**2, (0, side - rank)) for x, side in zip(factors, shape, strict=True)]
    for energies in longer:
        energies[rank:] = np.mean(energies[rank - rank // 4 : rank])
    total = np.outer(*longer)
    expected = 1 - np.sum(total[:rank, :rank]) / np.sum(total)
    change = drift * np.sqrt(total / np.sum(total)) * rng.choice([-1.0, 1.0], shape)
    to_frame = frame_of(rng, shape)
    base, post = to_frame(based(spectrum(rank), shape)), to_frame(based(spectrum(rank), shape) + change)
    found = placed(base, post - base)[2]
    assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    if shape == (rank, rank):
        assert float(found) == 0


def test_the_share_outside_of_isotropic_noise():
    rng = np.random.default_rng(10)
    base = np.broadcast_to(based(spectrum(20), (40, 20)), (DRAWS, 40, 20))
    found = placed(base, 1e-3 * rng.standard_normal(base.shape))[2]
    # The mean of a ratio: of energies of 100 squares each, to 2 / 100.
    assert np.mean(found) == pytest.approx(0.5, abs=5 * np.std(found) / np.sqrt(DRAWS) + 0.01)


@pytest.mark.parametrize(("scale", "drift"), [(1e-15, 1e-3), (1.0, 1e-3), (1e18, 1e-3), (1.0, 0.1)])
def test_float32_and_units(scale, drift):
    rng = np.random.default_rng(7)
    base = rng.standard_normal((40, 24)) * np.geomspace(30, 1, 24)
    change = drift * base * rng.standard_normal((40, 24))
    base32, post32 = (np.float32(scale * x) for x in (base, base + change))
    found = controls(base32, post32)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.float32)}
    # The rounding of the entries is a change of its own, of 1e-7 of the base beside 1e-3.
    assert [float(x) for x in found] == pytest.approx(placed(base, change), rel=1e-3)


def test_stacks_and_transposes():
    rng = np.random.default_rng(8)
    bases = rng.standard_normal((2, 3, 12, 9))
    changes = 1e-3 * bases * rng.standard_normal(bases.shape)
    stack = placed(bases, changes)
    for index in np.ndindex(2, 3):
        assert stack[:, *index] == pytest.approx(placed(bases[index], changes[index]), rel=1e-9)
    assert placed(bases.swapaxes(-2, -1), changes.swapaxes(-2, -1)) == pytest.approx(stack, rel=1e-9)


def test_what_is_not_defined():
    base = based(spectrum(3), (5, 3))
    outside = np.zeros((5, 3))
    outside[4] = 0.1
    for changed in (placed(base, np.zeros((5, 3))), placed(base, outside), placed(np.ones((1, 1)), np.ones((1, 1)))):
        assert np.isnan(changed[0])
