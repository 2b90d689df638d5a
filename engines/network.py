"""A graph as a parsed, strongly typed TensorRT network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_trt.errors import EngineError


class GraphRefusedError(EngineError):
    """TensorRT's parser refuses a graph; the message has node, operator and reason."""


@dataclass(frozen=True)
class Network:
    """A parsed graph, with everything that must outlive it.

    Attributes:
        trt: library module, `tensorrt` or `tensorrt_rtx`.
        builder: builder object that creates configurations and plans.
        definition: network definition, strongly typed.
        parser: ONNX parser, which owns the weights read from the graph's file.
        messages: errors that the library has logged so far, in order.
    """

    trt: Any
    builder: Any
    definition: Any
    parser: Any
    messages: list[str]


def parse(trt: Any, path: Path) -> Network:
    """Parse an ONNX graph; a strongly typed network has the graph's own precision.

    Args:
        trt: library module, `tensorrt` or `tensorrt_rtx`.
        path: ONNX file of the graph, with the weight file in the same folder.

    Raises:
        GraphRefusedError: the parser refuses the graph.
    """
    network = create_network(trt)
    _require_parsed(network, path, network.parser.parse_from_file(str(path)))
    return network


def parse_part(trt: Any, content: bytes, path: Path) -> Network:
    """Parse a part of an ONNX graph, as `parse`.

    Args:
        trt: library module, `tensorrt` or `tensorrt_rtx`.
        content: content of an ONNX file with the part.
        path: ONNX file of the whole graph, with the weight file in the same folder.

    Raises:
        GraphRefusedError: the parser refuses the part.
    """
    network = create_network(trt)
    _require_parsed(network, path, network.parser.parse(content, str(path)))
    return network


def create_network(trt: Any) -> Network:
    """Create an empty, strongly typed network."""
    messages: list[str] = []
    logger = _logger(trt, messages)
    builder = trt.Builder(logger)
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    definition = builder.create_network(1 << int(flag))
    return Network(trt, builder, definition, trt.OnnxParser(definition, logger), messages)


def _require_parsed(network: Network, path: Path, parsed: bool) -> None:
    if not parsed:
        parser = network.parser
        errors = [_explain(parser.get_error(i)) for i in range(parser.num_errors)]
        raise GraphRefusedError("\n  ".join([f"{path} is refused:", *errors]))


def _explain(error: Any) -> str:
    """One line about a parser error: node, operator, reason and source line."""
    reason = " ".join(str(error.desc()).split())
    operator = error.node_operator()
    if not operator:
        return reason
    name = error.node_name() or "without a name"
    return f"node {error.node()} ({name}), {operator}: {reason} [{error.file()}:{error.line()}]"


def _logger(trt: Any, messages: list[str]) -> Any:
    """A logger that collects errors for our own messages instead of printing them."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    return Logger()
