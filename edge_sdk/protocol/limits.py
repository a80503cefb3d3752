"""Every size and count that both ends hold each other to.

Knows nothing but numbers. A bound written anywhere else is a mistake: the two ends would drift apart.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

CONTROL_FRAME_MAX_BYTES: Final = 60 * KIB
"""Largest signed control frame. With its topic and headers it stays below the 64 KiB that nearly every broker
and cloud takes."""

LARGE_FRAME_MAX_BYTES: Final = 16 * MIB
"""Largest signed frame that is too long for one message and is pulled as a blob."""

COHORT_MAX: Final = 65_535
"""Most devices in a round: a share's point is its holder's index + 1, in GF(2^16)."""

NEIGHBOURS_MAX: Final = 700
"""Most neighbours of one device: its boxes, 80 bytes and an index each, must fit a control frame."""

INLINE_UPDATE_MAX_BYTES: Final = 48 * KIB
"""Largest packed update that travels inside its own control message instead of as chunks."""

CHUNK_DIGEST_BYTES: Final = 12
"""How much of the blob's SHA-256 a chunk carries: enough to tell blobs apart; the end checks all of it."""

CHUNK_HEADER_BYTES: Final = CHUNK_DIGEST_BYTES + 4 + 4
"""Chunk header: digest prefix, index (u32), CRC-32 (u32)."""

CHUNK_DEFAULT_BYTES: Final = CONTROL_FRAME_MAX_BYTES - CHUNK_HEADER_BYTES
"""Data in a chunk when the link is unknown: a chunk frame is then as large as a control frame."""

CHUNK_MIN_BYTES: Final = 256
"""Smaller chunks would be mostly header, and would let a peer ask for millions of messages."""

CHUNK_MAX_BYTES: Final = 256 * KIB
"""Largest data part of a chunk; for local networks."""

BLOB_MAX_BYTES: Final = GIB
"""Largest blob that either end takes or offers."""

WINDOW_DEFAULT_BYTES: Final = MIB
"""How much a receiver asks for ahead: 1 MiB carries 20 MB/s at a round trip of 50 ms, and suits cellular."""

WINDOW_MAX_BYTES: Final = 16 * MIB
"""The most that a sender answers to one pull: what one small message can make it send."""

PULL_CHUNKS_MAX: Final = 1_024
"""Most chunks in one pull, however small they are: what one small message can make the other side do."""

PULL_RANGES_MAX: Final = 256
"""Most ranges in one pull, so that it always fits a control frame."""

CHUNK_TIMEOUT_S: Final = 5.0
"""How long a receiver waits without any progress before it asks again."""

EXPIRY_CONTROL_DOWN_S: Final = 60
"""Message expiry of control messages to a device, where the broker knows expiry (MQTT 5)."""

EXPIRY_CONTROL_UP_S: Final = 30
"""Message expiry of control messages from a device."""

EXPIRY_CHUNK_S: Final = 120
"""Message expiry of chunks, either way."""
