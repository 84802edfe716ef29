"""Makes `imagenet-int8`: an int8 copy of `imagenet`, calibrated and judged on photographs that Debian packages carry.

All the work is `fovea quantize`'s; this fetches the photographs and says which are for what.
"""

import subprocess
import sys
from pathlib import Path

import photographs

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    """The model is replaced only where the gate lets the new one pass."""
    calibration, gate = photographs.photographs()
    arguments = f"imagenet --images {calibration} --gate {gate} --replace"
    return subprocess.run(["make", "quantize", f"ARGS={arguments}"], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
