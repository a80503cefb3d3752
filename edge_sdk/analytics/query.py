"""A signed question to a fleet: what each device computes from its examples, and how much one device may count.

    offset  size  content
    0       8     b"EDGEQRY1"
    8       32    signer key id: SHA-256 of the signer's public key (SubjectPublicKeyInfo, DER)
    40      64    raw ECDSA P-256 SHA-256 signature r||s over b"edge-sdk/query/1\\0" || bytes[0:40] || body
    104           body, canonical JSON of `Query`, at most 64 KiB

It travels where a bundle's head would. Reading authenticates, then checks the size, then parses. Knows no store.
"""

from __future__ import annotations

import dataclasses
import hmac
import json
import math
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from cryptography.hazmat.primitives.asymmetric import ec

from edge_sdk.errors import ArtifactError, ConfigError
from edge_sdk.signing import SIGNATURE_BYTES, key_id, sign_raw, verify_raw

Kind = Literal["count", "mean", "histogram", "quantiles", "evaluate"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

MAGIC: Final = b"EDGEQRY1"
_DOMAIN: Final = b"edge-sdk/query/1\0"
_HEAD_BYTES: Final = len(MAGIC) + 32
_PREFIX_BYTES: Final = _HEAD_BYTES + SIGNATURE_BYTES
_BODY_MAX_BYTES: Final = 64 << 10
_BINS_MAX: Final = 4096
_COMPONENTS_MAX: Final = 4096

_SYNTAX: Final = (
    "write kind:option=value,..., as in count, mean:field=x,low=0,high=1, histogram:field=y,low=0,high=10,bins=10, "
    "quantiles:field=y,low=0,high=100,bins=64 or evaluate:high=5; max_rows=N caps what one device counts"
)
_OPTIONS: Final[dict[str, Any]] = {
    "field": str,
    "low": float,
    "high": float,
    "bins": int,
    "components": int,
    "max_rows": int,
}


@dataclass(frozen=True, slots=True)
class Reference:
    """A blob that an answer needs: SHA-256 in hexadecimal, and size in bytes."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Query:
    """What every device computes.

    Attributes:
        kind: count (devices and examples), mean (of each component of a field), histogram and quantiles (of a field's
            numbers), evaluate (loss and accuracy of a model).
        field: the examples' field; empty for count and evaluate.
        low, high: range that values are clipped to; for evaluate `high` is the largest loss.
        bins: of a histogram, of equal width over [low, high]; what lies outside counts in the outermost.
        components: numbers in one row of the field, of which mean gives one mean each; else 1.
        max_rows: of a device's newest examples no more than these count, so that no device outweighs another.
        model: for evaluate, the bundle's head, those of its parts that evaluation needs, and last the checkpoint.

    Raises:
        ConfigError: it cannot be asked.
    """

    kind: Kind
    field: str = ""
    low: float = 0.0
    high: float = 1.0
    bins: int = 1
    components: int = 1
    max_rows: int = 100
    model: tuple[Reference, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"unknown kind of query {self.kind!r}", hint=_SYNTAX)
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"a query over [{self.low}, {self.high}] counts nothing", hint="choose low < high")
        for name, limit in (("bins", _BINS_MAX), ("components", _COMPONENTS_MAX), ("max_rows", 1 << 30)):
            if not 1 <= getattr(self, name) <= limit:
                raise ConfigError(f"a query's {name} is {getattr(self, name)}", hint=f"choose 1 to {limit:,}")
        if (self.kind in ("count", "evaluate")) != (self.field == ""):
            raise ConfigError(f"a query of kind {self.kind} with field {self.field!r}", hint=_SYNTAX)
        if (self.kind == "evaluate") != bool(self.model):
            raise ConfigError(f"a query of kind {self.kind} that names {len(self.model)} parts of a model")
        if self.kind == "evaluate" and self.low != 0:
            raise ConfigError("losses begin at 0", hint="leave low out")

    @property
    def dimension(self) -> int:
        """Numbers in an answer."""
        match self.kind:
            case "count":
                return 2
            case "mean":
                return self.components + 1
            case "histogram" | "quantiles":
                return self.bins
            case "evaluate":
                return 3

    @property
    def norm_bound(self) -> float:
        """The largest 2-norm of an answer: what one device can move the sum."""
        return 1.0 if self.kind in ("histogram", "quantiles") else math.sqrt(self.dimension)


def parse_query(text: str) -> Query:
    """Read a query as a person writes it, such as "histogram:field=y,low=0,high=10,bins=10".

    Raises:
        ConfigError: unknown kind or option, or a value that makes no sense.
    """
    kind, _, rest = text.partition(":")
    try:
        pairs = [part.split("=", 1) for part in rest.split(",") if part]
        options = {name.strip(): _OPTIONS[name.strip()](value.strip()) for name, value in pairs}
    except (KeyError, ValueError) as error:
        raise ConfigError(f"the query {text!r} cannot be read: {error}", hint=_SYNTAX) from error
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of query {kind!r}", hint=_SYNTAX)
    # A model is named by whoever has it; until then this stands for it.
    model = (Reference("0" * 64, 0),) * 2 if kind == "evaluate" else ()
    return Query(kind, model=model, **options)


def query_text(query: Query) -> str:
    """The query as a person writes it; `parse_query` gives it back, but for the model."""
    usual = {field.name: field.default for field in dataclasses.fields(Query)}
    options = ((name, getattr(query, name)) for name in _OPTIONS)
    return f"{query.kind}:" + ",".join(f"{name}={value}" for name, value in options if value != usual[name])


def is_query(content: bytes) -> bool:
    """Whether these bytes claim to be a query, and no bundle."""
    return content.startswith(MAGIC)


def sign_query(query: Query, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The signed query; the same bytes each time."""
    body = json.dumps(dataclasses.asdict(query), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > _BODY_MAX_BYTES:
        raise ConfigError(f"a query of {len(body)} bytes is too large", hint="the model has too many parts")
    head = MAGIC + key_id(key.public_key())
    return head + sign_raw(key, _DOMAIN + head + body) + body


def read_query(content: bytes, *, signer: ec.EllipticCurvePublicKey) -> Query:
    """Authenticate and read a query.

    Raises:
        ArtifactError: it is none, was signed by another key, was tampered with, or cannot be understood.
    """
    if not is_query(content) or not _PREFIX_BYTES < len(content) <= _PREFIX_BYTES + _BODY_MAX_BYTES:
        raise ArtifactError("this is no query", hint="make one with: edge signer query")
    head, signature, body = content[:_HEAD_BYTES], content[_HEAD_BYTES:_PREFIX_BYTES], content[_PREFIX_BYTES:]
    if not hmac.compare_digest(head[len(MAGIC) :], key_id(signer)):
        raise ArtifactError("the query was signed by an unknown key", hint="have it signed by the pinned signer")
    if not verify_raw(signer, signature, _DOMAIN + head + body):
        raise ArtifactError("the query was damaged or tampered with", hint="ask its author for it again")
    try:
        data = json.loads(body)
        model = tuple(Reference(str(part["sha256"]), int(part["size_bytes"])) for part in data.pop("model"))
        if any(len(bytes.fromhex(part.sha256)) != 32 or part.size_bytes < 0 for part in model):
            raise ValueError("a reference to no blob")
        return Query(model=model, **data)
    except (AttributeError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(
            f"the query cannot be understood: {error}", hint="update edge-sdk on this device"
        ) from error
