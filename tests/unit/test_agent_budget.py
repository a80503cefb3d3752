"""An agent that is kept to a budget: it declines with the reason, waits for the day that allows it, and takes part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.clock import ManualClock
from edge_sdk.errors import BudgetExceeded
from edge_sdk.events import Deferred, Refused
from edge_sdk.protocol.messages import AdvertiseKeys, BlobRef, CheckIn, Decline, DeclineReason, Message, Pull, TaskState
from edge_sdk.runtime.budget import DAY_S, MB, Budget, next_day
from edge_sdk.runtime.driver import DeviceLoop
from edge_sdk.runtime.frames import Outgoing
from tests.unit.post import (
    BUNDLE,
    CHECKPOINT,
    DIMENSION,
    Learner,
    Post,
    make_announcement,
    make_plan,
    next_round,
    one,
    reference,
)
from tests.unit.test_agent_parts import PARTS, Picky, answer

MakePost = Callable[..., Post]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakePost]:
    made: list[Post] = []

    def post(**options: Any) -> Post:
        made.append(Post(tmp_path, **options))
        return made[-1]

    yield post
    for each in made:
        each.store.close()


def said_of(kind: type[Message], said: list[Message]) -> list[Message]:
    return [message for message in said if isinstance(message, kind)]


def refused(post: Post) -> list[str]:
    return [event.reason for event in post.events if isinstance(event, Refused)]


def test_a_round_that_would_take_too_much_is_declined_before_anything_is_fetched(make: MakePost) -> None:
    post = make(budget=Budget(bytes_per_day=len(BUNDLE) + len(CHECKPOINT) + 500))
    post.announce()
    said = post.tell(make_plan())
    found = one(said, Decline)
    assert found.reason is DeclineReason.OVER_TRAFFIC_BUDGET
    assert "UTC" in found.detail
    assert not said_of(Pull, said)
    assert refused(post) == ["over_traffic_budget"]
    # The next round of the same day is not joined, that of the next day is.
    assert not said_of(CheckIn, post.announce(make_announcement(sequence=2, **next_round(2))))
    post.now = next_day(post.now)
    assert said_of(CheckIn, post.wait(0))


def test_parts_count_once_the_head_tells_them(make: MakePost) -> None:
    enough_for_the_head = Budget(bytes_per_day=20_000)
    post = make(budget=enough_for_the_head, learner=Picky(0, DIMENSION))
    post.announce()
    said, fetched = answer(post, post.tell(make_plan()))
    found = one(said, Decline)
    assert found.reason is DeclineReason.OVER_TRAFFIC_BUDGET
    assert f"{sum(map(len, PARTS)) / MB:.1f} MB more" in found.detail
    assert not set(fetched) & set(PARTS)


def test_a_bundle_too_large_for_today_is_not_asked_for_again_today(make: MakePost) -> None:
    """Though most of the day's traffic is left."""
    post = make(budget=Budget(bytes_per_day=1e6))
    post.announce()
    found = one(post.tell(replace(make_plan(), bundle=huge(b"bundle"))), Decline)
    assert "10.0 MB more cannot go now" in found.detail
    assert post.agent._traffic.used(post.now) < 20_000
    assert not said_of(CheckIn, post.announce(make_announcement(sequence=2, **next_round(2))))
    post.now = next_day(post.now)
    assert said_of(CheckIn, post.wait(0))


def test_what_is_on_its_way_counts_with_the_parts(make: MakePost) -> None:
    post = make(budget=Budget(bytes_per_day=10.3e6), learner=Picky(0, DIMENSION))
    post.announce()
    said = post.tell(replace(make_plan(), checkpoint=huge(b"checkpoint")))
    head = next(pull for pull in said if isinstance(pull, Pull) and pull.sha256 == reference(BUNDLE).sha256)
    found = one(post.give(BUNDLE, head), Decline)
    assert (found.reason, "10.5 MB more" in found.detail) == (DeclineReason.OVER_TRAFFIC_BUDGET, True)


def test_the_masked_vector_counts_before_anything_is_fetched(make: MakePost) -> None:
    """32,768 coordinates of 16 bits."""
    post = make(budget=Budget(bytes_per_day=50_000))
    post.announce()
    found = one(post.tell(make_plan(dimension=30_000, norm_bound=300.0, device_variance=100_000)), Decline)
    assert (found.reason, "0.1 MB more" in found.detail) == (DeclineReason.OVER_TRAFFIC_BUDGET, True)


def huge(name: bytes) -> BlobRef:
    """A blob of ten megabytes that nobody has."""
    return BlobRef(reference(name).sha256, 10_000_000)


