"""Quality of scores and probabilities on labelled pairs, and of rankings; numpy alone.

`labels` are 1 for positive and 0 for negative pairs, and a pair is kept if its score is
at least the threshold. `weights` say how often a pair counts; None is once.
"""

from dsd_trt.metrics.bootstrap import bootstrap
from dsd_trt.metrics.calibration import (
    Bin,
    bins_for,
    brier,
    calibration_error,
    chance_calibration_error,
    log_loss,
    reliability,
)
from dsd_trt.metrics.curve import OperatingPoint, at_threshold, average_precision, roc_auc
from dsd_trt.metrics.logistic import cross_fitted, fit_logistic
from dsd_trt.metrics.pairs import class_weights
from dsd_trt.metrics.retrieval import mean_reciprocal_rank, recall_at
from dsd_trt.metrics.summary import AtThreshold, Calibrations, Estimate, Summary, summarize
from dsd_trt.metrics.threshold import (
    CONFIDENCE,
    ChosenThreshold,
    threshold_for_precision,
    threshold_for_recall,
    wilson_lower,
)

__all__ = [
    "CONFIDENCE",
    "AtThreshold",
    "Bin",
    "Calibrations",
    "ChosenThreshold",
    "Estimate",
    "OperatingPoint",
    "Summary",
    "at_threshold",
    "average_precision",
    "bins_for",
    "bootstrap",
    "brier",
    "calibration_error",
    "chance_calibration_error",
    "class_weights",
    "cross_fitted",
    "fit_logistic",
    "log_loss",
    "mean_reciprocal_rank",
    "recall_at",
    "reliability",
    "roc_auc",
    "summarize",
    "threshold_for_precision",
    "threshold_for_recall",
    "wilson_lower",
]
