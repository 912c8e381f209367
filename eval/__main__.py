"""`python -m vtc.eval OPTIONS` is `vtc eval OPTIONS`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "eval")
    runpy.run_module("vtc", run_name="__main__")
