"""Live detection: a camera, a stream, or a replay in; boxes within a bounded time out. The pipeline behind live.py.

    source ──► capture ──► packets ──► binning ──► grids ──► inference ──► viewers
    device     thread      queue       thread      queue     thread        page, window, totals
                           (waits)                 (drops the oldest)

Capture waits for the device and nothing else. Binning cuts packets into windows, records them and bins them. Where inference
is late, whole windows are dropped, the oldest first, and counted, so that what is shown is never older than the queue is long.
A viewer is handed a result and must return at once; who is slow misses windows and holds up nobody.

Settings that need another network are given to a builder thread; the present network runs until the new one is warm, and every
window is run by the network it was binned for.

Threads suffice: the kernels, the network, OpenCV and the drivers release Python's lock while they compute or wait.
"""
