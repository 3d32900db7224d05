"""Whether the hub can be reached, asked once and quickly.

The hub's client tries again for half a minute before it gives up on a machine without a network. A user who mistyped a
file's name should not wait for that.
"""

import os
import socket
from functools import cache
from urllib.parse import urlsplit

_TIMEOUT_S = 5.0


@cache
def is_reachable() -> bool:
    """Whether a connection to the hub can be opened; True behind a proxy, False if HF_HUB_OFFLINE is set."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        with socket.create_connection((endpoint.hostname, port), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False
