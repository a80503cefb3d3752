"""A device fetches of a bundle what it needs and lacks, whatever happens on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edge_sdk.errors import ArtifactError
from edge_sdk.protocol.limits import GIB
from edge_sdk.protocol.messages import (
    AdvertiseKeys,
    BlobRef,
    Decline,
    DeclineReason,
    Digest,
    Message,
    Pull,
    TaskState,
)
from edge_sdk.runtime.learner import Bundle
from edge_sdk.secagg import suite
from tests.unit.post import BUNDLE, CHECKPOINT, DIMENSION, Learner, Post, make_announcement, make_plan, one, reference

PARTS = (b"the training graph" * 5_000, b"the inference graph", b"a frozen base" * 30_000)


@dataclass
class Picky(Learner):
    """Needs some parts of the bundle, and reads them all."""

    needed: tuple[BlobRef, ...] = tuple(reference(part) for part in PARTS)
    read: tuple[bytes, ...] = ()

    def parts(self, head: bytes) -> tuple[BlobRef, ...]:
        if head != BUNDLE:
            raise ArtifactError("not signed by the pinned signer")
        return self.needed

    def check(self, bundle: Bundle, checkpoint: bytes) -> int:
        self.read = tuple(bundle.read(part) for part in self.needed)
        return super().check(bundle, checkpoint)


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    made = Post(tmp_path, learner=Picky(0, DIMENSION))
    yield made
    made.store.close()


def pulls(said: list[Message]) -> dict[bytes, Pull]:
    return {message.sha256: message for message in said if isinstance(message, Pull)}


def answer(post: Post, said: list[Message]) -> tuple[list[Message], list[bytes]]:
    """Give all that is asked for until nothing more is; what the device then says, and what it fetched."""
    contents = {suite.digest(data): data for data in (BUNDLE, CHECKPOINT, *PARTS)}
    fetched = []
    while wanted := pulls(said):
        said = []
        for digest, pull in wanted.items():
            fetched.append(contents[digest])
            said += post.give(contents[digest], pull)
    return said, fetched


def test_the_parts_follow_the_head(post: Post) -> None:
    post.announce()
    said, fetched = answer(post, post.tell(make_plan()))
    one(said, AdvertiseKeys)
    assert sorted(fetched) == sorted([BUNDLE, CHECKPOINT, *PARTS])
    assert isinstance(post.learner, Picky)
    assert post.learner.read == PARTS


def test_what_is_here_is_not_fetched_again(post: Post) -> None:
    """A new version of a model that shares its frozen base and its graphs with the old one."""
    for part in PARTS[:2]:
        post.blobs.put(part)
    post.announce()
    said, fetched = answer(post, post.tell(make_plan()))
    one(said, AdvertiseKeys)
    assert sorted(fetched) == sorted([BUNDLE, CHECKPOINT, PARTS[2]])


def test_only_what_the_newest_model_needs_is_kept(post: Post) -> None:
    post.blobs.put(b"an old checkpoint")
    post.announce()
    answer(post, post.tell(make_plan()))
    kept = {path.read_bytes() for path in (post.folder / "blobs").iterdir()}
    assert kept == {BUNDLE, CHECKPOINT, *PARTS}


def test_a_process_that_ends_amid_the_parts_goes_on_with_those_it_lacks(post: Post) -> None:
    post.announce()
    said = post.tell(make_plan())
    wanted = pulls(said)
    said = post.give(CHECKPOINT, wanted[suite.digest(CHECKPOINT)]) + post.give(BUNDLE, wanted[suite.digest(BUNDLE)])
    wanted = pulls(said)
    assert set(wanted) == {suite.digest(part) for part in PARTS}
    post.give(PARTS[0], wanted[suite.digest(PARTS[0])])
    again = post.reboot()
    said, fetched = answer(again, again.started)
    one(said, AdvertiseKeys)
    assert sorted(fetched) == sorted(PARTS[1:])
    again.store.close()


def test_a_head_that_is_not_authentic_ends_before_any_part_is_asked_for(post: Post) -> None:
    post.announce()
    forged = b"a forged head"
    said = post.tell(replace(make_plan(), bundle=reference(forged)))
    said = post.give(forged, pulls(said)[suite.digest(forged)])
    assert one(said, Decline).reason is DeclineReason.BUNDLE_INVALID
    assert not pulls(said)


def test_a_bundle_of_more_than_a_device_takes_is_declined(tmp_path: Path) -> None:
    huge = tuple(BlobRef(Digest(bytes([number]) * 32), GIB // 2) for number in range(3))
    post = Post(tmp_path, learner=Picky(0, DIMENSION, needed=huge))
    post.announce()
    said = post.tell(make_plan())
    said = post.give(BUNDLE, pulls(said)[suite.digest(BUNDLE)])
    found = one(said, Decline)
    assert (found.reason, "larger than any device takes" in found.detail) == (DeclineReason.BUNDLE_INVALID, True)
    post.store.close()


def test_the_last_model_of_a_complete_task_is_installed_with_its_parts(post: Post) -> None:
    said = post.announce(make_announcement(state=TaskState.COMPLETE, model_version=3))
    _, fetched = answer(post, said)
    assert sorted(fetched) == sorted([BUNDLE, CHECKPOINT, *PARTS])
    assert post.learner.installed == [3]
