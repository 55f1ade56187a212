"""Stands for a training stage: `launcher: python .../stub_stage.py` runs it as `-m stages.<stage>`, in 0.2 seconds.

What it measures is a function of the searched weight; environment variables make it slow, or fail, as a test needs.
"""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

stage = sys.argv[-1].split(".")[1]
params = yaml.safe_load(Path("params.yaml").read_text())
weight = params[stage]["loss"]["kl"]
if os.environ.get("STUB_CHILD"):
    # As torchrun starts its workers: in a session of their own.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    with Path(os.environ["STUB_CHILD"]).open("a") as file:
        file.write(f"{os.getpid()} {child.pid}\n")
if os.environ.get("STUB_FAIL"):
    print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")
    print("what comes after it")
    sys.exit(1)
seed = params[stage]["seed"]
if seed and os.environ.get("STUB_FAIL_AGAIN"):
    sys.exit("error: no other seed")
quality = 20.0 - abs(math.log10(weight) + 4.0) + 0.001 * seed
for epoch in range(1, params[stage]["optimisation"]["epochs"] + 1):
    time.sleep(float(os.environ.get("STUB_SECONDS", "0.2")))
    metrics = {"psnr_white": quality + 0.1 * epoch, "lpips": weight}
    with Path(os.environ["QIL_VALIDATION_LOG"]).open("a") as file:
        file.write(json.dumps({"epoch": epoch, "samples": 20 * epoch, "metrics": metrics}) + "\n")
kept = {"kept": "epoch 0 (the start)"} if os.environ.get("STUB_KEPT") else {}
Path(f"metrics/reports/{stage}.json").write_text(json.dumps(metrics | kept))
