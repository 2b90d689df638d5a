"""A plan in the library's hands: its tensors, and its passes, recorded by their shapes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from dsd_trt.bundle.contract import TensorSpec
from dsd_trt.engine import EngineDescription
from dsd_trt.engine.cuda import DeviceMemory, Event, RecordedGraph, Stream
from dsd_trt.errors import EngineError

_KEPT = 512  # recorded passes; the oldest makes room

Shapes = Mapping[str, Sequence[int]]


class LoadedPlan:
    """A plan on the current GPU.

    Args:
        trt: the TensorRT or TensorRT-RTX module.
        content: bytes of the plan.
        name: name of the graph's file, for messages.
        description: library, device and precision of the plan.

    Raises:
        EngineError: the library refuses the plan.

    Attributes:
        inputs: inputs of the plan; a size that is open is "?".
        outputs: outputs of the plan, in the same form.
    """

    def __init__(self, trt: Any, content: bytes, name: str, description: EngineDescription) -> None:
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)  # has to outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineError(
                f"{description.engine} refuses the plan of {name}. Build again: dsd-trt build"
            )
        modes = trt.TensorIOMode
        self.inputs: list[TensorSpec] = _tensors(trt, self._engine, modes.INPUT)
        self.outputs: list[TensorSpec] = _tensors(trt, self._engine, modes.OUTPUT)
        self._user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._activations = DeviceMemory(max(int(self._engine.device_memory_size_v2), 256))
        # A recording depends on its context's shapes, so each has its own. Their activations share
        # memory, because they run one after another.
        self._recorded: dict[Hashable, tuple[Any, RecordedGraph]] = {}

    def output_shapes(self, profile: int, shapes: Shapes, stream: Stream) -> dict[str, list[int]]:
        """Shapes of the outputs.

        Args:
            profile: number of the profile that supports the inputs.
            shapes: shape of each input.
            stream: stream of the passes.
        """
        context = self._context(profile, shapes, stream)
        return {it.name: list(context.get_tensor_shape(it.name)) for it in self.outputs}

    def launch(
        self,
        key: Hashable,
        profile: int,
        shapes: Shapes,
        addresses: Mapping[str, int],
        stream: Stream,
    ) -> RecordedGraph:
        """Queue one pass; the first one of each key is run as it is, and recorded.

        Args:
            key: what stands for the shapes and the addresses.
            profile: number of the profile that supports the inputs.
            shapes: shape of each input.
            addresses: address on the device of each input and output.
            stream: the same stream for all passes.

        Returns:
            The recorded pass, which can be launched again.

        Raises:
            EngineError: the plan takes no such inputs, or the GPU failed.
        """
        if (known := self._recorded.get(key)) is not None:
            known[1].launch()
            return known[1]
        if len(self._recorded) >= _KEPT:
            stream.synchronize()  # the oldest may be at work
            del self._recorded[next(iter(self._recorded))]
        context = self._context(profile, shapes, stream)
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        enqueue = partial(context.execute_async_v3, stream.handle)
        if not enqueue():  # setup work of the first run cannot be recorded
            raise EngineError("the GPU could not run the plan; the library's log says why")
        stream.synchronize()
        with RecordedGraph(stream) as recorded:
            enqueue()
        self._recorded[key] = (context, recorded)
        return recorded

    def release(self) -> None:
        """Free everything, dependents before what they depend on."""
        self._recorded.clear()
        del self._activations, self._engine, self._runtime

    def _context(self, profile: int, shapes: Shapes, stream: Stream) -> Any:
        """An execution context for some shapes; all contexts share memory for activations."""
        context = self._engine.create_execution_context(self._user_managed)
        if context is None:
            raise EngineError("no room on the GPU for another execution context")
        context.set_device_memory(self._activations.address, self._activations.size)
        context.set_optimization_profile_async(profile, stream.handle)
        stream.synchronize()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, tuple(shape)):
                raise EngineError(f"the plan takes no {name} of {tuple(shape)}")
        return context


def median_time(passes: Sequence[RecordedGraph], stream: Stream, repeats: int) -> float:
    """Median GPU time in seconds of some passes together, without copies.

    Args:
        passes: the passes, in order.
        stream: stream that they were recorded in.
        repeats: number of timed repetitions.
    """
    marks = [Event() for _ in range(repeats + 1)]
    marks[0].record(stream)
    for mark in marks[1:]:
        for it in passes:
            it.launch()
        mark.record(stream)
    marks[-1].synchronize()
    return median(after.since(before) for before, after in pairwise(marks))


def _tensors(trt: Any, engine: Any, mode: Any) -> list[TensorSpec]:
    """Inputs or outputs of an engine."""
    specs = []
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        if engine.get_tensor_mode(name) == mode:
            dtype: Any = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
            sizes = tuple(size if size >= 0 else "?" for size in engine.get_tensor_shape(name))
            specs.append(TensorSpec(name, dtype, sizes))
    return specs
