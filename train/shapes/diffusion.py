"""Training of the demonstration's U-Net and text encoder.

Five losses share one forward pass:

- denoising: v-prediction, as in Stable Diffusion;
- grounding: the attention of a colour or shape word should lie on the thing it names;
- ranking: the matching score should be higher for an image's caption than for its twin's;
- telling: the same for the score of only those words in which the two captions differ;
- naming: the things in an image should be predicted from its features (`Naming`).

The last four use what the generator of the scenes knows. The model is thus trained for matching,
and its model card says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dsd_trt.train.diffusion.checkpoint import token_mask, tokenize
from dsd_trt.train.scoring.layers import inner_widths
from dsd_trt.train.scoring.noise import noise_levels
from dsd_trt.train.scoring.pooling import logsumexp_pool
from dsd_trt.train.scoring.scoring_unet import ScoringUNet, average_tokens
from dsd_trt.train.shapes.averaged_training import AveragedTraining
from dsd_trt.train.shapes.batch import TELLING
from dsd_trt.train.shapes.encoded_batch import EncodedBatch, encoded_batches
from dsd_trt.train.shapes.naming import Naming
from dsd_trt.train.shapes.settings import DiffusionSettings
from dsd_trt.train.shapes.twins import TwinLatents
from dsd_trt.train.shapes.workers import ALONE, Worker

_TEXT_WIDTH = 128
_TELLING_SCALE = 60.0  # scale of score differences in the telling loss; ranking learns its own
_HASTE = 10  # factor of the learning rate of the ranking loss's scale
_GROUNDING, _RANKING = 0.1, 1.0  # weights relative to the denoising loss


def build_unet() -> UNet2DConditionModel:
    """An untrained U-Net with 4.3 M parameters and 7 cross-attention layers of 4 heads."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=4,  # diffusers' name for the number of heads
        cross_attention_dim=_TEXT_WIDTH,
        norm_num_groups=16,
        use_linear_projection=True,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder with 0.5 M parameters."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_TEXT_WIDTH,
            intermediate_size=4 * _TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=_TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDPMScheduler:
    """The noise schedule: Stable Diffusion's scaled-linear betas with v-prediction."""
    return DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
    )


