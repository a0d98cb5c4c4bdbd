"""Threads hold no more than the bound together, and none waits for ever."""

import concurrent.futures
import itertools
import threading
import time

from pictures import noise
from PIL import Image

from otter_jax.data import images
from otter_jax.data.in_flight import Bound, in_threads


def test_threads_together_hold_at_most_the_bound_and_all_get_through():
    bound, lock = Bound(10), threading.Lock()
    held, most = [0], [0]

    def work(amount):
        with bound.hold(amount):
            with lock:
                held[0] += amount
                most[0] = max(most[0], held[0])
            time.sleep(0.002)
            with lock:
                held[0] -= amount
        return amount

    amounts = [1, 3, 9, 2, 7, 4, 10, 1] * 6
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, amounts)) == amounts
    assert 4 <= most[0] <= 10


def test_what_is_larger_than_the_bound_goes_alone():
    bound = Bound(10)
    with bound.hold(25):
        pass
    with bound.hold(4), concurrent.futures.ThreadPoolExecutor(1) as pool:
        waits = pool.submit(lambda: bound.hold(25).__enter__())
        assert not concurrent.futures.wait([waits], timeout=0.05).done
        bound._held -= 4
        with bound._changed:
            bound._changed.notify_all()
        waits.result(timeout=5)
        bound._held = 4


def test_decoding_and_resizing_wait_for_room(monkeypatch):
    asked = []

    class Seen(Bound):
        def hold(self, amount):
            asked.append(amount)
            return super().hold(amount)

    monkeypatch.setattr(images, "IN_FLIGHT", Seen(10**9))
    for kind in ("JPEG", "PNG"):
        content = noise(0, kind)
        images.decode(content)
        images.shrink(content, 10, format="jpeg", quality=90)
    assert asked == [400] * 4  # 20 x 20


def test_large_pictures_are_given_back_to_the_system():
    assert Image.core.get_block_size() > 32 << 20  # glibc keeps what is smaller, per thread


def test_few_files_are_held_at_once_while_a_folder_is_read():
    begun = itertools.count()
    files = (next(begun) for _ in range(1000))
    results = in_threads(str, files, ahead=64)
    assert [next(results) for _ in range(3)] == [(0, "0"), (1, "1"), (2, "2")]
    assert next(begun) <= 64 + 3
    results.close()
