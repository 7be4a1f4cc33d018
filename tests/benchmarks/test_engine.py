"""polarax's own contestants compute what they are said to."""

import ml_dtypes
import numpy as np

from benchmarks import engine
from benchmarks.matrices import weight_pairs


def test_lanes_compute_every_pair_once(monkeypatch):
    monkeypatch.setattr(engine, "most_lanes", lambda: 2)
    base, post = weight_pairs(16, 12, 5, dtype=np.dtype(ml_dtypes.bfloat16), seed=3)
    contestant = engine.in_lanes("polarax", base, post, dtype="float64", groups=("scaling",))
    contestant.prepare()
    lanes = contestant.call()
    assert [len(lane) for lane in lanes] == [3, 2]
    found = np.concatenate([readings.posts[0]["s_base"] for lane in lanes for readings in lane])
    expected = np.linalg.svd(base.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    single = engine.pair_analysis("one", base[:1], post[:1], dtype="float64", groups=("scaling",))
    single.prepare()
    assert contestant.call.memory() == {name: 2 * size for name, size in single.call.memory().items()}


def test_one_pair_has_one_lane(monkeypatch):
    monkeypatch.setattr(engine, "most_lanes", lambda: 2)
    base, post = weight_pairs(16, 12, 1, dtype=np.dtype(ml_dtypes.bfloat16), seed=3)
    contestant = engine.in_lanes("polarax", base, post, dtype="float64", groups=("scaling",))
    contestant.prepare()
    ((readings,),) = contestant.call()
    assert readings.posts[0]["s_base"].shape == (1, 12)
