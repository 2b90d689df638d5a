"""What modules need to be traced that training does not."""

from __future__ import annotations

from torch import Tensor, nn

from dsd_trt.train.diffusion.encoders import ImageEncoder


class UpcastImageEncoder(ImageEncoder):
    """An FP32 encoder in an FP16 bundle, for VAEs that overflow in FP16."""

    def forward(self, pixels: Tensor) -> Tensor:
        """As `ImageEncoder`, rounded to FP16 at the end."""
        return super().forward(pixels).half()


def drop_weights(module: nn.Module) -> None:
    """Take a module's weights away once they are stored: PyTorch keeps modules that were traced."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.new_empty(0)
