"""`dsd_tokenizer`: token ids and masks of texts, as the other models take them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# Before an installed dsd_trt, which may be another version.
sys.path.insert(0, str(Path(__file__).parent))

import triton_python_backend_utils as pb_utils

from dsd_trt.bundle.manifest import MANIFEST_NAME, Manifest
from dsd_trt.errors import InputError
from dsd_trt.tokenizer import Tokenizer

HERE = Path(__file__).parent


class TritonPythonModel:
    """The interface that Triton's python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tokenizer."""
        manifest = Manifest.from_json((HERE / MANIFEST_NAME).read_text("utf-8"))
        spec = manifest.tokenizer
        self._tokenize = Tokenizer(HERE / spec.file, spec, manifest.method.token_mask)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Tokenise every request's texts; an invalid text fails only its own request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()  # (texts, 1)
        try:
            tokens = self._tokenize([text.decode() for text in texts[:, 0]])
        except (InputError, UnicodeDecodeError) as error:
            refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=refusal)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("input_ids", tokens.input_ids),
                pb_utils.Tensor("token_mask", tokens.mask),
            ]
        )
