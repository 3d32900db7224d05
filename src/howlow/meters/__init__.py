"""What the machine says while a trial works: time, memory, utilisation, power and energy.

`session` is what a trial talks to: it opens phases and times steps. `sources` chooses among the sources of energy, each
a file of its own (`nvml`, `nvidia_smi`, `rapl`, `zeus_devices`; `energy` has the watts that a user gave), which keep
the protocol in `instruments`. `sampler` reads them off the trial's thread and keeps the timeline; `windows` makes of
the readings energy and its error. `memory` reads and resets peaks, `idle` measures the device at rest, `steadiness` and
`surroundings` look for reasons to distrust, `clock` is the only clock for timing.
"""
