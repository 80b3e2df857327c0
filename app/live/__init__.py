"""Live detection from a camera, a stream or a replay with bounded latency: the pipeline behind live.py.

    source ──► capture ──► packets ──► binning ──► grids ──► inference ──► viewers
    device     thread      queue       thread      queue     thread        page, window, totals
                           (blocks)                (drops the oldest)

Capture waits only for the device. Binning cuts packets into windows, records and bins them. If inference cannot keep up, whole
windows are dropped, oldest first, and counted, so that the age of a result is bounded by the length of the queue. A viewer
receives a result and must return at once; a slow client misses windows but does not delay the pipeline.

A change of settings that needs another network is passed to a builder thread. The current network runs until the new one is
warmed up, and every window is run by the network for which it was binned.

Threads suffice because the kernels, the network, OpenCV and the drivers release the GIL while they compute or wait. Only a
DV stream is received by a process of its own (relay.py), because dv-processing holds the GIL until it has the stream's header.
"""
