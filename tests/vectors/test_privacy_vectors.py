"""The golden files of the update pipeline: rotation, rounding, noise, encoding and accounting.

`python tests/vectors/test_privacy_vectors.py` writes them anew. Inputs of the rotation are chosen so that its
sums are exact in any order: every number must match bit for bit, but for epsilons, to 1e-9 relative.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk import errors
from edge_sdk.privacy import accounting, clip, encode, noise, quantize, rotate
from edge_sdk.privacy.noise import Mechanism
from edge_sdk.secagg import suite

FOLDER = Path(__file__).parent
Inputs = dict[str, Any]
Case = tuple[str, Inputs]
EPSILON_TOLERANCE = 1e-9


def octets(name: str, count: int) -> str:
    """Bytes that look random, named by a label."""
    return suite.Stream(suite.digest(name.encode())).bytes(count).hex()


CTX = octets("ctx", 32)


# ---- the operations


def _clip(i: Inputs) -> list[Any]:
    values, was_clipped = clip.clip(_floats(i["values"]), i["clip_norm"])
    return [values.tolist(), was_clipped]


def _table(i: Inputs) -> noise.NoiseTable:
    return noise.noise_table(Mechanism[i["mechanism"]], i["variance"])


def _table_digest(i: Inputs) -> Inputs:
    table = _table(i)
    entries = np.stack([table.low, table.high], axis=1).astype("<u8").tobytes()
    return {
        "half": table.half,
        "entries_digest": suite.digest(entries).hex(),
        "prefix_digest": suite.digest(table.prefix.astype("<i4").tobytes()).hex(),
    }


def _encode(i: Inputs) -> list[int]:
    parameters = _parameters(i["parameters"])
    encoded: list[int] = encode.encode(_floats(i["update"]), parameters, _b(i["ctx"]), _b(i["entropy"])).tolist()
    return encoded


def _decode(i: Inputs) -> Inputs:
    parameters = _parameters(i["parameters"])
    total = np.array(i["total"], np.uint32)
    decoded = encode.decode(total, parameters, _b(i["ctx"]), i["survivors"])
    return {"mean": decoded.mean.tolist(), "within": decoded.within}


def _parameters(values: Inputs) -> encode.EncodingParameters:
    return encode.EncodingParameters(
        **values | {"mechanism": Mechanism[values["mechanism"]], "clip_bit": float(values["clip_bit"])}
    )


def _epsilon(i: Inputs) -> float:
    releases = (release | {"mechanism": Mechanism[release["mechanism"]]} for release in i["releases"])
    return accounting.rdp_epsilon([accounting.Release(**release) for release in releases], i["delta"])


def _b(text: str) -> bytes:
    return bytes.fromhex(text)


def _floats(values: list[float | str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([float(value) for value in values], np.float32)


OPERATIONS: dict[str, Callable[[Inputs], Any]] = {
    "clip": _clip,
    "block_length": lambda i: rotate.block_length(i["length"]),
    "hadamard": lambda i: rotate.hadamard(_floats(i["values"])).tolist(),
    "rotate": lambda i: rotate.rotate(_floats(i["values"]), _b(i["ctx"])).tolist(),
    "unrotate": lambda i: rotate.unrotate(_floats(i["values"]), _b(i["ctx"])).tolist(),
    "stochastic_round": lambda i: quantize.stochastic_round(
        _floats(i["values"]), i["scale"], i["norm_bound"], _b(i["entropy"])
    ).tolist(),
    "rounded_norm_bound": lambda i: quantize.rounded_norm_bound(i["clip_norm"], i["scale"], i["length"]),
    "noise_table": _table_digest,
    "noise_entries": lambda i: [
        f"{high:016x}{low:016x}"
        for table in (_table(i),)
        for high, low in zip(table.high.tolist(), table.low.tolist(), strict=True)
    ],
    "noise": lambda i: noise.sample(
        Mechanism[i["mechanism"]], i["variance"], i["count"], suite.Stream(_b(i["key"]))
    ).tolist(),
    "encode": _encode,
    "decode": _decode,
    "epsilon": _epsilon,
}


# ---- the scripts


def _noise_cases() -> Iterator[Case]:
    for mechanism in ("SKELLAM", "DISCRETE_GAUSSIAN"):
        yield "noise_entries", {"mechanism": mechanism, "variance": 1}
        for variance in (1, 2, 3, 100, 436, 90_000):
            yield "noise_table", {"mechanism": mechanism, "variance": variance}
        for variance in (0, -1, noise.MAXIMUM_VARIANCE + 1):
            yield "noise_table", {"mechanism": mechanism, "variance": variance}
        for variance, count in ((0, 3), (1, 64), (436, 64), (90_000, 64)):
            key = octets(f"noise {variance}", 32)
            yield "noise", {"mechanism": mechanism, "variance": variance, "count": count, "key": key}
    yield "noise", {"mechanism": "NONE", "variance": 436, "count": 3, "key": octets("noise 0", 32)}


def _encoding_cases() -> Iterator[Case]:
    yield "clip", {"values": [3.0, 4.0], "clip_norm": 5.0}
    yield "clip", {"values": [3.0, 4.0, 0.0], "clip_norm": 2.5}
    yield "clip", {"values": [0.0], "clip_norm": 1.0}
    for wrong in ("nan", "inf", "-inf"):
        yield "clip", {"values": [0.0, wrong], "clip_norm": 1.0}
    for dimension in (1, 2, 3, 1024, 1025, 0):
        yield "block_length", {"length": dimension}

    stream = suite.Stream(_b(octets("values", 32)))
    integers = (stream.uint16(256).astype(np.int64) % 201 - 100).tolist()
    for length in (1, 2, 8, 128, 256, 3):
        yield "hadamard", {"values": integers[:length]}
    # Blocks of 4^p coordinates: their factors are powers of two, which floats hold.
    for length in (1, 4, 5, 7, 16, 23, 31, 100):
        yield "rotate", {"values": integers[:length], "ctx": CTX}
        yield "unrotate", {"values": integers[:length], "ctx": CTX}

    values = [value / 1024 for value in integers[:23]]
    rounding = {"values": values[:16], "scale": 37.5, "norm_bound": 12.0, "entropy": octets("rounding", 32)}
    yield "stochastic_round", rounding
    yield "stochastic_round", rounding | {"norm_bound": 8.25}
    yield "stochastic_round", rounding | {"norm_bound": 1.0}
    yield "stochastic_round", rounding | {"values": [-1e-30, 0.0, 1e-30, -1.0], "scale": 1.0}
    for clip_norm, scale, length in ((1.0, 139.25, 2048), (0.5, 2.0, 4), (1.0, 0.01, 1 << 20)):
        yield "rounded_norm_bound", {"clip_norm": clip_norm, "scale": scale, "length": length}

    parameters = {
        "dimension": 23, "bits": 13, "clip_norm": 1.0, "clip_bit": 0.0, "scale": 100.0,
        "norm_bound": quantize.rounded_norm_bound(1.0, 100.0, 23),
        "mechanism": "SKELLAM", "device_variance": 436,
    }  # fmt: skip
    whole = {"update": values, "parameters": parameters, "ctx": CTX, "entropy": octets("encode", 32)}
    yield "encode", whole
    yield "encode", whole | {"parameters": parameters | {"device_variance": 0}}
    yield "encode", whole | {"parameters": parameters | {"mechanism": "NONE"}}
    yield "encode", whole | {"parameters": parameters | {"mechanism": "DISCRETE_GAUSSIAN"}}
    yield "encode", whole | {"parameters": parameters | {"bits": 20}}
    # One more coordinate, of which one value says that the update was clipped and the other that it was not.
    said = parameters | {"dimension": 22, "clip_bit": 0.25}
    yield "encode", whole | {"update": values[:22], "parameters": said}
    yield "encode", whole | {"update": [0.0] * 21 + [1.5], "parameters": said}
    yield "encode", whole | {"update": values[:22]}
    yield "encode", whole | {"update": ["nan", *values[1:]]}
    for wrong_parameter in (
        {"dimension": 0}, {"bits": 7}, {"bits": 33}, {"clip_norm": 0.0}, {"scale": -1.0},
        {"norm_bound": 99.0}, {"norm_bound": 2.0**31}, {"clip_bit": -0.25}, {"clip_bit": 2.0}, {"clip_bit": "inf"},
        {"device_variance": -1}, {"device_variance": 2**28 + 1},
    ):  # fmt: skip
        yield "encode", whole | {"parameters": parameters | wrong_parameter}
    wide = parameters | {"scale": 128.0, "norm_bound": 144.0}
    decoding = {"parameters": wide, "ctx": CTX, "survivors": 4}
    yield "decode", decoding | {
        "total": [value % 8192 for value in integers[:23]], "parameters": wide | {"dimension": 22, "clip_bit": 0.25},
    }  # fmt: skip
    yield "decode", decoding | {"total": [value % 8192 for value in integers[:23]]}
    yield "decode", decoding | {"total": [4000] + [0] * 22}
    yield "decode", decoding | {"total": [4192] + [0] * 22}
    yield "decode", decoding | {"total": [0] * 22}
    yield "decode", decoding | {"total": [0] * 23, "survivors": 0}


def _accounting_cases() -> Iterator[Case]:
    release = {
        "mechanism": "SKELLAM", "norm_bound": 141.75, "length": 2048, "device_variance": 436, "honest": 133,
    }  # fmt: skip
    other = {"mechanism": "SKELLAM", "norm_bound": 30.0, "length": 16, "device_variance": 20, "honest": 20}
    gaussian = release | {"mechanism": "DISCRETE_GAUSSIAN"}
    # So little noise on each device that what the sum lacks to a discrete Gaussian counts.
    coarse = gaussian | {"norm_bound": 3.0, "device_variance": 2}
    yield "epsilon", {"releases": [], "delta": 1e-5}
    for delta in (1e-5, 1e-9):
        yield "epsilon", {"releases": [release], "delta": delta}
        yield "epsilon", {"releases": [release] * 10, "delta": delta}
        yield "epsilon", {"releases": [release, other, release], "delta": delta}
    for many in ([gaussian] * 10, [coarse], [coarse] * 3, [release, gaussian]):
        yield "epsilon", {"releases": many, "delta": 1e-5}
    tiny = release | {"norm_bound": 1.0, "length": 1, "device_variance": 10**7, "honest": 100}
    yield "epsilon", {"releases": [tiny], "delta": 0.5}
    yield "epsilon", {"releases": [release | {"device_variance": 0}], "delta": 1e-5}
    yield "epsilon", {"releases": [release | {"mechanism": "NONE"}], "delta": 1e-5}
    yield "epsilon", {"releases": [release], "delta": 0.0}
    yield "epsilon", {"releases": [release], "delta": 1.0}


SCRIPTS: dict[str, tuple[str, Callable[[], Iterator[Case]]]] = {
    "privacy_noise.json": ("The noise tables and draws from fixed streams.", _noise_cases),
    "privacy_encoding.json": ("Clipping, rotation, rounding, encoding and decoding.", _encoding_cases),
    "privacy_accounting.json": ("Epsilons of releases, to 1e-9 relative.", _accounting_cases),
}


def perform(op: str, inputs: Inputs) -> Inputs:
    """What an operation gives: {"out": value} or {"error": the error's class}."""
    try:
        return {"out": json.loads(json.dumps(OPERATIONS[op](inputs)))}
    except errors.EdgeError as error:
        return {"error": type(error).__name__}


def compute(name: str) -> Inputs:
    """The whole content of a golden file."""
    about, script = SCRIPTS[name]
    cases = [{"op": op, "in": inputs} | perform(op, inputs) for op, inputs in script()]
    return {"about": f"{about} Bytes are hexadecimal; a case with 'error' must fail so.", "cases": cases}


@pytest.mark.parametrize("name", SCRIPTS)
def test_operations_give_what_the_file_says(name: str) -> None:
    for case in json.loads((FOLDER / name).read_text())["cases"]:
        found = perform(case["op"], case["in"])
        expected = {key: case[key] for key in ("out", "error") if key in case}
        if case["op"] == "epsilon" and "out" in expected:
            assert found["out"] == pytest.approx(expected["out"], rel=EPSILON_TOLERANCE)
        else:
            assert found == expected, case


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_file_holds_the_whole_script(name: str) -> None:
    stored = [(case["op"], case["in"]) for case in json.loads((FOLDER / name).read_text())["cases"]]
    script = SCRIPTS[name][1]
    assert stored == [(op, json.loads(json.dumps(inputs))) for op, inputs in script()]


def write_all() -> None:
    for name in SCRIPTS:
        content = compute(name)
        lines = ",\n".join(json.dumps(case) for case in content["cases"])
        head = json.dumps(content["about"])
        (FOLDER / name).write_text(f'{{"about": {head},\n"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    write_all()
