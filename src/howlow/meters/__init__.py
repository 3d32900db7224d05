"""What the machine says while a trial works: time, memory, utilisation, power and energy.

`session` is what a trial talks to: it opens phases and times steps. `energy` knows the sources, `nvml` reads NVIDIA
devices, `memory` reads and resets peaks, `sampler` keeps the timeline, `clock` is the only clock for timing.
"""
