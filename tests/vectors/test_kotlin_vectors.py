"""What the Kotlin client writes, read by Python: frames of every kind, and packed masked vectors.

Kotlin's own tests hold the file to what Kotlin writes today, and write it anew: `EDGE_WRITE_VECTORS=1
tools/test_kotlin.sh`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edge_sdk.protocol import codec
from edge_sdk.secagg import modular
from tests.vectors import test_messages_vectors as messages
from tests.vectors import test_secagg_vectors as secagg

CASES = json.loads((Path(__file__).parent / "from_kotlin.json").read_text())["cases"]


def test_frames_of_every_kind_say_what_kotlin_meant() -> None:
    frames = [case for case in CASES if case["op"] == "read"]
    for case in frames:
        assert messages.perform("read", case["in"]) == {"out": case["out"]}, case
    assert {case["out"]["kind"] for case in frames} == {kind.__name__ for kind in codec.KINDS.values()}
    # They are the messages of the Python's own golden file, so that nothing was left out.
    stored = json.loads(messages.FILE.read_text())["cases"]
    assert [case["out"] for case in frames] == [c["out"] for c in stored if c["op"] == "read" and "out" in c]


def test_masked_inputs_are_those_of_python() -> None:
    masked = [case for case in CASES if case["op"] == "masked_input"]
    assert len(masked) >= 5
    for case in masked:
        vector = np.array(secagg.OPERATIONS["mask"](case["in"]), np.uint32)
        assert modular.pack(vector, case["in"]["bits"]).hex() == case["out"], case
