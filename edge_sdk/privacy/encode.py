"""From a device's update to the vector it masks, and from the unmasked sum back to the mean update.

Clip, rotate, scale, round, add this device's share of the noise, reduce modulo 2^b; PROTOCOL.md is
normative. Knows no keys and no cohort.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import PrivacyError, RemoteProtocolError
from edge_sdk.privacy.clip import clip
from edge_sdk.privacy.noise import MAXIMUM_VARIANCE, Mechanism, sample
from edge_sdk.privacy.quantize import stochastic_round
from edge_sdk.privacy.rotate import rotate, unrotate
from edge_sdk.secagg import modular
from edge_sdk.secagg.suite import Stream, derive

HEADROOM = 31 / 32
"""The share of the modulus' range that a sum may fill; beyond it, `decode` takes it for one that wrapped around."""
_LARGEST_NORM_BOUND = 2.0**30  # so that rounded values fit 32 bits, and their squares 64


@dataclass(frozen=True, slots=True)
class EncodingParameters:
    """How a round's updates become integers; the same for all its devices.

    Attributes:
        dimension: d, coordinates of the update.
        bits: b of the modulus 2^b.
        clip_norm: C, the largest 2-norm of an update.
        clip_bit: a, the size of one more coordinate that says whether the update was within C; 0 for none.
        scale: s, integer steps per unit.
        norm_bound: D2, the largest 2-norm of a rounded vector.
        mechanism: the noise that each device adds.
        device_variance: its variance; 0 for none.

    Raises:
        PrivacyError: a value is out of its range.
    """

    dimension: int
    bits: int
    clip_norm: float
    clip_bit: float
    scale: float
    norm_bound: float
    mechanism: Mechanism
    device_variance: int

    def __post_init__(self) -> None:
        if problem := _problem(self):
            raise PrivacyError(f"encoding parameters are unusable: {problem}", hint="calibrate the task anew")

    @property
    def length(self) -> int:
        """Coordinates of the encoded vector."""
        return self.dimension + (self.clip_bit > 0)

    @property
    def norm(self) -> float:
        """The largest 2-norm of what is rounded, sqrt(C^2 + a^2)."""
        return math.hypot(self.clip_norm, self.clip_bit)


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What a sum says.

    Attributes:
        mean: of the updates, noise included; float32.
        within: the share of the updates that were within the clip norm, noise included; None where nobody said.
    """

    mean: NDArray[np.float32]
    within: float | None


def encode(update: NDArray[np.float32], parameters: EncodingParameters, ctx: bytes, entropy: bytes) -> modular.Words:
    """Return the update as integers modulo 2^bits, noise included, `length` long, in the work dtype.

    Args:
        update: float32, 1-D, `dimension` long.
        entropy: 32 bytes of this use alone, expanded into the rounding and the noise.

    Raises:
        TrainingError: the update is not finite.
    """
    if update.shape != (parameters.dimension,):
        raise PrivacyError(f"an update of shape {update.shape} is not ({parameters.dimension},)")
    clipped, was_clipped = clip(update, parameters.clip_norm)
    if parameters.clip_bit:
        clipped = np.append(clipped, np.float32(-parameters.clip_bit if was_clipped else parameters.clip_bit))
    integers = stochastic_round(
        rotate(clipped, ctx), parameters.scale, parameters.norm_bound, derive(entropy, "rounding")
    )
    integers += sample(
        parameters.mechanism, parameters.device_variance, parameters.length, Stream(derive(entropy, "noise"))
    )
    return modular.reduce(integers, parameters.bits)


def decode(total: modular.Words, parameters: EncodingParameters, ctx: bytes, survivors: int) -> Decoded:
    """Return the mean update of `survivors` devices from the sum of their encoded vectors.

    Raises:
        RemoteProtocolError: a coordinate lies in the outermost 1/32 of the modulus' range. A sum that
            wrapped around, masks that did not cancel and vectors that are not encoded updates all
            show themselves so, where bits and scale were calibrated.
    """
    if total.shape != (parameters.length,) or survivors < 1:
        raise PrivacyError(f"a sum of shape {total.shape} over {survivors} devices cannot be decoded")
    centred = modular.centre(total, parameters.bits)
    largest = int(np.abs(centred).max())
    if largest > HEADROOM * 2 ** (parameters.bits - 1):
        raise RemoteProtocolError(
            f"the sum fills the modulus: a coordinate of {largest} in {parameters.bits} bits",
            hint="abandon the round: masks did not cancel, a device sent garbage, or the bits are too few",
        )
    rotated = centred.astype(np.float64)
    mean = unrotate(rotated, ctx)
    mean *= 1 / (parameters.scale * survivors)
    within = None if not parameters.clip_bit else (1 + float(mean[-1]) / parameters.clip_bit) / 2
    return Decoded(mean[: parameters.dimension].astype(np.float32), within)


def _problem(parameters: EncodingParameters) -> str:
    if parameters.dimension < 1:
        return f"the dimension is {parameters.dimension}"
    if not modular.MINIMUM_BITS <= parameters.bits <= modular.MAXIMUM_BITS:
        return f"a modulus of {parameters.bits} bits is not supported"
    for value in (parameters.clip_norm, parameters.scale, parameters.norm_bound):
        if not (math.isfinite(value) and value > 0):
            return f"clip norm, scale and norm bound must be finite and positive, not {value}"
    if not 0 <= parameters.clip_bit < math.inf:
        return f"a clip bit of {parameters.clip_bit} is no size"
    if not parameters.norm * parameters.scale <= parameters.norm_bound <= _LARGEST_NORM_BOUND:
        return f"a norm bound of {parameters.norm_bound:g} is not between what is rounded and 2^30"
    if not 0 <= parameters.device_variance <= MAXIMUM_VARIANCE:
        return f"a noise variance of {parameters.device_variance} is not in 0..2^28"
    return ""
