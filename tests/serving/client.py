"""A client that knows of a model what the server's metadata says, and nothing else."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Self

import numpy as np
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray
from server import Server
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

PROTOCOLS = ("http", "grpc")


class Client:
    """Calls models over one of the protocols; not to be shared by threads."""

    def __init__(self, server: Server, protocol: str) -> None:
        self._grpc = protocol == "grpc"
        self._module: ModuleType = tritonclient.grpc if self._grpc else tritonclient.http
        address = server.grpc if self._grpc else server.http
        self.triton = self._module.InferenceServerClient(address)
        self._types: dict[str, dict[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.triton.close()  # a server that ends waits for connections

    def metadata(self, model: str) -> Any:
        """What the metadata endpoint says of a model."""
        options = {"as_json": True} if self._grpc else {}
        return self.triton.get_model_metadata(model, **options)

    def tensors(self, model: str) -> dict[str, tuple[str, list[int]]]:
        """Type and shape of each input and output of a model, by its metadata."""
        described = self.metadata(model)
        every = (*described["inputs"], *described["outputs"])
        return {it["name"]: (it["datatype"], [int(size) for size in it["shape"]]) for it in every}

    def __call__(self, model: str, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Call a model: every output by name."""
        if model not in self._types:
            declared = self.metadata(model)["inputs"]
            self._types[model] = {it["name"]: it["datatype"] for it in declared}
        inputs = []
        for name, datatype in self._types[model].items():
            if name not in feeds:  # the server complains unless it is optional
                continue
            values = np.asarray(feeds[name], triton_to_np_dtype(datatype))
            tensor = self._module.InferInput(name, values.shape, datatype)
            tensor.set_data_from_numpy(values)
            inputs.append(tensor)
        result = self.triton.infer(model, inputs)
        response = result.get_response(as_json=True) if self._grpc else result.get_response()
        return {it["name"]: result.as_numpy(it["name"]) for it in response["outputs"]}

    def statistics(self, model: str) -> Any:
        """What the server counted of a model."""
        options = {"as_json": True} if self._grpc else {}
        return self.triton.get_inference_statistics(model, **options)["model_stats"][0]


def ask_json(
    server: Server, model: str, feeds: Mapping[str, Sequence[str | bytes] | NDArray[Any]]
) -> tuple[int, Any]:
    """Call a model as a client without the binary extension does: status and strict JSON.

    Args:
        server: the server.
        model: its name.
        feeds: bytes, texts, or an array an input; bytes go as they are, for JSON has none.
    """
    inputs: list[dict[str, object]] = []
    binary = b""
    for name, values in feeds.items():
        if isinstance(values, np.ndarray):
            kind = np_to_triton_dtype(values.dtype)
            inputs.append({"name": name, "datatype": kind, "shape": values.shape})
            content = values.tobytes()
        else:
            inputs.append({"name": name, "datatype": "BYTES", "shape": [len(values)]})
            items = [it.encode() if isinstance(it, str) else it for it in values]
            content = b"".join(len(it).to_bytes(4, "little") + it for it in items)
        inputs[-1]["parameters"] = {"binary_data_size": len(content)}
        binary += content
    header = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(
        f"http://{server.http}/v2/models/{model}/infer",
        header + binary,
        {"Inference-Header-Content-Length": str(len(header))},
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read(), parse_constant=_refuse)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read(), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
