"""Where the tests find files of the repository, and data beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARTEFACTS = ROOT / "artefacts"
DATA = ROOT.parent / "shared" / "data"
