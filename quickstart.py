"""Install mibench into an environment beside this file, once, and run a command of it.

    python3 quickstart.py                  mibench run avatars
    python3 quickstart.py pytest ...       the tests
    python3 quickstart.py COMMAND ...      any command, for example: mibench run smoke

It needs Python 3.11 or later and nothing else. The environment is the folder .venv, or the
one that MIBENCH_VENV names; nothing outside it changes.
"""

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NoReturn

if sys.version_info < (3, 11):  # noqa: UP036 - the reader's Python may well be older
    sys.exit("mibench needs Python 3.11 or later; this is " + sys.version.split()[0] + ".")

ROOT = Path(__file__).resolve().parent
VENV = Path(os.environ.get("MIBENCH_VENV") or ROOT / ".venv").absolute()
SCRIPTS = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = SCRIPTS / ("python.exe" if os.name == "nt" else "python")
STAMP = VENV / "quickstart.json"
"""What the environment holds; it says nothing while an installation is under way."""
EXTRAS = ("", "[test]", "[dev]")
"""Each holds the one before."""
LEVELS = {
    "pytest": 1,
    "ruff": 2,
    "codespell": 2,
    "mypy": 2,
    "pre-commit": 2,
    "make": 2,
    "sphinx-build": 2,
}
"""Command → the extra it needs."""


def main(command: list[str]) -> None:
    """Installs what the command needs, if it is not there, and becomes the command."""
    if command[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    command = command or ["mibench", "run", "avatars"]
    install(LEVELS.get(command[0], 0))
    os.environ["VIRTUAL_ENV"] = str(VENV)
    os.environ["PATH"] = os.pathsep.join([str(SCRIPTS), os.environ.get("PATH", os.defpath)])
    os.environ.pop("PYTHONHOME", None)
    program = shutil.which(command[0])
    if program is None:
        refuse(f"there is no command {command[0]!r}, neither in {VENV} nor on the PATH")
    if os.name == "nt":
        sys.exit(subprocess.run([program, *command[1:]]).returncode)
    os.execv(program, command)


def install(level: int) -> None:
    """Makes the environment hold mibench with ``EXTRAS[level]``.

    Where the requirements have changed, pip brings the environment up to date. Where an
    installation did not end, or the environment was made by another Python or for another
    folder, it is made anew: pip takes half-copied packages for whole ones.
    """
    place = [f"{sys.version_info[0]}.{sys.version_info[1]}", str(ROOT), str(VENV)]
    texts = [(ROOT / name).read_bytes() for name in ("setup.cfg", "pyproject.toml")]
    needs = hashlib.sha256(b"\0".join(texts)).hexdigest()
    held = read_stamp()
    usable = held.get("place") == place and PYTHON.exists()
    if usable and held["needs"] == needs and held["level"] >= level:
        return
    if usable:
        level = max(level, held["level"])
        STAMP.write_text("{}")
    else:
        make_environment()
    say(f"installing mibench{EXTRAS[level]} into {VENV}: once, some minutes")
    pip = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check"]
    run([*pip, "--editable", f"{ROOT}{EXTRAS[level]}"], "mibench could not be installed")
    STAMP.write_text(json.dumps({"place": place, "needs": needs, "level": level}))


def read_stamp() -> dict[str, Any]:
    """Returns what the environment holds; nothing if its installation did not end."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def make_environment() -> None:
    """Makes an environment with nothing but pip in it, in place of the one that is there."""
    if VENV.exists() and any(VENV.iterdir()) and not STAMP.exists():
        refuse(
            f"{VENV} was not made by quickstart.py; delete it, or name another folder in "
            "MIBENCH_VENV"
        )
    VENV.mkdir(parents=True, exist_ok=True)
    STAMP.write_text("{}")
    for entry in VENV.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry != STAMP:
            entry.unlink()
    base = getattr(sys, "_base_executable", sys.executable)
    venv = [base, "-m", "venv", str(VENV)]
    if subprocess.run(venv, capture_output=True).returncode == 0:
        return
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    remedy = f"install the system package {package} (or python3-venv) and run this again"
    run([*venv, "--without-pip"], f"this Python cannot make an environment: {remedy}", quiet=True)
    say("this Python makes environments without pip; looking for one")
    other = [base, "-m", "pip", "--python", str(PYTHON), "install", "pip"]
    if subprocess.run(other, capture_output=True).returncode == 0:
        return
    index = os.environ.get("PIP_INDEX_URL")
    if not index:
        refuse(f"this Python has no pip: {remedy}, or name a package index in PIP_INDEX_URL")
    try:
        wheel = fetch_pip(index)
    except (OSError, ValueError) as error:
        refuse(f"pip could not be fetched ({error}): {remedy}")
    run([PYTHON, wheel / "pip", "install", "--no-index", wheel], "pip could not be installed")
    wheel.unlink()


def fetch_pip(index: str) -> Path:
    """Downloads the newest wheel of pip for this Python from a package index.

    Raises:
        OSError: If the index cannot be reached.
        ValueError: If it has no such wheel, or the wheel is damaged.
    """
    page_url = f"{index.rstrip('/')}/pip/"
    with urllib.request.urlopen(page_url, timeout=60) as page:
        text = page.read().decode()
    found: dict[tuple[int, ...], str] = {}
    for tag in re.findall(r"<a\s[^>]*>", text):
        link = re.search(r'href="((?:[^"]*/)?pip-([\d.]+)-py3-none-any\.whl[^"]*)"', tag)
        oldest = re.search(r">=3\.(\d+)", html.unescape(tag))
        fits = oldest is None or int(oldest[1]) <= sys.version_info[1]
        if link and fits and "data-yanked" not in tag:
            version = tuple(int(part) for part in link[2].split("."))
            found[version] = urllib.parse.urljoin(page_url, html.unescape(link[1]))
    if not found:
        raise ValueError(f"no pip for Python 3.{sys.version_info[1]} at {page_url}")
    url, _, digest = found[max(found)].partition("#sha256=")
    with urllib.request.urlopen(url, timeout=60) as file:
        content = file.read()
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{url} is damaged")
    wheel = VENV / Path(urllib.parse.urlsplit(url).path).name
    wheel.write_bytes(content)
    return wheel


def run(command: list[object], failure: str, *, quiet: bool = False) -> None:
    """Runs a step of the installation, its output on stderr; ends with ``failure`` if it fails."""
    output = subprocess.DEVNULL if quiet else sys.stderr
    own = os.environ | {"PIP_USER": "0"}
    if subprocess.run([str(c) for c in command], stdout=output, env=own).returncode:
        refuse(failure)


def say(line: str) -> None:
    """Tells progress."""
    print(f"quickstart: {line}", file=sys.stderr, flush=True)


def refuse(reason: str) -> NoReturn:
    """Ends with one sentence."""
    sys.exit(f"quickstart: {reason}.")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        refuse(str(error))
    except KeyboardInterrupt:
        sys.exit("quickstart: interrupted; the next run makes good what is missing.")
