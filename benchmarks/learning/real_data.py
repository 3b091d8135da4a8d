"""The commands of docs/real_data.md, word for word: what each printed, and the scores of each run.

    python -m benchmarks run real_data --data FOLDER

FOLDER has watch.npz, pupils.csv and typefaces/, as the programs in examples/real write them (those and the
installations are omitted here).
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import ROOT, benchmark

PAGE = ROOT / "docs" / "real_data.md"


def commands():
    """The commands of each section of the page, by its heading."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    found = {}
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        lines = "".join(re.findall(r"```\n(.*?)```", text, re.DOTALL)).splitlines()
        found[title] = [line.split("  #")[0].strip() for line in lines if line.startswith("imaml")]
    return {title: lines for title, lines in found.items() if lines}


@benchmark("real_data")
def main(run, data):
    """Runs the commands in a folder of its own, and evaluates what was learned."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for source in Path(data).iterdir():
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, place / source.name)

        def ran(title, command):
            words, began = command.split()[1:], time.perf_counter()
            how = {"cwd": place, "capture_output": True, "text": True, "check": True}
            done = subprocess.run([sys.executable, "-m", "imaml", *words], **how)
            about = {"section": title, "command": command, "seconds": round(time.perf_counter() - began, 1)}
            return about, done

        for title, lines in commands().items():
            for command in lines:
                about, done = ran(title, command)
                text = (done.stderr + done.stdout).replace(f"{name}/", "")
                run.add({**about, "printed": text.splitlines()})
            learned = re.search(r"imaml train .*--out (\S+)", "\n".join(lines))[1]
            about, done = ran(title, f"imaml evaluate {learned} --json")
            run.add({**about, **json.loads(done.stdout)})
