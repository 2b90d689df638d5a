"""`dsd_rank_texts`: the best of many texts for each image, by pruned search.

The search is the package's own, on the pipeline of `dsd_score`: its lists where the repository
serves the matrix scorer, elimination alone elsewhere. An instance answers one request at a time,
for the reason that `dsd_score` does.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before an installed dsd_trt, which may be another version.
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from dsd_trt.engines.triton.scoring.answers import answered, numbers, strings, strings_of
from dsd_trt.engines.triton.scoring.served import Served
from dsd_trt.errors import InputError
from dsd_trt.job_scorer import JobScorer
from dsd_trt.jobs import Tally, TextScores
from dsd_trt.match_probability import match_probability
from dsd_trt.pipeline import EncodedTexts
from dsd_trt.pruned_search import ERROR, PrunedSearch
from dsd_trt.ranking import best_first
from dsd_trt.scoring_arguments import checked_error
from dsd_trt.text_cache import TextCache

NO_TEXT = -1
"""Index in a place of the ranking that no text has."""

_SEARCHES = 64  # pairs of top_k and error whose audits are kept: clients may ask for any


class TritonPythonModel:
    """The interface that Triton's python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle's manifest and this model's parameters."""
        self._served = served = Served(Path(__file__).parent, args)
        served.warn_without_probability("pair")
        self._jobs = JobScorer(served.pipeline, served.manifest, "pair", TextCache(0))
        # By top_k and error, used longest ago first. Audits are of all requests together: the
        # first list of each run is scored in full, and most requests have one image.
        self._searches: OrderedDict[tuple[int, float], PrunedSearch] = OrderedDict()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; a failed one does not affect the others."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        images, texts = (strings_of(request, name) for name in ("images", "texts"))
        top_k = int(_number(request, "top_k", 0))
        error = _number(request, "error", ERROR)
        return answered(lambda: self._rank(images, texts, top_k, error))

    def _rank(
        self, images: Sequence[bytes], texts: Sequence[bytes], top_k: int, error: float
    ) -> list[Any]:
        """The answer's tensors; an unusable image has no text in any place, and a reason."""
        served = self._served
        served.require_within_limits(len(images), len(texts))
        search = self._search(top_k, error)
        # Not in `initialize`: the python backend can call other models only during a request.
        served.pipeline.compile("pair")
        latents = served.latents(images)
        encoded, text_errors = served.texts(texts)
        columns = np.array([j for j, reason in enumerate(text_errors) if not reason], np.int32)
        refused = [it if isinstance(it, str) else "" for it in latents]
        image_errors = list(refused)
        indices = np.full((len(images), top_k), NO_TEXT, np.int32)
        scores = np.full((len(images), top_k), np.nan, np.float32)
        pairs = 0
        usable = [i for i, latent in enumerate(latents) if not isinstance(latent, str)]
        stacked = [it for it in latents if not isinstance(it, str)]
        results = self._best(stacked, encoded, search) if stacked and encoded is not None else []
        for i, found in zip(usable, results, strict=False):  # no results without texts
            places = best_first(found.scores, top_k)
            indices[i, : len(places)] = columns[places]
            scores[i, : len(places)] = found.scores[places]
            pairs += int(np.isfinite(found.scores).sum())
            if lost := columns[found.lost].tolist():
                image_errors[i] = f"dsd_pair_scorer gave NaN or infinity with texts {lost}"
        served.metrics.count(pairs, refused, text_errors)
        calibration = served.manifest.calibration_of("pair")
        return [
            pb_utils.Tensor("indices", indices),
            numbers("probabilities", match_probability(scores, calibration)),
            numbers("scores", scores),
            strings("image_errors", image_errors),
            strings("text_errors", text_errors),
        ]

    def _search(self, top_k: int, error: float) -> PrunedSearch:
        """The searches for this many texts at this error, with the audits of earlier requests.

        Raises:
            InputError: one of both is out of range.
        """
        most = self._served.settings["max_texts"]
        if not 0 < top_k <= most:
            raise InputError(f"top_k is a whole number from 1 to {most}, max_texts, got {top_k}")
        key = top_k, checked_error(error)
        if key not in self._searches:
            self._searches[key] = self._jobs.open_search("texts", self._served.levels, *key)
            if len(self._searches) > _SEARCHES:
                self._searches.popitem(last=False)
        self._searches.move_to_end(key)
        return self._searches[key]

    def _best(
        self, latents: Sequence[NDArray[Any]], texts: EncodedTexts, search: PrunedSearch
    ) -> list[TextScores]:
        """Scores of the best texts of each latent, (C, h, w) each; NaN for the others."""
        levels = self._served.levels
        every = [np.arange(len(texts.mask))] * len(latents)
        tally = Tally(None, None, len(levels))
        found = self._jobs.best_texts(np.stack(latents), every, texts, levels, tally, search)
        return [it.result for it in found if isinstance(it.result, TextScores)]


def _number(request: Any, name: str, default: float) -> float:
    """An input of one number; the default where a request leaves it out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy()[0].item()