class ShapesDiffusion(nn.Module):
    """The trained modules, with the scoring U-Net for the ranking losses.

    Args:
        tokenizer: CLIP tokenizer of the demonstration's words.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.scheduler: DDPMScheduler = build_scheduler()
        self.text_encoder: CLIPTextModel = build_text_encoder(tokenizer)
        levels = noise_levels(self.scheduler.alphas_cumprod, (16, 8, 8))
        self.scoring: ScoringUNet = ScoringUNet(build_unet(), levels)
        # 1 for the tokens of each entry of `TELLING`, and for EOS, which attends to all others.
        tells = torch.zeros(len(TELLING), len(tokenizer))
        tells[:, tokenizer.eos_token_id] = 1
        for i, words in enumerate(TELLING.values()):
            tells[i, tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in words])] = 1
        self._tells: Tensor
        self.register_buffer("_tells", tells, persistent=False)
        self.naming: Naming = Naming(inner_widths(self.scoring.unet))
        self.log_scale: nn.Parameter = nn.Parameter(torch.tensor(math.log(60.0) / _HASTE))

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (texts, 77), text states r_y (texts, 77, D) and token masks (texts, 77)."""
        ids = tokenize(self.tokenizer, captions).to(self._tells.device)
        return ids, *self._states(ids)

    def _states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        mask = token_mask(ids, self.tokenizer.eos_token_id)
        return self.text_encoder(ids).last_hidden_state, mask

    def losses(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """The five losses of a batch by name, each a scalar."""
        twins, order = len(batch.timesteps), batch.order
        states, mask = self._states(batch.ids)  # (2 twins, 77, ...)
        z = batch.latents.flatten(0, 1)
        t = batch.timesteps.repeat_interleave(2)
        noise = batch.noise.flatten(0, 1)
        z_t = self.scheduler.add_noise(z, noise, t)
        token_scores = z.new_zeros(len(order), mask.shape[1])
        grounding, naming = z.new_zeros(()), z.new_zeros(())
        masks = torch.cat([batch.masks.flatten(0, 1)] * 2)
        hidden = batch.hidden * (1 - torch.cat([t, t]) / 1000)[:, None, None]
        named, shares = _named_cells(batch.ids, batch.words, batch.masks)
        forward_pass = self.scoring.cross_attentions(
            torch.cat([z_t, z_t]), torch.cat([t, t]), states[order]
        )
        for seen in forward_pass:
            pooled = logsumexp_pool(seen.attention, self.scoring.lam)
            token_scores = token_scores + pooled.mean(dim=1) / len(self.scoring.layer_names)
            own = seen.attention[: 2 * twins].mean(dim=1)  # (2 twins, image_tokens, 77)
            grounding = grounding + _grounding(own, named, shares, 1 - t / 1000)
            naming = naming + self.naming(seen, masks, batch.labels, hidden)
        target = self.scheduler.get_velocity(z, noise, t)
        scores = average_tokens(token_scores, mask[order]).view(2, twins, 2)
        weight = batch.ranked * torch.where(batch.timesteps > 850, 0.3, 1.0)
        ranking = _ranking(scores, (_HASTE * self.log_scale).exp(), weight)
        # In the mean over all words, one relation or shape has too little weight to be learned.
        kind = batch.telling.repeat_interleave(2)  # (2 twins,)
        telling = mask * self._tells[kind[:, None], batch.ids]
        scores = average_tokens(token_scores, telling[order]).view(2, twins, 2)
        told = _ranking(scores, _TELLING_SCALE, batch.ranked * (batch.telling > 0))
        return {
            "denoising": F.mse_loss(forward_pass.prediction[: 2 * twins], target),
            "grounding": grounding / len(self.scoring.layer_names),
            "ranking": ranking,
            "telling": told,
            "naming": naming / len(self.scoring.layer_names),
        }


def train_diffusion(
    model: ShapesDiffusion,
    data: TwinLatents,
    path: Path,
    settings: DiffusionSettings,
    *,
    worker: Worker = ALONE,
    report: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
    save_every: int = 200,
) -> None:
    """Train a stage in place, or resume it; at the end the model has the averaged weights.

    Args:
        model: model to train, on its device.
        data: encoded twins of the training set.
        path: path of the stage's training state; if the file exists, training resumes from it.
        settings: hyperparameters of the stage.
        worker: this process among all workers; only worker 0 reports and saves.
        report: callback `(step, losses)` after each step, with the losses by name.
        save_every: number of steps between saves of the training state.

    Raises:
        InputError: the training state is of a run with other settings.
        ModelError: the training state is damaged, or is another model's.
    """
    training = AveragedTraining(model, settings, path, worker)
    device = model.log_scale.device
    ahead = encoded_batches(data, settings, training.start, model.tokenizer, worker, device)
    for step, batch in enumerate(ahead, training.start):
        losses = model.losses(batch)
        total = (
            losses["denoising"]
            + _GROUNDING * losses["grounding"]
            + _RANKING * losses["ranking"]
            + settings.telling * losses["telling"]
            + settings.naming * losses["naming"]
        )
        training.descend(step, total)
        training.average(step)
        if worker.rank == 0:
            figures = torch.stack(list(losses.values())).tolist()  # one synchronisation, not five
            report(step + 1, dict(zip(losses, figures, strict=True)))
        training.save(step + 1, save_every)
    training.finish()


def _ranking(scores: Tensor, scale: Tensor | float, weight: Tensor) -> Tensor:
    """Logistic ranking loss of positive pairs against negative pairs, in both directions.

    Args:
        scores: score of each image with its own caption (index 0 of the first axis) and with its
            twin's, (2, twins, 2).
        scale: factor of the score differences.
        weight: weight of each twin, (twins,).
    """
    positive, negative = scores  # (twins, 2) each
    # Negatives of an image: its twin's caption; of a caption: its twin's image.
    by_text = F.softplus(scale * (negative - positive))
    by_image = F.softplus(scale * (negative.flip(1) - positive))
    return ((by_text + by_image).mean(dim=1) * weight).sum() / weight.sum().clamp(min=1)


def _named_cells(ids: Tensor, words: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that name a visible thing, and the cells that thing covers.

    Args:
        ids: token ids of each image's caption, (images, 77).
        words: token ids of the things' colours and shapes, (images, MAX_THINGS, 2).
        masks: share of each latent cell that a thing covers, (twins, 2, MAX_THINGS, h, w).

    Returns:
        1 where a token is the colour or shape of a visible thing, (images, 77), and the share of
        each cell that the named things cover, (images, 77, h, w).
    """
    cells = masks.flatten(0, 1)
    # (images, 77, MAX_THINGS): 1 where the token is the thing's colour or shape.
    names = (ids[:, :, None, None] == words[:, None]).any(dim=3).float()
    shares = torch.einsum("pjk,pkhw->pjhw", names, cells).clamp(max=1)
    return (shares.amax(dim=(2, 3)) > 0.2).float(), shares


def _grounding(attention: Tensor, named: Tensor, shares: Tensor, weight: Tensor) -> Tensor:
    """Negative log of the share of a token's attention that lies on the thing it names.

    Args:
        attention: attention A averaged over heads, (images, image_tokens, 77).
        named: 1 where a token names a visible thing, (images, 77).
        shares: share of each latent cell that the named things cover, (images, 77, h, w).
        weight: weight of each image, (images,).
    """
    side = math.isqrt(attention.shape[1])
    where = F.adaptive_avg_pool2d(shares, side).flatten(2).transpose(1, 2)
    # (images, image_tokens, 77), scaled so that each thing's most covered cell counts as 1.
    where = where / where.amax(dim=1, keepdim=True).clamp(min=1e-4)
    share = (attention * where).sum(dim=1) / attention.sum(dim=1).clamp(min=1e-6)
    loss = -share.clamp(min=1e-4).log() * named * weight[:, None]
    return loss.sum() / named.sum().clamp(min=1)
