"""The golden file of queries: signed ones to be read or refused, and answers from examples.

`python tests/vectors/test_analytics_vectors.py` writes it anew. Values are such that sums are exact in any order: every
number must match bit for bit. Signatures are deterministic (RFC 6979), the key is no secret.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk import errors
from edge_sdk.analytics.answer import answer, answer_evaluation, check_query
from edge_sdk.analytics.query import Query, Reference, read_query, sign_query
from edge_sdk.signing import key_id, public_key_from_pem, public_key_to_pem, sign_raw

FILE = Path(__file__).parent / "analytics.json"
Inputs = dict[str, Any]
Case = tuple[str, Inputs]


# ---- the operations


def _read(i: Inputs) -> Inputs:
    query = read_query(bytes.fromhex(i["content"]), signer=public_key_from_pem(i["signer"].encode()))
    return {
        "kind": query.kind,
        "field": query.field,
        "low": query.low,
        "high": query.high,
        "bins": query.bins,
        "components": query.components,
        "max_rows": query.max_rows,
        "model": [[part.sha256, part.size_bytes] for part in query.model],
        "dimension": query.dimension,
        "norm_bound": query.norm_bound,
    }


def _query(i: Inputs) -> Query:
    return Query(**i["query"], model=(Reference("0" * 64, 0),) * 2 if i["query"]["kind"] == "evaluate" else ())


def _rows(i: Inputs) -> dict[str, Any]:
    return {
        name: np.array(field["values"], field["dtype"]).reshape(field["shape"]) for name, field in i["rows"].items()
    }


def _answer(i: Inputs) -> list[float]:
    rows = _rows(i)
    check_query(_query(i), {name: (str(values.dtype), values.shape[1:]) for name, values in rows.items()})
    return [float(value) for value in answer(_query(i), rows)]


def _evaluation(i: Inputs) -> list[float]:
    return [float(value) for value in answer_evaluation(_query(i), i["loss"], i["right"], i["count"])]


OPERATIONS: dict[str, Callable[[Inputs], Any]] = {
    "read": _read,
    "answer": _answer,
    "answer_evaluation": _evaluation,
}


# ---- the script

KEY = ec.derive_private_key(42, ec.SECP256R1())
OTHER = ec.derive_private_key(43, ec.SECP256R1())
PUBLIC = public_key_to_pem(KEY.public_key()).decode()
QUERIES = (
    Query("count"),
    Query("mean", field="x", low=-1.0, high=3.0, components=2, max_rows=4),
    Query("histogram", field="y", low=0.0, high=10.0, bins=5, max_rows=8),
    Query("quantiles", field="x", low=0.25, high=2.25, bins=8),
    Query("evaluate", high=5.0, max_rows=16, model=(Reference("ab" * 32, 900), Reference("cd" * 32, 1 << 20))),
)


def _read_cases() -> Iterator[Case]:
    for query in QUERIES:
        yield "read", {"content": sign_query(query, KEY).hex(), "signer": PUBLIC}
    content = sign_query(QUERIES[1], KEY)
    changed = bytearray(content)
    changed[-3] ^= 1
    for bad in (
        bytes(changed),
        content[:-1],
        content[:104],
        content + b" ",
        b"EDGEBNDL" + content[8:],
        sign_query(QUERIES[1], OTHER),
        *_understood_by_nobody(),
    ):
        yield "read", {"content": bad.hex(), "signer": PUBLIC}


def _understood_by_nobody() -> Iterator[bytes]:
    """Signed by the right key, and nonsense."""
    good = json.loads(sign_query(QUERIES[1], KEY)[104:])
    part = {"sha256": "ab" * 32, "size_bytes": 1}
    for change in (
        {"kind": "median"},
        {"low": 3.0},
        {"bins": 0},
        {"components": 4097},
        {"max_rows": 0},
        {"field": ""},
        {"model": [part]},
        {"model": [part | {"sha256": "ab"}], "kind": "evaluate", "field": "", "low": 0.0},
        {"model": [part | {"size_bytes": -1}] * 2, "kind": "evaluate", "field": "", "low": 0.0},
        {"more": 1},
    ):
        yield _signed(json.dumps(good | change, sort_keys=True, separators=(",", ":")).encode())
    yield _signed(b"[]")
    yield _signed(b"{")


def _signed(body: bytes) -> bytes:
    head = b"EDGEQRY1" + key_id(KEY.public_key())
    return head + sign_raw(KEY, b"edge-sdk/query/1\0" + head + body) + body


def _answer_cases() -> Iterator[Case]:
    rows = {
        "x": {"dtype": "float32", "shape": [6, 2], "values": [0.5, -4, 1, 0.25, 2, 8, -1, 3, 0, 0, 1.5, 2.5]},
        "y": {"dtype": "int64", "shape": [6], "values": [0, 3, 9, 10, 11, -5]},
        "pixels": {"dtype": "uint8", "shape": [6, 2, 2], "values": [0, 255, 128, 64] * 6},
        "on": {"dtype": "bool", "shape": [6], "values": [True, False, True, True, False, True]},
    }
    none = {name: field | {"shape": [0, *field["shape"][1:]], "values": []} for name, field in rows.items()}
    for query in (
        {"kind": "count", "max_rows": 8},
        {"kind": "count", "max_rows": 4},
        {"kind": "mean", "field": "x", "low": -1.0, "high": 3.0, "components": 2, "max_rows": 4},
        {"kind": "mean", "field": "x", "low": -1.0, "high": 3.0, "components": 2, "max_rows": 16},
        {"kind": "mean", "field": "on", "max_rows": 8},
        {"kind": "mean", "field": "pixels", "low": 0.0, "high": 256.0, "components": 4, "max_rows": 8},
        {"kind": "histogram", "field": "y", "low": 0.0, "high": 10.0, "bins": 5, "max_rows": 8},
        {"kind": "histogram", "field": "x", "low": 0.0, "high": 2.0, "bins": 4, "max_rows": 8},
        {"kind": "quantiles", "field": "pixels", "low": 0.0, "high": 256.0, "bins": 8, "max_rows": 2},
        {"kind": "mean", "field": "x", "components": 3},
        {"kind": "mean", "field": "z"},
    ):
        for given in (rows, none):
            yield "answer", {"query": query, "rows": given}
    evaluate = {"kind": "evaluate", "high": 4.0, "max_rows": 8}
    yield "answer_evaluation", {"query": evaluate, "loss": 1.0, "right": 0.75, "count": 4}
    yield "answer_evaluation", {"query": evaluate, "loss": 9.0, "right": None, "count": 12}
    yield "answer_evaluation", {"query": evaluate, "loss": -1.0, "right": 1.0, "count": 8}


def _script() -> Iterator[Case]:
    yield from _read_cases()
    yield from _answer_cases()


def perform(op: str, inputs: Inputs) -> Inputs:
    """What an operation gives: {"out": value} or {"error": the error's class}."""
    try:
        return {"out": json.loads(json.dumps(OPERATIONS[op](inputs)))}
    except errors.EdgeError as error:
        return {"error": type(error).__name__}


def test_operations_give_what_the_file_says() -> None:
    for case in json.loads(FILE.read_text())["cases"]:
        assert perform(case["op"], case["in"]) == {key: case[key] for key in ("out", "error") if key in case}, case


def test_the_file_holds_the_whole_script() -> None:
    stored = [(case["op"], case["in"]) for case in json.loads(FILE.read_text())["cases"]]
    assert stored == [(op, json.loads(json.dumps(inputs))) for op, inputs in _script()]


def write() -> None:
    about = (
        "Queries to be read or refused, and answers to them. Bytes are hexadecimal; a case with 'error' must fail so."
    )
    lines = ",\n".join(json.dumps({"op": op, "in": inputs} | perform(op, inputs)) for op, inputs in _script())
    FILE.write_text(f'{{"about": {json.dumps(about)},\n"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    write()
