"""A Flower ClientApp that trains the same model on the same data. Run by `benchmarks.device`.

    python flower_device.py WEIGHTS.npz EXAMPLES.npz STEPS BATCH STARTED

It runs in an environment that has flwr and torch and nothing of ours, and prints one line of JSON. The app is called
with a message as Flower's client process calls it; of Flower's other process on a device, the SuperNode, nothing is in
these figures. STARTED is when the parent started this process, in seconds since the epoch.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from typing import Any


def peak_mb() -> float:
    """Peak resident set of this process so far."""
    with open("/proc/self/status", encoding="ascii") as status:
        return int(status.read().split("VmHWM:")[1].split()[0]) / 1024


def main(weights: str, examples: str, steps: int, batch: int, started: float) -> dict[str, Any]:
    """Measure."""
    import torch

    client: Any = importlib.import_module("flwr.clientapp")
    flwr: Any = importlib.import_module("flwr.app")
    imported_s = time.time() - started
    numpy: Any = importlib.import_module("numpy")
    torch.set_num_threads(1)
    arrays = dict(numpy.load(weights))
    data = dict(numpy.load(examples))
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    sizes = [arrays["0.weight"].shape[1]] + [value.shape[0] for name, value in arrays.items() if "bias" in name]
    layers: list[torch.nn.Module] = []
    for wide, narrow in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(wide, narrow), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    ready_s, ready_cpu_s = time.time() - started, time.process_time()
    ready_mb = peak_mb()
    took: dict[str, float] = {}

    app = client.ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Any, context: Any) -> Any:
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        begin = time.process_time()
        for step in range(steps):
            if step == 1:
                begin = time.process_time()
            at = step * batch % len(x)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[at : at + batch]), y[at : at + batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        took["step_ms"] = 1000 * (time.process_time() - begin) / (steps - 1)
        content = flwr.RecordDict(
            {"arrays": flwr.ArrayRecord(model.state_dict()), "metrics": flwr.MetricRecord({"num-examples": len(x)})}
        )
        return flwr.Message(content, reply_to=message)

    identity: Any = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    identity.task_id = identity.run_id = identity.node_id = 1
    initial = flwr.ArrayRecord({name: torch.from_numpy(value) for name, value in arrays.items()})
    asked = flwr.Message(flwr.RecordDict({"arrays": initial}), dst_node_id=1, message_type="train")
    context = flwr.Context(run_id=1, node_id=1, node_config={}, state=flwr.RecordDict(), run_config={})
    to_proto: Any = importlib.import_module("flwr.common.serde").recorddict_to_proto
    down_bytes = len(to_proto(asked.content).SerializeToString())
    asked.metadata.__dict__["_message_id"] = "1"
    answer = app(asked, context)
    up_bytes = len(to_proto(answer.content).SerializeToString())
    found = {
        "imported_s": imported_s,
        "ready_s": ready_s,
        "ready_cpu_s": ready_cpu_s,
        "ready_mb": ready_mb,
        "peak_mb": peak_mb(),
        "up_bytes": up_bytes,
        "down_bytes": down_bytes,
        **took,
    }
    trained = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    numpy.savez(weights.replace(".npz", ".flower.npz"), **trained)
    return found


if __name__ == "__main__":
    steps, batch = int(sys.argv[3]), int(sys.argv[4])
    print(json.dumps(main(sys.argv[1], sys.argv[2], steps, batch, float(sys.argv[5]))))
