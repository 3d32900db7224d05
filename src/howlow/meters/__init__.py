"""What the machine reports while a trial works: time, memory, utilisation, power and energy.

A trial talks to `session`: it opens phases (`phase`), and a phase times steps. `sources` chooses among the sources of
energy, each a file of its own (`nvml`, `nvidia_smi`, `rapl`, `zeus_devices`) that keeps the protocol in `instruments`.
`sampler` reads them in threads of their own and `timeline` writes the readings down; `energy_bounds` computes energy
and its error from a counter's readings, `power_bounds` from polled power, and `energy_sums` adds it up for each part of
a phase. `schedule` says when they are taken, `questions` how often a slow driver is asked, and `conditions` sums up
clocks, heat and throttling. `idle` measures the device at rest. `steadiness`, `interference` and `self_report` look for
reasons to distrust. `clock` is the only clock for timing.

Sensors only: nothing here changes the process or the machine. What a phase needs of memory is passed in.
"""
