"""The browser that tests drive: Debian's chromium, which root installs where it is missing."""

from __future__ import annotations

import os
import shutil
import subprocess


def find_browser() -> str | None:
    if (found := shutil.which("chromium")) is not None:
        return found
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return shutil.which("chromium")
