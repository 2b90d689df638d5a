"""Forms of a bundle's graphs for ONNX Runtime on CUDA.

A form has the inputs, outputs and weights of its graph. What differs are operators of ONNX
Runtime's own, `com.microsoft`, which stand for several of the graph's. They have fast kernels on
CUDA; other engines do not know them.
"""

from __future__ import annotations

from dataclasses import replace

import onnx
from onnx import helper

from dsd_trt.bundle.folder import Bundle
from dsd_trt.errors import ModelError
from dsd_trt.export.fused_attention import DOMAIN, fuse_self_attentions
from dsd_trt.export.fused_group_norm import fuse_group_norms
from dsd_trt.export.onnx_file import drop_unread
from dsd_trt.export.settings import CudaForm

_FORMED = ("image_encoder", "pair_scorer", "matrix_scorer")  # a text has too few tokens to matter


def form_name(file: str) -> str:
    """File name of a graph's form: "pair_scorer.onnx" -> "pair_scorer.cuda.onnx"."""
    return f"{file.removesuffix('.onnx')}.cuda.onnx"


def cuda_form(model: onnx.ModelProto, name: str, fuse: CudaForm) -> onnx.ModelProto | None:
    """Derive the form of a graph.

    Args:
        model: graph as `trace` returns it; unchanged.
        name: name of the graph in the bundle, such as "pair_scorer".
        fuse: operators to fuse; group normalisation has no kernel on the CPU.

    Returns:
        The form; None for the text encoder and for an image encoder with nothing to fuse.

    Raises:
        ModelError: a scorer has no self-attention, or group normalisation, that could be fused.
    """
    if name not in _FORMED:
        return None
    form = onnx.ModelProto()
    form.CopyFrom(model)
    fused = {"self-attention": fuse_self_attentions(form)}
    if fuse == "attention+group-norm":
        fused["group normalisation"] = fuse_group_norms(form)
    if missing := [what for what, count in fused.items() if not count and name != "image_encoder"]:
        raise ModelError(
            f"the {name} has no {missing[0]} that a form for CUDA could fuse: leave out --cuda-form"
        )
    if not any(fused.values()):
        return None
    drop_unread(form.graph)
    form.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return form


def in_cuda_form(bundle: Bundle) -> Bundle:
    """The same bundle with forms in place of the graphs that have one."""
    manifest = bundle.manifest
    forms = manifest.cuda_form or {}
    graphs = {
        name: replace(graph, file=forms.get(name, graph.file))
        for name, graph in manifest.graphs.items()
    }
    return replace(bundle, manifest=replace(manifest, graphs=graphs, cuda_form=None))
