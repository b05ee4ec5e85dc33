"""The queue of what is exported: nothing is lost that is not counted, whatever fails when."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from otel_tracker.outbox import MOST_HELD, PROBES, REFUSALS, Batch, Outbox


class AnyOrder(RuleBasedStateMachine):
    """Puts, exports that fail or not, and a close, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox: Outbox[int] = Outbox(limit=7, batch_size=3)
        self.ids = iter(range(10_000))
        self.put: set[int] = set()
        self.arrived: list[int] = []
        self.under_way: Batch[int] | None = None

    @rule(count=st.integers(1, 5))
    def puts(self, count: int) -> None:
        for _ in range(count):
            item = next(self.ids)
            self.put.add(item)
            self.outbox.put(item)

    @precondition(lambda self: self.under_way is None)
    @rule()
    def takes(self) -> None:
        self.under_way = self.outbox.take()
        if self.under_way is not None:
            assert 1 <= len(self.under_way.items) <= 3

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def arrives(self) -> None:
        assert self.under_way is not None
        self.arrived += self.under_way.items
        self.outbox.delivered(self.under_way)
        self.under_way = None

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def fails(self) -> None:
        assert self.under_way is not None
        self.outbox.failed(self.under_way)
        self.under_way = None

    @rule()
    @precondition(lambda self: len(self.put) > 20)
    def closes(self) -> None:
        self.outbox.close()

    @invariant()
    def every_item_is_accounted_for(self) -> None:
        outbox = self.outbox
        assert len(self.put) == outbox.exported + outbox.waiting + outbox.lost.total()

    @invariant()
    def nothing_arrives_twice_or_uncounted(self) -> None:
        assert len(set(self.arrived)) == len(self.arrived) == self.outbox.exported
        assert set(self.arrived) <= self.put

    @invariant()
    def what_waits_is_bounded(self) -> None:
        assert self.outbox.waiting <= 7 + 3 * (MOST_HELD + 2)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def batches(outbox: Outbox[int]) -> Iterator[Batch[int]]:
    while (batch := outbox.take()) is not None:
        yield batch


def test_an_outage_loses_nothing_and_keeps_the_order_of_batches() -> None:
    """All that failed is sent when the endpoint is back, what failed longest ago first."""
    outbox: Outbox[int] = Outbox(limit=100, batch_size=10)
    for item in range(50):
        outbox.put(item)
    for _ in range(20):
        batch = outbox.take()
        assert batch is not None
        outbox.failed(batch)
    arrived: list[int] = []
    failed_at = []
    for batch in batches(outbox):
        failed_at.append(min(batch.items))
        arrived += batch.items
        outbox.delivered(batch)
    assert sorted(arrived) == list(range(50))
    assert failed_at != sorted(failed_at, reverse=True)
    assert (outbox.exported, outbox.waiting, outbox.lost.total()) == (50, 0, 0)


def test_one_bad_item_is_given_up_and_takes_no_other_with_it() -> None:
    """A batch that is refused while others get through is halved until the bad one is alone."""
    outbox: Outbox[int] = Outbox(limit=10_000, batch_size=64)
    for item in range(640):
        outbox.put(item)
    exports = 0
    fresh = iter(range(1_000, 2_000))
    while outbox.waiting:
        exports += 1
        batch = outbox.take()
        assert batch is not None
        if 100 in batch.items:
            outbox.failed(batch)
            outbox.put(next(fresh))  # the application goes on: others get through meanwhile
        else:
            outbox.delivered(batch)
    assert (outbox.lost.refused, outbox.lost.total()) == (1, 1)
    assert exports < 100


def test_a_batch_that_fails_alone_is_kept() -> None:
    """Where nothing gets through, the endpoint is at fault: no batch is given up for that."""
    outbox: Outbox[int] = Outbox(limit=100, batch_size=10)
    outbox.put(1)
    for _ in range(REFUSALS * 100):
        batch = outbox.take()
        assert batch is not None
        outbox.failed(batch)
    assert (outbox.waiting, outbox.lost.total()) == (1, 0)


def test_a_full_queue_drops_the_oldest_and_counts_each_from_any_thread() -> None:
    """Of four threads' 40,000 items 1,000 are kept, and 39,000 are counted."""
    outbox: Outbox[int] = Outbox(limit=1_000, batch_size=512)

    def puts(first: int) -> None:
        for item in range(first, first + 10_000):
            outbox.put(item)

    threads = [threading.Thread(target=puts, args=(n * 10_000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (outbox.waiting, outbox.lost.queue_full) == (1_000, 39_000)
    kept = [item for batch in batches(outbox) for item in batch.items]
    last = {item // 10_000: item for item in kept}
    assert any(item % 10_000 == 9_999 for item in last.values())  # the newest are what is kept


def test_a_closed_one_counts_what_comes_late() -> None:
    """What is put after the end, and what was under way and failed, is lost and counted."""
    outbox: Outbox[int] = Outbox(limit=10, batch_size=2)
    for item in range(5):
        outbox.put(item)
    batch = outbox.take()
    assert batch is not None
    outbox.close()
    assert (outbox.lost.shutdown, outbox.waiting) == (3, 2)
    outbox.put(6)
    outbox.failed(batch)
    assert (outbox.lost.shutdown, outbox.waiting) == (6, 0)


def test_where_every_batch_has_a_bad_item_the_good_ones_get_through() -> None:
    """A server that refuses for size, or for one item in each batch: single items find out."""
    outbox: Outbox[int] = Outbox(limit=10_000, batch_size=16)
    bad = set(range(0, 320, 16))
    for item in range(320):
        outbox.put(item)
    arrived: list[int] = []
    for _ in range(5_000):
        batch = outbox.take()
        if batch is None:
            break
        if bad & set(batch.items):
            outbox.failed(batch)
        else:
            arrived += batch.items
            outbox.delivered(batch)
    assert sorted(arrived + sorted(bad)) == list(range(320))
    # The last ones wait until something gets through again: it might be the endpoint.
    assert outbox.waiting <= PROBES
    assert outbox.lost.refused + outbox.waiting == len(bad)
