"""Computing a few of a graph's FP32 nodes in FP16, as a careless export would."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def plant(model: onnx.ModelProto, operator: str, count: int = 1) -> None:
    """Make the last FP32 nodes of a kind compute in FP16, between casts.

    Args:
        model: model with described values, which is changed.
        operator: operator of the nodes.
        count: number of nodes to change; there must be as many.
    """
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    nodes: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        full = types.get(node.output[0]) == TensorProto.FLOAT
        if node.op_type != operator or not full or count == 0:
            nodes.append(node)
            continue
        count -= 1
        result = node.output[0]
        node.output[0] = f"{result}.narrow"
        nodes.append(helper.make_node("Cast", [node.output[0]], [result], to=TensorProto.FLOAT))
        nodes.append(node)
        for i, name in enumerate(node.input):
            if types.get(name) != TensorProto.FLOAT:
                continue  # axes
            narrow = f"{name}.{node.name}"
            nodes.append(helper.make_node("Cast", [name], [narrow], to=TensorProto.FLOAT16))
            node.input[i] = narrow
    assert count == 0
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
