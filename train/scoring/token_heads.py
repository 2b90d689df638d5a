"""Token heads: matrix mode's head weights, chosen by each token, so that it estimates pair mode.

Equal head weights for every token (Eq. 4) fit pair mode, where the text has conditioned the U-Net.
In matrix mode queries know nothing of the text: which heads tell a colour from another, and which a
shape, differs more, and "the" tells nothing. So each token t has weights of its own, linear in its
state r_t, and a share g_t of the text:

    f^ = c + sum_t g_t sum_{l,h} (a + A r_t)_{l,h} S_{l,h,t},    g_t ~ exp(v . r_t)

over the tokens that count. They are learned by imitation, see `dsd_trt.train.imitation`, so that f^
is in pair mode's units.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dsd_trt.errors import ModelError, counted


class TokenHeads(nn.Module):
    """The parameters a, A, v and c.

    Args:
        heads: number of heads of all scored layers.
        width: D, the width of a token's state.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.base: nn.Parameter = nn.Parameter(torch.zeros(heads))
        self.of_token: nn.Parameter = nn.Parameter(torch.zeros(heads, width))
        self.gate: nn.Parameter = nn.Parameter(torch.zeros(width))
        self.offset: nn.Parameter = nn.Parameter(torch.zeros(1))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], heads: int, width: int) -> TokenHeads:
        """Token heads with the parameters of an adapter.

        Raises:
            ModelError: they are of another number of heads, or of other text states.
        """
        made = cls(heads, width)
        fill(made, tensors, "token heads", heads, width)
        return made

    def weights(self, words: Tensor, token_mask: Tensor) -> Tensor:
        """Weight of each head at each token; see `weigh`."""
        return weigh(words, token_mask, self.base, self.of_token, self.gate)


def fill(made: nn.Module, tensors: Mapping[str, Tensor], what: str, heads: int, width: int) -> None:
    """Give a module the parameters that an adapter has for it.

    Args:
        made: the module, whose parameters need no gradients afterwards.
        tensors: parameters by their names in it.
        what: name of the module for a message, in the plural.
        heads: number of heads that it is of.
        width: D, the width of a token's state.

    Raises:
        ModelError: they are of another number of heads, or of other text states.
    """
    wanted = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    if {name: tuple(value.shape) for name, value in tensors.items()} != wanted:
        raise ModelError(
            f"the adapter's {what} are not of {counted(heads, 'head')} and text states of "
            f"{counted(width, 'number')}: they were learned for another model. Learn them "
            "again: dsd-trt imitate"
        )
    made.load_state_dict(dict(tensors))
    made.requires_grad_(False)


def weigh(
    words: Tensor, token_mask: Tensor, base: Tensor, of_token: Tensor, gate: Tensor
) -> Tensor:
    """Weight of each head at each token, g_t (a + A r_t), 0 where a token does not count.

    Args:
        words: states r_t, (..., text_tokens, D).
        token_mask: 1 where a token counts, else 0, (..., text_tokens).
        base: a, weight of each head at every token, (heads,).
        of_token: A, what a token's state adds to it, (heads, D).
        gate: v, the direction of states of tokens that count more, (D,).

    Returns:
        FP32 (..., text_tokens, heads); zeros for a text in which no token counts.
    """
    states, mask = words.float(), token_mask.float()
    each = base + states @ of_token.T  # (..., text_tokens, heads)
    return each * share(states @ gate, mask)[..., None]


def share(strength: Tensor, token_mask: Tensor) -> Tensor:
    """Share of each token in its text, a softmax over the tokens that count.

    Args:
        strength: logits of the softmax, one for each token, (..., text_tokens).
        token_mask: 1 where a token counts, else 0, in a shape that fits.

    Returns:
        FP32 in the shape of `strength`; zeros for a text in which no token counts.
    """
    mask = token_mask.float()
    # Tokens that do not count are far below the others, so that the largest is one that does.
    strength = strength - (1 - mask) * 1e4
    each = (strength - strength.amax(dim=-1, keepdim=True)).exp() * mask
    return each / each.sum(dim=-1, keepdim=True).clamp(min=1e-12)
