"""A graph as TensorRT reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_trt.errors import EngineError


class GraphRefusedError(EngineError):
    """TensorRT's parser does not take a graph; the message has node, operator and reason."""


@dataclass(frozen=True)
class Network:
    """A parsed graph, with everything that must outlive it.

    Attributes:
        trt: the library, `tensorrt` or `tensorrt_rtx`.
        builder: its builder.
        definition: its network definition, strongly typed.
        parser: owns the weights that were read from the graph's file.
        messages: what the library logs, errors and worse, as they come.
    """

    trt: Any
    builder: Any
    definition: Any
    parser: Any
    messages: list[str]


def parse(trt: Any, path: Path) -> Network:
    """Parse a graph.

    Precision is the graph's own: strongly typed networks know no other.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        path: the ONNX file, its weights beside it.

    Raises:
        GraphRefusedError: the parser does not take it.
    """
    network = create_network(trt)
    parser = network.parser
    if not parser.parse_from_file(str(path)):
        errors = [_explain(parser.get_error(i)) for i in range(parser.num_errors)]
        raise GraphRefusedError("\n  ".join([f"{path} is refused:", *errors]))
    return network


def create_network(trt: Any) -> Network:
    """An empty network, strongly typed."""
    messages: list[str] = []
    logger = _logger(trt, messages)
    builder = trt.Builder(logger)
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    definition = builder.create_network(1 << int(flag))
    return Network(trt, builder, definition, trt.OnnxParser(definition, logger), messages)


def _explain(error: Any) -> str:
    """One error of the parser: which node, and why."""
    reason = " ".join(str(error.desc()).split())
    operator = error.node_operator()
    if not operator:
        return reason
    name = error.node_name() or "without a name"
    return f"node {error.node()} ({name}), {operator}: {reason} [{error.file()}:{error.line()}]"


def _logger(trt: Any, messages: list[str]) -> Any:
    """A logger that keeps errors for our own messages instead of printing them."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    return Logger()
