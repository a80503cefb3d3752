"""How fast one million coordinates are encoded and masked, against copying them once.

    python -m benchmarks.masking

Everything a device does to a trained update of 2^20 coordinates: encoding (clip, rotate, round, noise), its costliest
parts alone, one mask and the packing; and what each mask costs a device and the coordinator. Figures are medians; the
ratio to a memcpy of the same vector is what carries over to another machine.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from coordinator.privacy.calibration import calibrate
from edge_sdk.privacy import encode, noise, rotate
from edge_sdk.secagg import modular
from edge_sdk.secagg.suite import Stream, digest

COORDINATES = 1 << 20
REPETITIONS = 15
MASKS = 16


def median_s(work: Callable[[], object]) -> float:
    """Seconds of CPU time, the median of several runs after one to warm up."""
    work()
    times = []
    for _ in range(REPETITIONS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def draw_noise(mechanism: noise.Mechanism, variance: int) -> None:
    """Draw one number for each coordinate."""
    noise.sample(mechanism, variance, COORDINATES, Stream(bytes(32)))


def main() -> None:
    """Measure and print."""
    plan = calibrate(
        clip_norm=1.0,
        dimension=COORDINATES,
        min_reports=700,
        max_devices=1000,
        rounds=10,
        epsilon=8.0,
        delta=1e-6,
        corrupt_share=0.0,
    )
    parameters = plan.parameters(COORDINATES, 1.0)
    update = np.random.default_rng(0).normal(0, 1e-3, COORDINATES).astype(np.float32)
    ctx, seed = digest(b"ctx"), digest(b"seed")
    encoded = encode.encode(update, parameters, ctx, seed)
    packed = modular.pack(encoded, plan.bits)
    source, target = np.zeros(COORDINATES, np.uint32), np.empty(COORDINATES, np.uint32)
    wide, narrow = np.zeros(COORDINATES, np.uint32), np.zeros(COORDINATES, np.uint16)
    masks = [(digest(bytes([number])), 1) for number in range(MASKS)]

    draws = [
        (mechanism.name.lower(), root, partial(draw_noise, mechanism, root * root))
        for mechanism in (noise.Mechanism.SKELLAM, noise.Mechanism.DISCRETE_GAUSSIAN)
        for root in (2, math.isqrt(plan.device_variance), 4_000)
    ]
    copy = median_s(lambda: np.copyto(target, source))
    rows = [
        ("memcpy of 2^20 uint32", copy),
        ("one mask, 32-bit words", median_s(lambda: modular.add_masks(wide, masks)) / MASKS),
        ("one mask, 16-bit words", median_s(lambda: modular.add_masks(narrow, masks)) / MASKS),
        (f"encode to {plan.bits} bits", median_s(lambda: encode.encode(update, parameters, ctx, seed))),
        ("  of it the rotation", median_s(lambda: rotate.rotate(update, ctx))),
        *((f"  {name}, deviation {root}", median_s(draw)) for name, root, draw in draws),
        (f"pack {plan.bits} bits", median_s(lambda: modular.pack(encoded, plan.bits))),
        (f"unpack {plan.bits} bits", median_s(lambda: modular.unpack(packed, COORDINATES, plan.bits))),
        ("pack 16 bits", median_s(lambda: modular.pack(narrow, 16))),
    ]
    print(f"2^20 coordinates, CPU time, median of {REPETITIONS}")
    for name, seconds in rows:
        print(f"  {name:34s} {seconds * 1e3:8.2f} ms   {seconds / copy:7.1f} memcpy")


if __name__ == "__main__":
    main()
