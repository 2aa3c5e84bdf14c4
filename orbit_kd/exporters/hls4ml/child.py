"""What needs hls4ml, for a process of its own: `python -m` this module; see `jobs.py`.

hls4ml asks the module called "keras" for its version and would take the Keras 3 path; here tf_keras takes that name.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Writes the hls4ml project `request["output"]` of the model file `request["model"]`; returns what is in it."""
    import tf_keras as keras

    sys.modules["keras"] = keras
    import hls4ml

    model = keras.models.load_model(request["model"], compile=False)
    config = hls4ml.utils.config_from_keras_model(model, granularity="name", backend="Vitis")
    config["Model"]["Strategy"] = request["strategy"]
    for name, types in request["precisions"].items():
        config["LayerName"][name]["Precision"].update(types)
        if f"{name}_linear" in config["LayerName"]:  # hls4ml's own; without a type it would be cut to the default one
            config["LayerName"][f"{name}_linear"]["Precision"]["result"] = types["result"]
    for name, own in request["kernels"].items():
        config["LayerName"][name].update(own)
    graph = hls4ml.converters.convert_from_keras_model(
        model,
        hls_config=config,
        backend="Vitis",
        io_type=request["io_type"],
        output_dir=request["output"],
        project_name=request["project"],
        part=request["part"],
        clock_period=request["clock_period"],
    )
    graph.write()
    return {"version": hls4ml.__version__, "layers": [_told(layer) for layer in graph.get_layers()]}


def _told(layer: Any) -> dict[str, Any]:
    accumulator = layer.get_attr("accum_t")
    return {
        "name": layer.name,
        "kind": layer.class_name,
        "result": str(layer.get_output_variable().type.precision),
        **{name: str(weights.type.precision) for name, weights in layer.weights.items()},
        **({"accum": str(accumulator.precision)} if accumulator is not None else {}),
        **({"reuse_factor": int(layer.get_attr("reuse_factor"))} if layer.weights else {}),
        "n_zeros": {name: int(weights.nzeros) for name, weights in layer.weights.items()},
    }


def adders(request: dict[str, Any]) -> dict[str, Any]:
    """da4ml's count of adders for the integer matrices (inputs, outputs) in `request["kernels"]` (.npz)."""
    from da4ml.cmvm import solve

    with np.load(request["kernels"]) as kernels:
        return {name: int(solve(np.asarray(kernels[name], np.float32)).cost) for name in kernels.files}


def main(job: str, request: str, answer: str) -> None:
    """Does the job of the request file and writes the answer file, both JSON; what libraries print goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        result = {"convert": convert, "adders": adders}[job](json.loads(Path(request).read_text()))
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
