"""Command line, configuration, pipelines: what puts data, models and eval together."""

import os

# torch and numba bring a thread pool each. GNU OpenMP's threads wait by spinning and so take the cores from the other pool:
# beside one busy process on 2 cores, windows took seconds instead of 0.05 s. A short spin costs nothing on an idle machine
# and bounds that. Read when the library is loaded, so it must be set before torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
