"""The same as survey.sh for a Python trainer, which a fork server can run: waits, prints x."""

import os
import time

if os.fork() == 0:
    # A child that was only forked: what it is shows in no program's environment but in its memory.
    time.sleep(609)
time.sleep(float(os.environ["SM_HP_SECONDS"]))
print(f"objective={os.environ['SM_HP_X']}")
