"""A fleet is asked, by the whole protocol and from real example stores: what comes out, and who declines."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.analytics.model import model_parts, references
from coordinator.analytics.results import read_estimates
from coordinator.service.tasks import encoding_for
from edge_sdk.analytics.analyst import Analyst
from edge_sdk.analytics.answer import answer_evaluation
from edge_sdk.analytics.query import Query, Reference, parse_query, query_text, sign_query
from edge_sdk.inference.installed import InstalledModels
from edge_sdk.signing import new_private_key
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.learner import LocalLearner
from edge_sdk.training.trainer import everything
from tests.integration.exported import SIGNER, images, small
from tests.simulation.world import World, task_config

DEVICES, ROWS = 40, 10
X, Y = images(DEVICES * ROWS)


@contextmanager
def asked(
    folder: Path,
    query: Query,
    *,
    epsilon: float = math.inf,
    rounds: int = 1,
    allowed: bool = True,
    signer: object = SIGNER,
) -> Iterator[World]:
    """A fleet whose devices hold ten images each, and a run that asks it."""
    config = task_config(DEVICES, rounds=rounds, epsilon=epsilon, dimension=query.dimension)
    privacy = replace(config.privacy, clip_norm=query.norm_bound)
    encoding = encoding_for(
        privacy, dimension=query.dimension, min_reports=config.min_reports, goal_count=config.goal_count
    )
    config = replace(config, privacy=privacy, encoding=encoding, server_optimizer="average", query=query_text(query))
    key = SIGNER.public_key()
    stores = []
    for number in range(DEVICES):
        chosen = slice(number * ROWS, (number + 1) * ROWS)
        rows = {"x": X[chosen], "y": Y[chosen]}
        stores.append(ExampleStore.create_for(folder / f"examples-{number}.sqlite", rows))
        stores[-1].add_many(rows)
    learners = [
        LocalLearner(key, store, InstalledModels(folder / f"models-{number}", signer=key), analytics=allowed)
        for number, store in enumerate(stores)
    ]
    parts = model_parts(small()) if query.kind == "evaluate" else []
    bundle = sign_query(query, SIGNER if signer is SIGNER else new_private_key())
    with World(folder, DEVICES, config=config, bundle=bundle, parts=parts, learners=learners) as world:
        world.run(limit_s=3_000.0)
        yield world
    for store in stores:
        store.close()


@pytest.mark.parametrize(("epsilon", "rounds"), [(math.inf, 1), (8.0, 3)])
def test_a_histogram_of_the_fleet(folder: Path, epsilon: float, rounds: int) -> None:
    query = parse_query(f"histogram:field=y,low=0,high=10,bins=10,max_rows={ROWS}")
    with asked(folder, query, epsilon=epsilon, rounds=rounds) as world:
        assert [view.phase for view in world.rounds] == ["committed"] * rounds
        assert {view.reported for view in world.rounds} == {DEVICES}
        found = read_estimates(world.database, world.blobs, world.config)
    told, truth = [one.value for one in found], np.bincount(Y, minlength=10)
    # Without noise what rounding leaves; with it, five standard deviations: a seed in a million fails.
    assert told == pytest.approx(truth, abs=max(0.5, 5 * found[0].stddev))
    assert (found[0].stddev > 1.0) == (epsilon < math.inf)


def test_a_model_is_evaluated_where_the_examples_are(folder: Path) -> None:
    query = replace(parse_query(f"evaluate:high=10,max_rows={ROWS}"), model=references(model_parts(small())))
    with asked(folder, query) as world:
        loss, accuracy, examples = read_estimates(world.database, world.blobs, world.config)
    expected = evaluate(small(), small().checkpoint(), {"x": X, "y": Y})
    # What rounding to integers leaves, of which the stated deviation tells too.
    assert loss.value == pytest.approx(expected.loss, abs=5 * loss.stddev)
    assert accuracy.value == pytest.approx(expected.accuracy, abs=5 * accuracy.stddev)
    assert examples.value == pytest.approx(DEVICES * ROWS, abs=5 * examples.stddev)
    assert (loss.stddev < 0.1, accuracy.stddev < 0.01, examples.stddev < 4) == (True, True, True)


def test_a_model_is_evaluated_on_what_was_held_out(folder: Path) -> None:
    """Where anything is: what was trained on tells little."""
    parts = model_parts(small())
    query = replace(parse_query("evaluate:high=10,max_rows=1000"), model=references(parts))
    contents = {hashlib.sha256(part).digest(): part for part in parts}
    with ExampleStore.create_for(folder / "examples.sqlite", {"x": X, "y": Y}, holdout=0.3) as store:
        store.add_many({"x": X, "y": Y})
        held = everything(store.rows(held_out=True))
        told = Analyst(SIGNER.public_key(), store, allowed=True).answer(
            sign_query(query, SIGNER), lambda part: contents[part.sha256]
        )
    expected = evaluate(small(), small().checkpoint(), held)
    assert 0 < expected.examples < len(X) / 2
    known = answer_evaluation(query, expected.loss, expected.accuracy, expected.examples)
    assert np.allclose(np.frombuffer(told, "<f4"), known, atol=1e-6)


@pytest.mark.parametrize(
    ("query", "allowed", "signer"),
    [
        ("count:", False, SIGNER),
        ("count:", True, None),
        ("mean:field=z", True, SIGNER),
        ("mean:field=x,components=3", True, SIGNER),
    ],
)
def test_a_query_is_declined_by_who_may_not_or_cannot_answer(
    folder: Path, query: str, allowed: bool, signer: object
) -> None:
    with asked(folder, parse_query(query), allowed=allowed, signer=signer) as world:
        assert {view.phase for view in world.rounds} == {"abandoned"}
        assert world.rounds[0].declined["bundle_invalid"] == DEVICES
        assert read_estimates(world.database, world.blobs, world.config) == []


def test_a_model_that_is_not_the_signers_is_not_evaluated(folder: Path) -> None:
    """The query is authentic, and names a model that nobody signed."""
    parts = [b"EDGEBNDL" + bytes(200), *model_parts(small())[1:]]
    query = replace(parse_query("evaluate:high=10"), model=references(parts))
    assert isinstance(query.model[0], Reference)
    with asked(folder, query) as world:
        assert {view.phase for view in world.rounds} == {"abandoned"}
