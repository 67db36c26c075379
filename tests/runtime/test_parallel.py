"""Work that is spread and kept."""

import numpy as np

from advconn.runtime.cache import DiskCache
from advconn.runtime.parallel import Runner


def test_finished_work_is_not_done_again(tmp_path):
    """A call whose key is kept is answered from the cache, whatever else it is given; another is made."""
    done = []

    def work(values, other):
        done.append(len(values))
        return values.sum()

    for _ in range(2):
        calls = [(np.arange(3), object()), (np.arange(4), object())]
        keys = [(values, "a") for values, _ in calls]
        assert Runner(store=DiskCache(tmp_path)).map("work", work, calls, keys) == [3, 6]
    assert done == [3, 4]
    assert Runner(store=DiskCache(tmp_path)).kept(work, (np.arange(3), "a"))
    assert not Runner(store=DiskCache(tmp_path)).kept(work, (np.arange(3), "b"))
