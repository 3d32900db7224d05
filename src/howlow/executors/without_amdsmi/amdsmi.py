"""Stands for `amdsmi` in Ray's processes on machines without AMD's library (`howlow.executors.ray_tasks`)."""

raise ImportError("AMD's library libamd_smi.so is not on this machine")
