"""Queries: written, signed, read; answers within their bound; estimates that say how sure they are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from coordinator.analytics.estimate import estimates
from edge_sdk.analytics.answer import answer, answer_evaluation, check_query
from edge_sdk.analytics.query import Query, Reference, is_query, parse_query, query_text, read_query, sign_query
from edge_sdk.errors import ArtifactError, ConfigError, TrainingError
from edge_sdk.signing import new_private_key, sign_raw

KEY = new_private_key()
HISTOGRAM = parse_query("histogram:field=y,low=0,high=10,bins=10")


@pytest.mark.parametrize(
    "text",
    [
        "count:",
        "count:max_rows=7",
        "mean:field=x,low=-1.0,components=16",
        "histogram:field=y,high=10.0,bins=10",
        "quantiles:field=y,high=100.0,bins=64,max_rows=50",
    ],
)
def test_a_query_is_written_signed_and_read_back(text: str) -> None:
    query = parse_query(text)
    assert query_text(query) == text
    content = sign_query(query, KEY)
    assert is_query(content)
    assert content == sign_query(query, KEY)
    assert read_query(content, signer=KEY.public_key()) == query


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "unknown kind of query ''"),
        ("sum:field=x", "unknown kind of query 'sum'"),
        ("mean:field=x,colour=red", "cannot be read"),
        ("mean:field=x,low=red", "cannot be read"),
        ("mean:field=x,low=3,high=3", "counts nothing"),
        ("mean:field=x,high=nan", "counts nothing"),
        ("mean", "with field ''"),
        ("count:field=x", "with field 'x'"),
        ("histogram:field=x,bins=0", "bins is 0"),
        ("histogram:field=x,bins=5000", "bins is 5000"),
        ("count:max_rows=0", "max_rows is 0"),
        ("evaluate:low=1,high=2", "losses begin at 0"),
    ],
)
def test_a_query_that_makes_no_sense_is_told(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_query(text)


def _signed(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A query with another body, signed by its rightful signer."""
    content = sign_query(HISTOGRAM, KEY)
    data = json.loads(content[104:])
    change(data)
    body = json.dumps(data).encode()
    return content[:40] + sign_raw(KEY, b"edge-sdk/query/1\0" + content[:40] + body) + body


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no query"),
        (b"EDGEBNDL" + bytes(200), "no query"),
        (sign_query(HISTOGRAM, new_private_key()), "unknown key"),
        (sign_query(HISTOGRAM, KEY)[:-1] + b"]", "tampered"),
        (sign_query(HISTOGRAM, KEY)[:104], "no query"),
        (_signed(lambda data: data.update(kind="sum")), "cannot be understood"),
        (_signed(lambda data: data.update(secret=1)), "cannot be understood"),
        (_signed(lambda data: data.update(bins=1e9)), "cannot be understood"),
        (_signed(lambda data: data.update(model=[{"sha256": "00", "size_bytes": 1}])), "cannot be understood"),
        (_signed(lambda data: data.clear()), "cannot be understood"),
    ],
)
def test_what_is_no_authentic_query_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        read_query(content, signer=KEY.public_key())


@given(
    st.sampled_from(["count:", "mean:field=x,low=-2,high=3,components=4", "histogram:field=x,low=-2,high=3,bins=5"]),
    st.integers(1, 30),
    arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(4)), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_no_answer_is_longer_than_its_bound(text: str, max_rows: int, x: Any) -> None:
    """Whatever a device holds: the bound is what its noise is made for."""
    query = parse_query(f"{text},max_rows={max_rows}".replace(":,", ":"))
    found = answer(query, {"x": x})
    assert found.shape == (query.dimension,)
    assert np.linalg.norm(found.astype(np.float64)) <= query.norm_bound * (1 + 1e-6)


def test_no_evaluation_is_longer_than_its_bound() -> None:
    query = Query("evaluate", high=5.0, model=(Reference("0" * 64, 0),))
    for loss in (-1.0, 0.0, 4.9, 1e9, math.inf):
        assert np.linalg.norm(answer_evaluation(query, loss, 1.0, 10**6)) <= query.norm_bound * (1 + 1e-6)


