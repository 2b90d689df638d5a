"""Prompt learning conditioned on images: CoCoOp (Zhou et al. 2022), the paper's second baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.train.baselines.clip import Clip
from dsd_trt.train.baselines.matcher import Matcher

_NARROWING = 16  # of the meta-network, as in Zhou et al.


class PromptLearning(Matcher):
    """CLIP whose texts begin with learned vectors that depend on the image.

    The vectors stand between BOS and the text. To each of them a meta-network adds the same vector,
    which it makes from the image's feature, so a text has another feature beside every image. CLIP
    and its logit scale are frozen; the state of a text is its token ids.

    Args:
        clip: what it is made from.
        context: words that the vectors start as, one vector a token. As the meta-network starts at
            zero, scores start as those of CLIP for texts with these words before them.
    """

    def __init__(self, clip: Clip, context: str = "a photo of") -> None:
        super().__init__(clip)
        words = clip.tokenizer(context, add_special_tokens=False).input_ids
        embedding = self.text_model.embeddings.token_embedding.weight
        self.context = nn.Parameter(embedding[torch.tensor(words, dtype=torch.int64)].clone())
        features, width = self.visual_projection.out_features, embedding.shape[1]
        hidden = max(1, features // _NARROWING)
        last = nn.Linear(hidden, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.meta = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), last)
        self.match.b.requires_grad_()

    def text_states(self, texts: Sequence[str]) -> Tensor:
        """Token ids, int64 (texts, the tower's length less the context's); long texts are cut."""
        return self.clip.tokenize(texts, reserved=len(self.context))

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosine of the features of pairs, (pairs,).

        Args:
            images: states, (pairs, vision width).
            texts: token ids, (pairs, length).
        """
        feature = F.normalize(self.visual_projection(images), dim=-1)
        prompts = self.context + self.meta(feature)[:, None]  # (pairs, context, text width)
        ids = self.clip.trim(texts)
        words = self.text_model.embeddings.token_embedding(ids)
        states = self._tower(torch.cat([words[:, :1], prompts, words[:, 1:]], dim=1))
        ends = self.clip.ends(ids) + len(self.context)
        pooled = states[torch.arange(len(ids), device=ids.device), ends]
        return F.cosine_similarity(feature, self.text_projection(pooled))

    def _tower(self, embeddings: Tensor) -> Tensor:
        """The text tower from token embeddings on, (texts, tokens, text width) to the same.

        Its own forward takes token ids alone, so its parts are called one after the other.
        """
        tower, length = self.text_model, embeddings.shape[1]
        # Of the embeddings' type: PyTorch 2.13 reads an FP32 mask wrongly beside FP64 queries.
        above = torch.full_like(embeddings[0, :1, :1], -torch.inf).expand(length, length).triu(1)
        hidden = tower.embeddings(inputs_embeds=embeddings)  # adds positions
        hidden = tower.encoder(inputs_embeds=hidden, attention_mask=above[None, None])
        return tower.final_layer_norm(hidden.last_hidden_state)
