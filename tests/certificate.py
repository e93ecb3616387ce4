"""A certificate of the tests' own, for this machine's loopback; nobody but who is told trusts it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from parts import require


class Certificate(NamedTuple):
    """Two PEM files."""

    cert: str
    key: str


def make_certificate(folder: Path) -> Certificate:
    """Make one for 127.0.0.1 and no other name, signed by itself: it is also the CA that a client has to know."""
    openssl = shutil.which("openssl")
    require("openssl", "install it with the system's package manager", openssl is not None)
    made = Certificate(f"{folder}/cert.pem", f"{folder}/key.pem")
    subprocess.run(
        [
            *(str(openssl), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", "/CN=penstock", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", made.key, "-out", made.cert),
        ],
        check=True,
        capture_output=True,
    )
    return made
