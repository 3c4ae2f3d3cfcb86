"""Has schemathesis hold a server's HTTP API against its own document: `openapi.py CONTROL_ADDRESS KEY`.

Ends with the number of requests made, and with status 1 when one was not answered as the document says.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

import schemathesis

HERE = pathlib.Path(__file__)


@schemathesis.serializer("application/x-ndjson")
def _lines(_context, value):
    """A body whose lines are whatever comes; the server tells what is wrong with them."""
    return value if isinstance(value, bytes) else str(value).encode()


def main(address, key):
    # Schemathesis loads this file as its hooks, for the serializer above.
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": HERE.stem, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://{address}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {key}", "--no-color", "--generation-database", "none"]
    # The seed is fixed, so that a run that fails fails again.
    command += ["--max-examples", "12", "--seed", "1", "--request-timeout", "10", "--workers", "1"]
    # It leaves notes where it is run.
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    print(run.stdout, run.stderr)
    cases = re.search(r"(\d+) generated", run.stdout)
    print(f"{cases[1] if cases else 0} passed, {0 if run.returncode == 0 else 1} failed")
    sys.exit(run.returncode)


if __name__ == "__main__":
    main(*sys.argv[1:])
