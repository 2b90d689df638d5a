#!/usr/bin/env bash
# diffusers' schedulers that know nothing of zero terminal SNR save a config that says they have it.
#
# Versions: diffusers 0.42.1, torch 2.13.0 (CPU), Python 3.11.  Date: 2026-11-28.
# Expected: a saved scheduler_config.json describes the scheduler that saved it; a field that a class
# "will ignore", as its warning says, is not in what it saves.
# Seen: PNDM, DEIS, DPM-Solver (singlestep) and SA-Solver, made of a config with rescale_betas_zero_snr, end
# at abar = 0.00073 and save rescale_betas_zero_snr: true. Whoever reads that file with a class that knows
# the field gets abar = 0 at the last step: another schedule than the one in use when it was saved.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet diffusers==0.42.1 torch==2.13.0 transformers numpy
cd "$folder"
venv/bin/python - <<'PYTHON' 2> /dev/null
import json

import diffusers

base = diffusers.DDPMScheduler(
    beta_schedule="scaled_linear", rescale_betas_zero_snr=True, prediction_type="v_prediction"
)
for name in ("PNDM", "DEISMultistep", "DPMSolverSinglestep", "SASolver"):
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(base.config)
    scheduler.save_pretrained(name)
    with open(f"{name}/scheduler_config.json") as file:
        saved = json.load(file)["rescale_betas_zero_snr"]
    again = diffusers.DDIMScheduler.from_config(diffusers.DDIMScheduler.load_config(name))
    in_use, read = (round(float(it.alphas_cumprod[-1]), 5) for it in (scheduler, again))
    print(f"{name}: abar {in_use} in use, saves {saved}, read back by DDIM: {read}")
    assert (in_use, saved, read) == (0.00073, True, 0.0), "this has changed"
PYTHON
# PNDM: abar 0.00073 in use, saves True, read back by DDIM: 0.0
# DEISMultistep: abar 0.00073 in use, saves True, read back by DDIM: 0.0
# DPMSolverSinglestep: abar 0.00073 in use, saves True, read back by DDIM: 0.0
# SASolver: abar 0.00073 in use, saves True, read back by DDIM: 0.0
