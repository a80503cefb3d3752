"""What a registrar believes of a phone's attestation, and what not: with chains that a test made, not a phone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.registrar.attestation import (
    Attestation,
    AttestationPolicy,
    SecurityLevel,
    challenge_for,
    read_roots,
    verify_chain,
)
from edge_sdk.errors import ConfigError, IdentityError
from tests.unit.phones import SOFTWARE, STRONGBOX, TEE, Maker, key_description, pem, tlv

NOW = datetime(2026, 5, 1, tzinfo=UTC)
MAKER = Maker(now=NOW)
KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = KEY.public_key()
TOKEN = b"a token"
CHALLENGE = challenge_for(TOKEN)
GOOD = MAKER.attest(PUBLIC, CHALLENGE)


def judged(chain: bytes, mode: Attestation = Attestation.REQUIRE, *, at: datetime = NOW) -> str:
    return AttestationPolicy(mode, (MAKER.root,)).judge(chain, PUBLIC, TOKEN, at.timestamp())


def leaf(description: bytes | None, key: ec.EllipticCurvePublicKey = PUBLIC) -> x509.Certificate:
    return MAKER.certificate("key", key, MAKER.intermediate, MAKER.key, is_ca=False, description=description)


@pytest.mark.parametrize(("level", "words"), [(TEE, "tee"), (STRONGBOX, "strongbox")])
def test_a_key_in_hardware_is_believed_by_its_makers_root(level: int, words: str) -> None:
    chain = MAKER.attest(PUBLIC, CHALLENGE, level=level)
    assert judged(pem(chain)) == words
    # Phones send the root or leave it out.
    assert judged(pem(chain[:2])) == words


def forged() -> list[x509.Certificate]:
    """Signed by an attested key, as its owner could: a description of a key that is in no hardware."""
    owned = ec.generate_private_key(ec.SECP256R1())
    real = MAKER.attest(owned.public_key(), CHALLENGE)
    own = MAKER.certificate(
        "key", PUBLIC, real[0], owned, is_ca=False, description=key_description(CHALLENGE, TEE, TEE)
    )
    return [own, *real]


def by_another_hand() -> list[x509.Certificate]:
    """An intermediate whose name is the maker's and whose key is not."""
    other = ec.generate_private_key(ec.SECP256R1())
    own = MAKER.certificate(
        "key", PUBLIC, MAKER.intermediate, other, is_ca=False, description=key_description(CHALLENGE, TEE, TEE)
    )
    return [own, *GOOD[1:]]


def through_two_descriptions() -> list[x509.Certificate]:
    between = ec.generate_private_key(ec.SECP256R1())
    described = key_description(CHALLENGE, TEE, TEE)
    middle = MAKER.certificate("middle", between, MAKER.intermediate, MAKER.key, description=described)
    own = MAKER.certificate("key", PUBLIC, middle, between, is_ca=False, description=described)
    return [own, middle, *GOOD[1:]]


@pytest.mark.parametrize(
    ("chain", "complaint"),
    [
        (list, "holds no attestation"),
        (lambda: Maker("Other", NOW).attest(PUBLIC, CHALLENGE), "does not end in a root"),
        (lambda: Maker(now=NOW).attest(PUBLIC, CHALLENGE)[:2], "do not bear each other's signatures"),
        (lambda: GOOD[:1], "does not end in a root"),
        (lambda: [GOOD[0], MAKER.root], "do not bear each other's signatures"),
        (lambda: GOOD[::-1], "do not bear each other's signatures"),
        (by_another_hand, "do not bear each other's signatures"),
        (lambda: [MAKER.root], "of no key of a device"),
        (lambda: GOOD[1:], "another key than the request"),
        (lambda: MAKER.attest(ec.generate_private_key(ec.SECP256R1()).public_key(), CHALLENGE), "another key"),
        (lambda: MAKER.attest(PUBLIC, challenge_for(b"another token")), "for another enrolment"),
        (lambda: MAKER.attest(PUBLIC, TOKEN), "for another enrolment"),
        (lambda: MAKER.attest(PUBLIC, CHALLENGE, level=SOFTWARE), "software keeps the key"),
        (lambda: MAKER.attest(PUBLIC, CHALLENGE, level=TEE, kept=SOFTWARE), "software keeps the key"),
        (lambda: MAKER.attest(PUBLIC, CHALLENGE, level=7), "security level that is not known"),
        (lambda: [leaf(None), *GOOD[1:]], "describes no key"),
        (lambda: [leaf(b""), *GOOD[1:]], "description cannot be read"),
        (lambda: [leaf(key_description(CHALLENGE, TEE, TEE)[:-1]), *GOOD[1:]], "description cannot be read"),
        (lambda: [leaf(tlv(0x30, b"\x02\x01\x01")), *GOOD[1:]], "description cannot be read"),
        (forged, "may issue none"),
        (through_two_descriptions, "more than one key"),
        (lambda: [*GOOD, *[MAKER.root] * 8], "over the limit"),
    ],
)
def test_what_proves_nothing_is_refused_in_words(chain: Callable[[], list[x509.Certificate]], complaint: str) -> None:
    found = chain()
    with pytest.raises(IdentityError, match=complaint) as caught:
        judged(pem(found))
    assert caught.value.hint
    recorded = judged(pem(found), Attestation.RECORD)
    assert recorded == ("software" if "software" in complaint else f"none: {caught.value}")
    assert judged(pem(found), Attestation.OFF) == ""


@pytest.mark.parametrize(
    "garbage", [b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff" * 99]
)
def test_garbage_is_refused_in_words(garbage: bytes) -> None:
    with pytest.raises(IdentityError, match="attestation cannot be read"):
        judged(garbage)


def test_issuers_are_good_only_in_their_time() -> None:
    for when in (NOW + timedelta(days=3_001), NOW - timedelta(days=1_001)):
        with pytest.raises(IdentityError, match="out of its time: CN=Maker"):
            judged(pem(GOOD), at=when)


def test_without_roots_nothing_is_looked_at(tmp_path: Path) -> None:
    for mode in (Attestation.RECORD, Attestation.REQUIRE):
        with pytest.raises(ConfigError, match=f"attestation {mode} needs the roots"):
            AttestationPolicy(mode)
    path = tmp_path / "roots.pem"
    with pytest.raises(ConfigError, match="cannot read"):
        read_roots(path)
    path.write_bytes(b"no certificate")
    with pytest.raises(ConfigError, match="holds no certificates"):
        read_roots(path)
    path.write_bytes(pem([MAKER.root, Maker("Other", NOW).root]))
    roots = read_roots(path)
    assert len(roots) == 2
    assert verify_chain(pem(GOOD), PUBLIC, CHALLENGE, roots, NOW.timestamp()) is SecurityLevel.TEE
