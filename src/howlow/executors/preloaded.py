"""What the fork server imports ahead of the jobs: everything that its children need.

Imports make hundreds of thousands of objects that stay. Python's garbage collector would look at all of them again and
again meanwhile, which is a fifth of the time. At the server's end Python would clear them one by one for seconds, in
which whoever reads the output of a sweep waits: the server has its ends of their pipes.
"""

import atexit
import gc
import importlib
import os

gc.disable()
try:
    importlib.import_module("howlow.trial.entries")
finally:
    gc.enable()
atexit.register(os._exit, 0)  # called first, being registered last; children of the server end without such calls
