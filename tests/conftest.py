"""Test-wide settings: few threads, no network, no randomness between runs. Loads no torch."""

import os

from hypothesis import settings

# Read by torch when it is first imported, here or in a subprocess. One thread: the tensors of tests are small, and the
# workers of pytest-xdist share the cores; OpenMP threads that wait for a busy core make a test many times slower.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "Agg"

# The same examples in every run, and no deadline: speed is measured in benchmarks/, never asserted.
settings.register_profile("chogori", deadline=None, derandomize=True, database=None)
settings.load_profile("chogori")
