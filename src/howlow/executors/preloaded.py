"""What the fork server imports ahead of the jobs: everything that its children need.

Imports make hundreds of thousands of objects that stay. Python's garbage collector would look at all of them again and
again meanwhile, which is a fifth of the time.
"""

import gc
import importlib

gc.disable()
try:
    importlib.import_module("howlow.trial.entries")
finally:
    gc.enable()
