"""Where workers run. `local`: on this machine, from a fork server."""
