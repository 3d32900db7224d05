"""Where workers run. `local`: as threads of this process, whose jobs run in children of one `fork_server`."""
