"""One trial, from its settings to its record: `run` is its method section."""

import logging

# PEFT loads bitsandbytes where it is installed, which then logs that a library is missing that nothing here would use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