def test_only_the_newest_rows_count() -> None:
    query = parse_query("histogram:field=y,low=0,high=3,bins=3,max_rows=2")
    assert answer(query, {"y": np.array([0, 0, 0, 1, 2])}).tolist() == [0.0, 0.5, 0.5]


def test_a_query_for_what_is_not_there_is_refused() -> None:
    fields = {"x": ("float32", (4,)), "y": ("int64", ())}
    check_query(parse_query("mean:field=x,components=4"), fields)
    check_query(parse_query("count:"), fields)
    with pytest.raises(ArtifactError, match="no field 'z', but x, y"):
        check_query(parse_query("mean:field=z"), fields)
    with pytest.raises(ArtifactError, match="4 numbers a row; the query asks for 1"):
        check_query(parse_query("mean:field=x"), fields)


def test_values_that_are_not_finite_are_told() -> None:
    with pytest.raises(TrainingError, match="NaN"):
        answer(parse_query("mean:field=x"), {"x": np.array([1.0, math.nan])})


def fleet(query: Query, devices: int) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """The mean answer of a fleet without noise, and what its devices hold."""
    random = np.random.default_rng(7)
    held = [random.normal(20 + number % 5, 3, size=random.integers(5, 60)) for number in range(devices)]
    answers = [answer(query, {"x": rows}) for rows in held]
    return np.mean(answers, axis=0), held


def test_estimates_without_noise_are_what_the_fleet_holds() -> None:
    count = parse_query("count:max_rows=100")
    mean, held = fleet(count, 50)
    devices, examples, _ = estimates(count, mean, 50, 0.0)
    assert devices.value == 50
    assert examples.value == pytest.approx(sum(len(rows) for rows in held), rel=1e-5)

    every = np.concatenate(held)
    query = parse_query("mean:field=x,low=0,high=40,max_rows=100")
    (found,) = estimates(query, fleet(query, 50)[0], 50, 0.0)
    assert found.value == pytest.approx(every.mean(), rel=1e-5)

    query = parse_query("histogram:field=x,low=0,high=40,bins=8,max_rows=100")
    counted = [one.value for one in estimates(query, fleet(query, 50)[0], 50, 0.0)]
    assert counted == pytest.approx(np.histogram(every, 8, (0, 40))[0], abs=1e-2)

    query = parse_query("quantiles:field=x,low=0,high=40,bins=400,max_rows=100")
    told = [one.value for one in estimates(query, fleet(query, 50)[0], 50, 0.0)]
    assert told == pytest.approx(np.quantile(every, (0.05, 0.25, 0.5, 0.75, 0.95)), abs=0.1)


def test_the_stated_deviation_is_that_of_the_noise() -> None:
    query = parse_query("mean:field=x,low=0,high=40,max_rows=100")
    mean, _ = fleet(query, 50)
    stddev, random = 0.002, np.random.default_rng(3)
    found = [estimates(query, mean + stddev * random.normal(size=2), 50, stddev)[0] for _ in range(4000)]
    values = np.array([one.value for one in found])
    assert values.std() == pytest.approx(np.mean([one.stddev for one in found]), rel=0.05)


def test_what_drowns_in_noise_is_no_number() -> None:
    query = parse_query("mean:field=x")
    (found,) = estimates(query, [0.01, 0.02], 50, 0.5)
    assert math.isnan(found.value)
    query = parse_query("quantiles:field=x,bins=4")
    assert all(math.isnan(one.value) for one in estimates(query, [-1.0, 0.0, -0.5, 0.0], 50, 0.5))


def test_noisy_quantiles_are_in_order() -> None:
    query = parse_query("quantiles:field=x,low=0,high=10,bins=20")
    noisy = np.random.default_rng(1).normal(0.02, 0.05, size=20)
    told = [one.value for one in estimates(query, noisy, 50, 0.05)]
    assert told == sorted(told)
