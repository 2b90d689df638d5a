"""The score of one image and one text, equation by equation, in PyTorch and diffusers alone.

`python examples/score_by_hand.py IMAGE TEXT` prints what `dsd-trt score` does. The equations are
of "Discriminative Diffusion Models as Few-shot Vision and Language Learners" (arXiv:2305.10722).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import avg_pool2d, linear, silu
from transformers import CLIPTextModel, CLIPTokenizer

MODEL = Path(__file__).parents[1] / "dsd_trt" / "data" / "shapes-model"
LEVELS = (0.02, 0.05, 0.1, 0.2)  # noise levels s that the demonstration's adapter was trained at
LAMBDA = 20.0  # sharpness of pooling: towards 0 the mean, towards infinity the maximum


def attend(attn, hidden_states, encoder_hidden_states, **_):
    """Cross-attention, as a processor that diffusers calls; leaves S(A) with the layer."""
    r_x, r_y = hidden_states[0], encoder_hidden_states[0]  # (n, width), (77, D)
    q, k, v = attn.to_q(r_x), attn.to_k(r_y), attn.to_v(r_y)
    q, k, v = (states.unflatten(1, (attn.heads, -1)).transpose(0, 1) for states in (q, k, v))
    a = (q @ k.mT * attn.scale).softmax(dim=2)  # A, (heads, n, 77)
    # Eq. 3, with the mean over image tokens in place of the sum: S stays in [0, 1].
    attn.s = (LAMBDA * a).exp().mean(dim=1).log() / LAMBDA  # S(A), (heads, 77)
    return attn.to_out[0]((a @ v).transpose(0, 1).flatten(1))[None]


def add_prompts(layers, adapter, z):
    """Eq. 5: W_k and W_v of each layer become W + p(x), with p(x) = P + u pi(x)^T."""
    cells = avg_pool2d(z, z.shape[3] // 4).flatten()  # the image in 4 x 4 cells
    mapping = [adapter[f"prompts.mapping.{i}.{x}"] for i in (0, 2) for x in ("weight", "bias")]
    pi = linear(silu(linear(cells, *mapping[:2])), *mapping[2:]).view(len(layers), 2, -1)
    for i, attn in enumerate(layers):
        for j, (kind, w) in enumerate([("key", attn.to_k.weight), ("value", attn.to_v.weight)]):
            up, down, u = (adapter[f"prompts.{kind}.{i}.{x}"] for x in ("up", "down", "u"))
            w += up @ down + torch.outer(u, pi[i, j])  # (inner, D)


@torch.no_grad()
def score(image, text):
    """f(y, x), in [0, 1]; x is the path of an opaque image, y a text."""
    vae = AutoencoderKL.from_pretrained(MODEL, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(MODEL, subfolder="unet")
    abar = DDPMScheduler.from_pretrained(MODEL, subfolder="scheduler").alphas_cumprod
    text_encoder = CLIPTextModel.from_pretrained(MODEL / "text_encoder").float()
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    adapter = {k: x.float() for k, x in load_file(MODEL / "adapter/adapter.safetensors").items()}

    pixels = Image.open(image).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None] / 127.5 - 1
    z = vae.encode(x).latent_dist.mean * vae.config.scaling_factor  # (1, C, h, w)
    y = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    r_y = text_encoder(y).last_hidden_state  # (1, 77, D)
    counted = slice(1, y.argmax() + 1)  # the words and the end of the text, the largest id

    layers = [attn for name, attn in sorted(unet.named_modules()) if name.endswith(".attn2")]
    for attn in layers:  # down, mid, up: in order of execution
        attn.set_processor(attend)
    add_prompts(layers, adapter, z)
    w = torch.cat([adapter[f"head_weights.{i}"] for i in range(len(layers))])  # sums to 1

    f = []
    for t in (round(s * len(abar)) for s in LEVELS):
        eps = torch.randn(z.shape[1:], generator=torch.Generator().manual_seed(t))  # per level
        z_t = abar[t].sqrt() * z + (1 - abar[t]).sqrt() * eps  # Eq. 1
        unet(z_t, t, r_y)
        s = torch.cat([attn.s for attn in layers])  # (heads of all layers, 77)
        f.append((w @ s)[counted].mean())  # Eq. 4: the mean over heads and tokens,
    return torch.stack(f).mean().item()  # and over noise levels


if __name__ == "__main__":
    pair = sys.argv[1:] if len(sys.argv) == 3 and Path(sys.argv[1]).is_file() else sys.exit(__doc__)
    print(f"{score(*pair):.4f}")
