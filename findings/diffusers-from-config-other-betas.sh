#!/usr/bin/env bash
# A scheduler made of another's config by diffusers may add noise by another schedule, without a word.
#
# Versions: diffusers 0.42.1, torch 2.13.0 (CPU), Python 3.11.  Date: 2026-11-28.
# Expected: from_config keeps what the model was trained with: betas, and so alphas_cumprod.
# Seen: what the first config left to its class's defaults is left to the second class's defaults, although
# config.beta_start shows a number. Heun and KDPM2 have other defaults: abar at the last step is 0.0047
# instead of 0.00073. With both betas written into the file, all agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet diffusers==0.42.1 torch==2.13.0 transformers numpy
cd "$folder"
venv/bin/python - <<'PYTHON' 2> /dev/null
import json
import os

import diffusers

EXPLICIT = {"beta_start": 0.0001, "beta_end": 0.02}


def last(name, fields):
    """abar at the last step: of DDPM with these fields, and of another class made of its config."""
    os.makedirs("scheduler", exist_ok=True)
    with open("scheduler/scheduler_config.json", "w") as file:
        json.dump({"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", **fields}, file)
    first = diffusers.DDPMScheduler.from_pretrained("scheduler")
    assert first.config.beta_start == 0.0001
    other = getattr(diffusers, name).from_config(first.config)
    return round(float(first.alphas_cumprod[-1]), 5), round(float(other.alphas_cumprod[-1]), 5)


for name in ("DDIMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"):
    silent, said = last(name, {}), last(name, EXPLICIT)
    print(f"{name}: left to defaults {silent}, written out {said}")
    assert said == (0.00073, 0.00073), "this has changed"
    assert silent == (0.00073, 0.00073 if name == "DDIMScheduler" else 0.00466), "this has changed"
PYTHON
# DDIMScheduler: left to defaults (0.00073, 0.00073), written out (0.00073, 0.00073)
# HeunDiscreteScheduler: left to defaults (0.00073, 0.00466), written out (0.00073, 0.00073)
# KDPM2DiscreteScheduler: left to defaults (0.00073, 0.00466), written out (0.00073, 0.00073)
