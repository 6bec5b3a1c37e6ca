"""A training script whose result is written in advance: the n-th training job gives the n-th one.

Hyperparameters: `results`, a list of objectives or of the words "fail" and "wait" (until it is ended), the
last of which holds for all further training jobs; `gate`, a path that must exist before there is a result.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

hyperparameters = json.loads(os.environ["SM_HPS"])
# Training jobs are named <tuning job>-<number, from 1>-<random>.
number = int(os.environ["TRAINING_JOB_NAME"].split("-")[-2])
results = hyperparameters["results"]
result = results[min(number, len(results)) - 1]

while result == "wait" or not Path(hyperparameters["gate"]).exists():
    time.sleep(0.2)
if result == "fail":
    sys.exit("the script failed on purpose")
print(f"objective={result};")
