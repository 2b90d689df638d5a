"""Image-conditional prompt learning: CoCoOp (Zhou et al. 2022), the paper's second baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsd_trt.train.baselines.clip import Clip
from dsd_trt.train.baselines.matcher import Matcher

_NARROWING = 16  # ratio of the meta-network's input to its hidden width, as in Zhou et al.


class PromptLearning(Matcher):
    """CLIP whose texts are prefixed with learned, image-conditional vectors.

    The vectors stand between BOS and the text. A meta-network maps the image's feature to one
    vector, which is added to each of them, so a text's feature depends on its image. CLIP and its
    logit scale are frozen, and a text's state is its token ids.

    Args:
        clip: pretrained CLIP, which stays unchanged.
        context: words whose token embeddings initialise the vectors. As the meta-network's output
            is zero at step 0, scores then equal CLIP's for texts prefixed with these words.
    """

    def __init__(self, clip: Clip, context: str = "a photo of") -> None:
        super().__init__(clip)
        words = clip.tokenizer(context, add_special_tokens=False).input_ids
        embedding = self.text_model.embeddings.token_embedding.weight
        self.context: nn.Parameter = nn.Parameter(
            embedding[torch.tensor(words, dtype=torch.int64)].clone()
        )
        features, width = self.visual_projection.out_features, embedding.shape[1]
        hidden = max(1, features // _NARROWING)
        last = nn.Linear(hidden, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.meta: nn.Sequential = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), last)
        self.match.b.requires_grad_()

    def text_states(self, texts: Sequence[str]) -> Tensor:
        """Token ids, int64 (texts, tower's length - context's length); long texts are truncated."""
        return self.clip.tokenize(texts, reserved=len(self.context))

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosine similarity of each pair's image and text features, (pairs,).

        Args:
            images: state of each pair's image, (pairs, vision width).
            texts: token ids of each pair's text, int64 (pairs, length).
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
        """Text states from token embeddings, (texts, tokens, text width) -> same.

        The text model's own forward takes token ids alone, so its parts are called one by one.
        """
        tower, length = self.text_model, embeddings.shape[1]
        # The mask has the embeddings' type: PyTorch 2.13 misreads an FP32 mask with FP64 queries.
        above = torch.full_like(embeddings[0, :1, :1], -torch.inf).expand(length, length).triu(1)
        hidden = tower.embeddings(inputs_embeds=embeddings)  # adds positions
        hidden = tower.encoder(inputs_embeds=hidden, attention_mask=above[None, None])
        return tower.final_layer_norm(hidden.last_hidden_state)
