"""The heap, the limits and the peaks of a process: `heap`, `limits`, `peaks`."""
