"""The device's account of what training with noise for each example cost its examples."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.privacy.subsampled import Sampling, sampled_epsilon
from edge_sdk.protocol.messages import AbandonReason, Decline, DeclineReason, MaskedInput, Outcome, Pull
from edge_sdk.protocol.policy import DevicePolicy
from tests.simulation.world import fresh_folder
from tests.unit.post import BUNDLE, CHECKPOINT, Cohort, Learner, Post, make_announcement, make_plan, next_round, one

TWENTY_STEPS = Sampling(noise_multiplier=1.0, rate=0.1, steps=20)
ONE_ROUND = sampled_epsilon([TWENTY_STEPS], 1e-5)
TWO_ROUNDS = sampled_epsilon([TWENTY_STEPS, TWENTY_STEPS], 1e-5)
POLICY = DevicePolicy(min_reports=2, example_epsilon_at_most=TWO_ROUNDS)


@pytest.fixture
def post() -> Iterator[Post]:
    with fresh_folder() as folder:
        held = Post(folder, policy=POLICY, learner=Learner(0, 20, sampled=TWENTY_STEPS))
        yield held
        held.store.close()


def declined(post: Post, number: int) -> Decline:
    plan = make_plan(**next_round(number))
    post.announce(make_announcement(sequence=number, rid=plan.rid, round_number=number, task=plan.task))
    said = post.tell(plan)
    for pull in [m for m in said if isinstance(m, Pull)]:
        said = post.give(BUNDLE if pull.sha256 == plan.bundle.sha256 else CHECKPOINT, pull)
    return one(said, Decline)


def test_rounds_add_up_over_restarts_until_the_budget_is_spent(post: Post) -> None:
    for number in (1, 2):
        Cohort(post, make_plan(**next_round(number))).play_until_reported()
        post.tell(Outcome(make_plan(**next_round(number)).rid, True, AbandonReason.NONE, 6))
        post = post.reboot(policy=POLICY)
    assert post.store.samplings() == (Sampling(1.0, 0.1, 40),)
    answer = declined(post, 3)
    assert answer.reason is DeclineReason.EPSILON_TOO_LARGE
    assert f"this device allows {TWO_ROUNDS:g}" in answer.detail
    post.store.close()


def test_what_was_trained_counts_before_it_leaves(post: Post) -> None:
    post.follow()
    post.train()
    assert post.store.samplings() == (TWENTY_STEPS,)
    assert post.store.participations() == []


def test_a_training_whose_result_was_lost_counts_once(post: Post) -> None:
    plan = make_plan()
    post.follow(plan)
    # Counted, then the process dies before the update is journalled.
    post.store.count_examples(plan.rid, TWENTY_STEPS)
    again = post.reboot(policy=POLICY)
    again.train()
    assert again.store.samplings() == (TWENTY_STEPS,)
    again.store.close()


def test_examples_that_came_in_between_are_counted(post: Post) -> None:
    post.follow()
    post.learner.sampled = Sampling(1.0, 0.2, 2_000)
    assert one(post.train(), Decline).reason is DeclineReason.EPSILON_TOO_LARGE
    assert post.store.samplings() == ()


def test_bundles_that_do_not_protect_each_example_are_declined_where_that_is_asked(post: Post) -> None:
    post.learner.sampled = None
    answer = declined(post, 1)
    assert (answer.reason, "noise for each example" in answer.detail) == (DeclineReason.NOISE_TOO_SMALL, True)


def test_nothing_is_asked_by_default() -> None:
    with fresh_folder() as folder:
        post = Post(folder, learner=Learner(0, 20))
        post.follow()
        assert not any(isinstance(said, Decline | MaskedInput) for said in post.train())
        assert post.store.samplings() == ()
        post.store.close()


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan")])
def test_a_budget_that_allows_nothing_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match="example-level epsilon"):
        DevicePolicy(example_epsilon_at_most=epsilon)
