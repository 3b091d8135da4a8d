"""Watch recordings of shoulder exercises as arrays: windows of 2 s, which exercise, and which person.

    pip install seglearn
    python examples/real/watch.py watch.npz

Ten people did seven exercises while they wore a watch (Burns et al. 2018, arXiv:1802.01489); acceleration and
rotation have six channels at 50 Hz. seglearn ships the recordings.
"""

import sys

import numpy as np
from seglearn.datasets import load_watch

found, length = load_watch(), 100
windows, exercises, people = [], [], []
for recording, exercise, person in zip(found["X"], found["y"], found["subject"], strict=True):
    for start in range(0, len(recording) - length + 1, length):
        windows.append(recording[start : start + length])
        exercises.append(found["y_labels"][int(exercise)])
        people.append(int(person))
np.savez_compressed(sys.argv[1], x=np.array(windows, np.float32), y=exercises, groups=people)
print(f"{sys.argv[1]}: {len(windows):,} windows of {len(set(people))} people")
