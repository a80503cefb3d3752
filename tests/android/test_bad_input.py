"""What the app's device says of bad input, and how it recovers; its screens show the same words (ScreensTest.kt)."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.signing import public_key_to_pem
from tests.integration import jvm
from tests.integration.exported import SIGNER, repacked, small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Of the same length, so that the graph around it stays whole.
KNOWN, UNKNOWN = b'"\x04Relu', b'"\x04Welu'


def said(code: str, home: Path) -> list[str]:
    (home / "signer.pub").write_bytes(public_key_to_pem(SIGNER.public_key()))
    (home / "model.edge").write_bytes(small().to_bytes())
    with jvm.Jvm("edge.demo.BadInputKt", home, code=code) as process:
        return process.rest()


def test_a_cut_off_or_spoilt_installation_is_said_and_repaired_and_an_unknown_operator_named(
    tmp_path: Path, apk_code: str
) -> None:
    graph = small().part("infer.onnx")
    assert graph.count(KNOWN) == 1
    strange = repacked(lambda manifest: manifest, **{"infer.onnx": graph.replace(KNOWN, UNKNOWN)})
    (tmp_path / "strange.edge").write_bytes(strange.to_bytes())
    heard = said(apk_code, tmp_path)
    assert "first: version 0, null, null, predicts true" in heard
    assert "cut off: version 0, null, CUT_OFF, predicts true" in heard
    assert "left: false" in heard
    assert "after: version 0, null, null, predicts true" in heard
    assert "damaged: version 0, null, REPLACED, predicts true" in heard
    assert "again: version 0, null, null, predicts true" in heard
    assert "strange: null, BAD_MODEL, null" in heard
    [reason] = [line for line in heard if line.startswith("log: no model")]
    assert "the infer graph needs the operator Welu, which onnxruntime 1." in reason