def test_what_fits_takes_part(make: MakePost) -> None:
    whole = sum(map(len, (BUNDLE, CHECKPOINT, *PARTS)))
    post = make(budget=Budget(bytes_per_day=whole + 20_000), learner=Picky(0, DIMENSION))
    post.announce()
    said, _ = answer(post, post.tell(make_plan()))
    one(said, AdvertiseKeys)
    used = post.store.traffic(int(post.now // DAY_S))
    assert used[0] >= whole - (1 << 16)


def test_a_device_that_used_its_day_up_waits_and_says_so(make: MakePost) -> None:
    post = make(budget=Budget(bytes_per_day=100_000))
    post.store.count_traffic(int(post.now // DAY_S), 60_000, 40_000)
    assert not said_of(CheckIn, post.announce())
    (told,) = [event for event in post.events if isinstance(event, Deferred)]
    assert "0.1 of the 0.1 MB that this device allows a day are used" in told.reason
    deadline = post.agent.next_deadline()
    assert deadline == next_day(post.now)
    post.now = deadline
    assert said_of(CheckIn, post.wait(0))


def test_a_finished_model_waits_for_the_day_that_allows_it(make: MakePost) -> None:
    learner = Picky(0, DIMENSION)
    post = make(budget=Budget(bytes_per_day=sum(map(len, PARTS)) + 20_000), learner=learner)
    post.store.count_traffic(int(post.now // DAY_S), len(PARTS[2]), 0)
    finished = make_announcement(state=TaskState.COMPLETE, model_version=3)
    said, fetched = answer(post, post.announce(finished))
    assert set(fetched) <= {BUNDLE, CHECKPOINT}
    assert not said_of(Pull, said)
    assert learner.installed == []
    deadline = post.agent.next_deadline()
    assert deadline == next_day(post.now)
    post.now = deadline
    _, fetched = answer(post, post.wait(0))
    assert set(fetched) == set(PARTS)
    assert learner.installed == [3]


def test_a_round_that_has_begun_is_finished(make: MakePost) -> None:
    """Others would be kept waiting; the day after it is the next one's."""
    post = make(budget=Budget(bytes_per_day=30_000))
    post.follow()
    post.store.count_traffic(int(post.now // DAY_S), 10**6, 0)
    assert not said_of(Decline, post.train())
    assert not refused(post)


def test_a_training_too_large_for_the_device_is_declined_from_the_head_alone(make: MakePost) -> None:
    learner = Picky(0, DIMENSION, memory=300 * MB)
    post = make(budget=Budget(memory_mb=200), learner=learner)
    post.announce()
    said, fetched = answer(post, post.tell(make_plan()))
    found = one(said, Decline)
    assert found.reason is DeclineReason.OVER_MEMORY_BUDGET
    assert found.detail == "training takes about 300 MB of memory; this device allows 200"
    assert not set(fetched) & set(PARTS)
    # Nor does it offer itself to another round of that bundle; to one of another, it does.
    assert not said_of(CheckIn, post.announce(make_announcement(sequence=2, **next_round(2))))
    other = make_announcement(sequence=3, bundle=reference(b"another"), **next_round(3))
    assert said_of(CheckIn, post.announce(other))


def test_memory_that_is_not_free_is_refused_while_it_is_not(make: MakePost) -> None:
    free = [100 * MB]
    post = make(learner=Learner(0, DIMENSION, memory=300 * MB), free_memory=lambda: free[0])
    post.announce()
    said, _ = answer(post, post.tell(make_plan()))
    assert one(said, Decline).detail == "training takes about 300 MB of memory; 100 are free on this device"
    assert not said_of(CheckIn, post.announce(make_announcement(sequence=2, **next_round(2))))
    free[0] = 400 * MB
    assert said_of(CheckIn, post.announce(make_announcement(sequence=3, **next_round(3))))


def test_a_training_that_took_too_long_is_declined_as_such(make: MakePost) -> None:
    post = make()
    post.follow()
    job = post.agent.take_job()
    assert job is not None
    failure = BudgetExceeded("training was not done after the 60 s that this device allows a round")
    found = one(post.read(post.agent.failed(job, failure, post.now)), Decline)
    assert (found.reason, found.detail) == (DeclineReason.OVER_TIME_BUDGET, str(failure))
    assert refused(post) == ["over_time_budget"]


def test_the_days_traffic_outlives_a_reboot(make: MakePost) -> None:
    budget = Budget(bytes_per_day=200_000)
    post = make(budget=budget, learner=Picky(0, DIMENSION))
    post.store.count_traffic(int(post.now // DAY_S), 200_000, 0)
    again = post.reboot(budget=budget)
    assert not said_of(CheckIn, again.announce())
    again.store.close()


class Line:
    """A transport that takes what it is given, or drops it."""

    takes = False

    def launch(self) -> None:
        pass

    def publish(self, topic: str, payload: bytes, *, expiry_s: float | None = None) -> bool:
        return self.takes

    async def stop(self) -> None:
        pass


def test_only_what_the_network_took_counts(make: MakePost) -> None:
    """A device that is offline repeats what it has to say, which costs nothing."""
    post, line = make(), Line()

    async def main() -> None:
        loop = DeviceLoop([post.agent], lambda *_: line, clock=ManualClock(post.now))
        for line.takes in (False, True, False):
            loop._send(post.agent, (Outgoing("topic", bytes(70_000), 60),))

    asyncio.run(main())
    assert post.store.traffic(int(post.now // DAY_S)) == (0, 70_000)


def test_what_was_counted_last_is_kept_when_the_loop_ends(make: MakePost) -> None:
    post = make()

    async def main() -> None:
        post.agent.sent(500, post.now)
        await DeviceLoop([post.agent], lambda *_: Line(), clock=ManualClock(post.now)).run(
            asyncio.Event(), done=lambda: True
        )

    asyncio.run(main())
    assert post.store.traffic(int(post.now // DAY_S)) == (0, 500)
