"""Command line, configuration, pipelines: what puts data, models and eval together."""

import os

# torch and numba bring a thread pool each. Threads that wait by spinning take the cores from the other pool: on 2 busy cores
# one window took seconds instead of 0.1. OpenMP reads this when it is loaded, so it must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
