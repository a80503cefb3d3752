"""What a device does with a query: authenticate it, ask whether its owner allows it, and answer from the examples."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk.analytics.answer import answer, answer_evaluation, check_query
from edge_sdk.analytics.query import Query, Reference, read_query
from edge_sdk.errors import ArtifactError
from edge_sdk.protocol.messages import BlobRef, Digest
from edge_sdk.training.artifact import parse_head
from edge_sdk.training.evaluation import evaluate
from edge_sdk.training.examples import ExampleStore
from edge_sdk.training.trainer import everything

Read = Callable[[BlobRef], bytes]


class Analyst:
    """Answers queries from one example store.

    Args:
        signer: the pinned public key that queries must be signed with.
        examples: None on a device that only serves.
        allowed: whether the device's owner lets it answer; its answers are clipped, noised and masked like updates.
    """

    def __init__(self, signer: ec.EllipticCurvePublicKey, examples: ExampleStore | None, *, allowed: bool) -> None:
        self._signer = signer
        self._examples = examples
        self._allowed = allowed

    def parts(self, content: bytes) -> tuple[BlobRef, ...]:
        """What an answer needs beside the examples.

        Raises:
            ArtifactError: not authentic, not allowed, or not to be answered from these examples.
        """
        return tuple(_blob(reference) for reference in self._query(content)[0].model)

    def check(self, content: bytes) -> int:
        """The answer's dimension; see `parts`."""
        return self._query(content)[0].dimension

    def answer(self, content: bytes, read: Read) -> bytes:
        """The answer, float32 little-endian.

        Raises:
            ArtifactError: see `parts`; or the model is not authentic.
            TrainingError: the examples cannot be used.
        """
        query, examples = self._query(content)
        if query.kind != "evaluate":
            return answer(query, everything(examples.rows(newest=query.max_rows))).astype("<f4").tobytes()
        head, *parts, checkpoint = (read(_blob(reference)) for reference in query.model)
        artifact = parse_head(head, signer=self._signer).with_parts(parts)
        # What was never trained on tells how good a model is; where nothing is held out, the others must do.
        held_out = True if examples.count(held_out=True) else None
        newest = examples.rows(held_out=held_out, newest=query.max_rows)
        found = evaluate(artifact, artifact.layout.decode(checkpoint), newest)
        return answer_evaluation(query, found.loss, found.accuracy, found.examples).astype("<f4").tobytes()

    def _query(self, content: bytes) -> tuple[Query, ExampleStore]:
        query = read_query(content, signer=self._signer)
        if not self._allowed:
            raise ArtifactError("this device answers no queries", hint="its owner allows them with analytics=True")
        if self._examples is None:
            raise ArtifactError("this device holds no examples")
        check_query(query, {name: (field.dtype, field.shape) for name, field in self._examples.schema.items()})
        return query, self._examples


def _blob(reference: Reference) -> BlobRef:
    return BlobRef(Digest(bytes.fromhex(reference.sha256)), reference.size_bytes)
