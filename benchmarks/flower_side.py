"""Flower's SecAgg+ by its own functions: what one device and the server compute in a round. Run by `benchmarks.secagg`.

    python flower_side.py DEVICES DIMENSION DEGREE THRESHOLD LOST

It runs in an environment that has flwr and nothing of ours, and prints one line of JSON: CPU seconds of a device, bytes
it sends, and CPU seconds of the server. A device is driven whole. The server's parts (rebuilding a seed, rebuilding a
key, an agreement, a mask) are each timed a few times and multiplied: all of them would take an hour.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

logging.disable(logging.CRITICAL)


def cpu_s(work: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def main(devices: int, dimension: int, degree: int, threshold: int, lost: float) -> dict[str, float]:
    """Measure."""
    client = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    common = "flwr.common.secure_aggregation"
    arithmetic = importlib.import_module(f"{common}.ndarrays_arithmetic")
    shamir = importlib.import_module(f"{common}.crypto.shamir")
    symmetric = importlib.import_module(f"{common}.crypto.symmetric_encryption")
    utils = importlib.import_module(f"{common}.secaggplus_utils")
    asymmetric = importlib.import_module("flwr.supercore.primitives.asymmetric")
    key: Any = importlib.import_module(f"{common}.secaggplus_constants").Key
    to_parameters = importlib.import_module("flwr.common").ndarrays_to_parameters

    update = (np.random.default_rng(0).standard_normal(dimension) * 0.01).astype(np.float32)
    others = [(asymmetric.generate_key_pairs(), asymmetric.generate_key_pairs()) for _ in range(degree)]
    public = [tuple(asymmetric.public_key_to_bytes(pair[1]) for pair in pairs) for pairs in others]

    state = client.SecAggPlusState()
    state.nid = 1
    for name in ("rd_seed_share_dict", "sk1_share_dict", "ss2_dict", "public_keys_dict"):
        setattr(state, name, {})
    settings = {
        key.SAMPLE_NUMBER: devices,
        key.SHARE_NUMBER: degree + 1,
        key.THRESHOLD: threshold,
        key.CLIPPING_RANGE: 8.0,
        key.TARGET_RANGE: 1 << 22,
        key.MOD_RANGE: 1 << 32,
        key.MAX_WEIGHT: 1000.0,
    }
    start = time.process_time()
    keys = client._setup(state, settings)
    device_s = time.process_time() - start
    everybody = {"1": (keys[key.PUBLIC_KEY_1], keys[key.PUBLIC_KEY_2])}
    everybody |= {str(number + 2): pair for number, pair in enumerate(public)}
    start = time.process_time()
    shared = client._share_keys(state, everybody)
    device_s += time.process_time() - start
    # What its neighbours would send it, of the same size; to make it is their work.
    sources = list(state.ss2_dict)
    own = state.rd_seed_share_dict[1], state.sk1_share_dict[1]
    boxes = [
        symmetric.encrypt(secret, utils.share_keys_plaintext_concat(number, 1, *own))
        for number, secret in state.ss2_dict.items()
    ]
    received = {key.CIPHERTEXT_LIST: boxes, key.SOURCE_LIST: sources}
    start = time.process_time()
    masked = client._collect_masked_vectors(state, received, 100, to_parameters([update]))
    device_s += time.process_time() - start
    dead = sources[: int(lost * len(sources))]
    answer = {key.ACTIVE_NODE_ID_LIST: [n for n in sources if n not in dead] + [1], key.DEAD_NODE_ID_LIST: dead}
    start = time.process_time()
    unmasking = client._unmask(state, answer)
    device_s += time.process_time() - start
    uplink = sum(map(len, masked[key.MASKED_PARAMETERS])) + sum(map(len, shared[key.CIPHERTEXT_LIST]))
    uplink += sum(map(len, unmasking[key.SHARE_LIST])) + len(keys[key.PUBLIC_KEY_1]) + len(keys[key.PUBLIC_KEY_2])

    alive = degree + 1 - int(lost * (degree + 1))
    of_seed = shamir.create_shares(os.urandom(32), threshold, degree + 1)[:alive]
    of_key = shamir.create_shares(state.sk1, threshold, degree + 1)[:alive]
    vector = [np.array([5]), np.zeros(dimension, np.int64)]

    def mask() -> None:
        made = utils.pseudo_rand_gen(of_seed[0][:32], 1 << 32, arithmetic.get_parameters_shape(vector))
        arithmetic.parameters_subtraction(vector, made)

    def agree() -> None:
        private = asymmetric.bytes_to_private_key(state.sk1)
        symmetric.generate_shared_key(private, asymmetric.bytes_to_public_key(public[0][0]))

    gone = int(lost * devices)
    seed_s, key_s = cpu_s(lambda: shamir.combine_shares(of_seed), 2), cpu_s(lambda: shamir.combine_shares(of_key), 2)
    mask_s, agree_s = cpu_s(mask, 10), cpu_s(agree, 10)
    server_s = (devices - gone) * (seed_s + mask_s) + gone * (key_s + degree * (agree_s + mask_s))
    return {"device_s": device_s, "uplink": uplink, "server_s": server_s, "seed_s": seed_s, "mask_s": mask_s}


if __name__ == "__main__":
    devices, dimension, degree, threshold = (int(value) for value in sys.argv[1:5])
    print(json.dumps(main(devices, dimension, degree, threshold, float(sys.argv[5]))))
