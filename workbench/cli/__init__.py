"""The `qwb` command line: one file per command."""

import gc
import os

# A short command lives from its start-up. What it imports stays, so looking for garbage among it is a tenth of its time;
# and numpy's BLAS, which nothing here uses, would start a thread per processor: half of numpy's import time.
gc.set_threshold(100_000, 20, 20)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
