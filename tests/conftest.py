"""Test-wide settings: few threads, no network, no randomness between runs. Loads no torch."""

import os

from hypothesis import settings

# Read by torch when it is first imported, here or in a subprocess. Workers of pytest-xdist share the cores.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, min(2, (os.cpu_count() or 2)) // _workers)))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "Agg"

# The same examples in every run, and no deadline: speed is measured in benchmarks/, never asserted.
settings.register_profile("chogori", deadline=None, derandomize=True, database=None)
settings.load_profile("chogori")
