"""Small models to follow, and what numpy says of their matrices in float64."""

import jax.numpy as jnp
import numpy as np

# In one layer: (in, out). Few distinct shapes, since each is compiled; up and down share one.
SHAPES = {
    ("self_attn", "q_proj"): (48, 48),
    ("self_attn", "o_proj"): (48, 48),
    ("mlp", "up_proj"): (48, 80),
    ("mlp", "down_proj"): (80, 48),
}


def decoder(seed=0, layers=2, drift=0.0, dtype="float32"):
    """Parameters as Linen has them, moved by `drift` of their norm from those with drift 0 of the same seed."""
    rng, params = np.random.default_rng(seed), {}
    noise = np.random.default_rng(seed + 1000)
    for layer in range(layers):
        block = params[f"layers_{layer}"] = {"norm": {"scale": jnp.ones(48)}}
        for (part, name), shape in SHAPES.items():
            decay = np.linspace(1, 0.05, shape[1])
            kernel = rng.normal(size=shape) * decay
            change = noise.normal(size=shape)
            kernel += drift * change * np.linalg.norm(kernel) / np.linalg.norm(change)
            block.setdefault(part, {})[name] = {"kernel": jnp.asarray(kernel, dtype)}
    params["embed_tokens"] = {"embedding": jnp.asarray(rng.normal(size=(64, 48)), dtype)}
    return params


def weight(params, name):
    """A weight by its name, (out, in), float64."""
    node = params
    for key in name.split("."):
        node = node[key]
    return np.asarray(node).astype(np.float64).T


def nf(base, post):
    """By the polar identity, from SVDs."""
    factors = []
    for x in (base, post):
        u, _, vt = np.linalg.svd(x, full_matrices=False)
        factors.append(u @ vt if x.shape[0] >= x.shape[1] else (u @ vt).T)
    r = min(base.shape)
    return np.linalg.norm(factors[1].T @ factors[0] - np.eye(r)) / np.sqrt(r)


def budget(base, post, k=None):
    """Scaling, coordinated, discordant shares of the change in the base's (leading) frame."""
    u, _, vt = np.linalg.svd(base, full_matrices=False)
    change = post - base
    e = u[:, :k].T @ change @ vt[:k].T
    diagonal = np.diag(np.diag(e))
    parts = diagonal, (e + e.T) / 2 - diagonal, (e - e.T) / 2
    return [np.sum(part**2) / np.sum(change**2) for part in parts]


def overlaps(base, post, k):
    """Of the leading left and right vectors."""
    (ub, _, vb), (up, _, vp) = (np.linalg.svd(x, full_matrices=False) for x in (base, post))
    return (
        np.sum((ub[:, :k].T @ up[:, :k]) ** 2) / k,
        np.sum((vb[:k] @ vp[:k].T) ** 2) / k,
    )


def coordination(base, post, k):
    """(coordinated - discordant) / (coordinated + discordant) of the change in the base's k leading vectors."""
    _, coordinated, discordant = budget(base, post, k)
    return (coordinated - discordant) / (coordinated + discordant)


def coordination_slope(base, post, k):
    """How much that errs, to first order and at worst, for each radian that every one of the k vectors is off.

    With E = U^T D V, P and Q its symmetric and skew parts off the diagonal and f = (|P|^2 - |Q|^2) / (|P|^2 + |Q|^2),
    df = <G, dE> where G = 2 ((1 - f) P - (1 + f) Q) / (|P|^2 + |Q|^2), and dE = dU^T D V + U^T D dV. An error of u_i
    counts by the i-th column of D V G^T, one of v_j by the j-th of D^T U G. Left vectors err no more than right ones.
    """
    u, _, vt = np.linalg.svd(base, full_matrices=False)
    left, right, change = u[:, :k], vt[:k].T, post - base
    e = left.T @ change @ right
    symmetric, skew = (e + e.T) / 2 - np.diag(np.diag(e)), (e - e.T) / 2
    total = np.sum(symmetric**2) + np.sum(skew**2)
    f = (np.sum(symmetric**2) - np.sum(skew**2)) / total
    gradient = 2 * ((1 - f) * symmetric - (1 + f) * skew) / total
    sides = change.T @ left @ gradient, change @ right @ gradient.T
    return sum(np.sum(np.linalg.norm(side, axis=0)) for side in sides)
