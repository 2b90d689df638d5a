"""Helpers for modules that are needed for tracing but not for training."""

from __future__ import annotations

from torch import Tensor, nn

from dsd_trt.train.diffusion.encoders import ImageEncoder


class UpcastImageEncoder(ImageEncoder):
    """An FP32 image encoder in an FP16 bundle, for VAEs that overflow in FP16."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode as `ImageEncoder` does, then round to FP16: (B, H, W, 3) -> (B, C, h, w)."""
        return super().forward(pixels).half()


def drop_weights(module: nn.Module) -> None:
    """Free a module's weights once they are stored, because PyTorch keeps traced modules alive."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.new_empty(0)
