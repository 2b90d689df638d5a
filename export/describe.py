"""The bundle's manifest, as far as it is known before the graphs exist."""

from __future__ import annotations

from importlib.metadata import version

from dsd_trt.bundle.contract import graph_contract
from dsd_trt.bundle.lists import RULE, Lists
from dsd_trt.bundle.manifest import Manifest, MatrixMode, Preprocessing, Provenance, TokenizerSpec
from dsd_trt.bundle.method import HeadWeights, Method, NoiseLevels
from dsd_trt.export.adapter_input import adapter_input
from dsd_trt.export.calibration import calibrated
from dsd_trt.export.settings import ExportSettings, wants_matrix
from dsd_trt.log import get_logger
from dsd_trt.train.diffusion.checkpoint import Checkpoint
from dsd_trt.train.diffusion.families import TOKENS
from dsd_trt.train.scoring.adapter import Adapter, resize_of
from dsd_trt.train.scoring.adapter_file import adapter_hash
from dsd_trt.train.scoring.scoring_unet import ScoringUNet

logger = get_logger(__name__)

TOKENIZER_NAME = "tokenizer.json"
_LIBRARIES = (
    "dsd-trt",
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
)


def describe(
    settings: ExportSettings, checkpoint: Checkpoint, adapter: Adapter | None, scoring: ScoringUNet
) -> Manifest:
    """Make the manifest, without file hashes, self-check and parity figures.

    Logs a warning if its scores have no calibration.

    Args:
        settings: export settings that `require_consistent` has let pass.
        checkpoint: base model, of which no weights are read here.
        adapter: few-shot adapter; None is the zero-shot score.
        scoring: scoring U-Net of checkpoint and adapter; its weights may be empty.
    """
    tokenizer = checkpoint.tokenizer
    fed = adapter_input(adapter, scoring) if adapter and settings.adapter_input else None
    trained = adapter.mode if adapter else None
    matrix = None
    if wants_matrix(settings, trained):
        lists = _lists(settings, adapter, scoring)
        matrix = MatrixMode(None, settings.query_pool, lists)
    manifest = Manifest(
        method=_method(settings, adapter, scoring),
        graphs=graph_contract(
            settings.precision,
            checkpoint.resolution,
            checkpoint.latent_shape,
            checkpoint.text_width,
            TOKENS,
            scoring.denoising,
            checkpoint.has_pooled_text,
            fed.numbers if fed else 0,
            matrix is not None,
        ),
        precision=settings.precision,
        tokenizer=TokenizerSpec(
            file=TOKENIZER_NAME,
            max_length=TOKENS,
            bos_id=tokenizer.bos_token_id,
            eos_id=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            vocabulary=checkpoint.vocabulary,
        ),
        preprocessing=Preprocessing(checkpoint.resolution, resize_of(adapter, settings.resize)),
        calibration=None,
        provenance=Provenance(
            base_model=checkpoint.source.name,
            revision=checkpoint.source.revision,
            weight_hashes=checkpoint.weight_hashes,
            adapter_hash=adapter_hash(settings.adapter) if settings.adapter else None,
            library_versions={name: version(name) for name in _LIBRARIES},
        ),
        matrix=matrix,
        adapter=fed,
    )
    return calibrated(manifest, adapter)


def _lists(settings: ExportSettings, adapter: Adapter | None, scoring: ScoringUNet) -> Lists | None:
    """Lists measured with the adapter; None where the bundle's scorers make others.

    They were measured with all layers, the adapter's levels, noise and way of resizing, and queries
    as they are.
    """
    if adapter is None or adapter.lists is None:
        return None
    if adapter.lists.rule != RULE:
        logger.warning(
            "the adapter's lists were measured for another rule than this version follows: the "
            "bundle is without lists. Measure them again: dsd-trt imitate"
        )
        return None
    alike = (
        len(scoring.score_layers) == len(scoring.layer_names)
        and scoring.levels == tuple(adapter.levels)
        and settings.noise_seed == 0
        and settings.query_pool == 1
        and settings.token_mask == "words_eos"
        and resize_of(adapter, settings.resize) == resize_of(adapter)
    )
    if not alike:
        logger.warning(
            "the adapter's lists were measured with other settings than these: the bundle is "
            "without lists, and a pruned search scores every candidate at one level. To keep them, "
            "leave out --score-layers, --levels, --query-pool, --token-mask and --fair-resolution"
        )
    return adapter.lists if alike else None


def _method(settings: ExportSettings, adapter: Adapter | None, scoring: ScoringUNet) -> Method:
    weights = scoring.head_weights.split(scoring.heads)
    return Method(
        score=settings.score or (adapter.score if adapter else "attention"),
        # Without an adapter no weight was learned: 1 gives the released research code's plain sum.
        denoising_weight=adapter.denoising_weight if adapter else 1.0,
        score_layers=scoring.score_layers,
        layer_names=tuple(scoring.layer_names[layer] for layer in scoring.score_layers),
        pooling=scoring.pooling,
        lam=scoring.lam,
        head_weights=HeadWeights(
            mode=adapter.head_mode if adapter else "uniform",
            values=tuple(tuple(weight.tolist()) for weight in weights),
        ),
        noise_levels=NoiseLevels(
            fractions=scoring.levels,
            timesteps=tuple(scoring.timesteps.tolist()),
            seed=settings.noise_seed,
        ),
        token_mask=settings.token_mask,
        has_prompts=scoring.prompts is not None,
        trained_for=adapter.mode if adapter else None,
    )
