"""What the command line says of itself: the usage, and the help of each command."""

from __future__ import annotations

USAGE = """\
imaml: meta-learning with implicit gradients

  imaml train [PRESET] [--a.b=c ...]   learn across tasks (default preset: characters-5w1s)
      --steps N --seed S --data PATH --out DIR --minutes M
      --task COLUMN --target COLUMN --features A,B   of a table (preset tables)
      --resume                         go on with the run in DIR
      --from ARTEFACT                  start from what an earlier run has learned
      --quiet                          no progress
      --dry-run                        what it would cost: parameters, memory, time; trains nothing
  imaml compare [METHOD ...]           train and score methods side by side
      --preset PRESET --budget MINUTES --seeds N --tasks N --data PATH --out DIR --json
  imaml evaluate RUN                   score what was learned on new tasks
      --split train|validation|test --tasks N --seed S --data PATH --json
  imaml adapt RUN --support DIR --query DIR [--json]
                                       learn a new task from images, a folder a class, or rows, and predict
  imaml sample [PRESET] [--out DIR]    write a task that was not trained on as images, to try adapt with
  imaml data list | get NAME [DIR] | check NAME [PATH]
  imaml report RUN                     write the run's report page again
  imaml presets                        what can be trained, a line each
  imaml bench PRESET [--steps N] [--data PATH] [--json]
                                       what a meta-step takes here, beside what the machine can do
  imaml bench theory [--out DIR] [--quick]
                                       the paper's theory on plots: errors, products, memory, time

RUN is a run's folder or an artefact. `imaml COMMAND --help` says more; so does the README.
"""

HELP = {
    "train": """\
imaml train [PRESET] [options]

Learns across tasks and writes a folder with config.json, events.jsonl, checkpoints/, artefact.safetensors
and report.html; then scores what was learned on test tasks. Ctrl-C stops it after the step, with a
checkpoint. `imaml presets` lists the presets.

  --steps N --tasks N --seed S --minutes M   how long, on how many tasks a step, from which seed
  --data PATH                                where the images or the table lie, for presets that read them
  --task C --target C --features A,B         a table's columns: whose rows are a task, what is asked, what is
                                             known (by default all others); for the preset tables
  --out DIR                                  the run's folder (default: runs/PRESET, then -2, ...)
  --resume                                   go on with the run in --out, as it was configured; options given
                                             must agree with it, but for --minutes, --training.patience and
                                             how often it writes
  --from RUN                                 a new run that starts from what an earlier one has learned
  --quiet                                    no progress
  --dry-run                                  prints parameters, FLOPs, memory and time, time from a probe
                                             of a few steps; trains and writes nothing

Any field of the configuration can be set by its path; config.json in a run's folder shows them all:

  --domain.ways=20 --method.strength=0.5 --method.inner.steps=32 --method.linear=GMRES
  --method.name=maml --method.strength=none --method.new_task.strength=none
                                                  or fomaml, metasgd, reptile, transfer, multitask
  --optimiser.learning_rate=1e-3 --training.patience=5 --training.gradient_below=1e-3
  --training.test_tasks=100 --training.certify_every=50
""",
    "compare": """\
imaml compare [METHOD ...] [--preset characters-5w1s] [--budget 5] [options]

Trains each method for so many minutes, scores all on the same test tasks, and writes comparison.json,
comparison.md and comparison.html: at equal time and at equal tasks seen, with paired differences from imaml.
Without METHOD, all of them:

  scratch transfer-head transfer multitask maml fomaml reptile reptile-proximal anil metasgd
  imaml imaml-hessian-free imaml-head imaml-learned as-released

  --seeds N      so many runs of each, averaged task by task (default 1)
  --tasks N      test tasks (default 1000)
  --data PATH    where the images lie, for presets that read images
  --out DIR      where everything is written (default: runs/compare-PRESET); the same command goes on with
                 what an earlier one has left there
  --json         the result as JSON instead of a table; --quiet: no line for each method done

Any field of the preset can be set by its path, as for imaml train: --domain.ways=20
""",
    "evaluate": """\
imaml evaluate RUN [NAME=OTHER ...] [--split test] [--tasks 1000] [--seed 0] [--data PATH] [--json]

Adapts to random tasks of a split and scores the query sets: before and after adaptation, transductive
(normalised by the query batch's own statistics, as in the literature) and inductive (by the support set's),
with 95 % intervals over tasks. --data PATH scores a few-shot run on the images at PATH: on Omniglot for a run
that was trained on characters or Omniglot. OTHER runs of the same tasks (another method's, --training.steps=0
for nothing learned) are scored too, and their difference from RUN is paired, task by task. RUN and OTHER are
runs' folders or artefacts.
""",
    "adapt": """\
imaml adapt RUN --support DIR --query DIR [--uncertainty] [--json]
imaml adapt RUN --support FILE.csv --query FILE.csv [--uncertainty] [--json]

Learns a new task from DIR/CLASS/*.png (or JPEG, GIF, BMP, TIFF, WebP, PGM, PPM; up to 40 million pixels when
padded to a square; dark on light or light on dark) and predicts the class of every image in the query folder
(in it, or in folders in it), one line each: file, class, probability. Each
answer depends on its own image and the support set alone; with --uncertainty probabilities are those of the
task's posterior, lower where the support says little (good for telling drawings of no class given, too low to
be taken at their word). For a run on a table: learns from the rows of one
new task, which have the target's column, and predicts it for the query's rows, one line each: row, answer;
with --uncertainty also between what it lies with 90 % probability (or, of classes, probabilities by the
task's posterior).
RUN is a run's folder or an artefact.
""",
    "sample": """\
imaml sample [PRESET] [--out sample] [--seed 0] [--split test] [--data PATH]

Writes a random task of a preset of images (default characters-5w1s) as the files that imaml adapt reads:
DIR/support/CLASS/1.png, ... and DIR/query/CLASS/1.png, ... DIR must be new. Any field of the preset can be
set by its path, as for imaml train: --domain.shots=5
""",
    "data": """\
imaml data list               what can be read, and where it is looked for
imaml data get omniglot [DIR] downloads Omniglot and verifies it
imaml data check omniglot [PATH]
""",
    "report": "imaml report RUN\n\nWrites RUN/report.html again from the run's events.\n",
    "bench": """\
imaml bench PRESET [--steps 10] [--data PATH] [--json]

Times meta-steps of a preset, and prints them beside the FLOPs of their matrix products and the rate at which
this machine multiplies matrices. Any field of the preset can be set by its path, as for imaml train.

imaml bench theory [--out theory] [--quick]

Measures, and writes plots (SVG) and theory.json into --out: the meta-gradient's error against inner steps on
a linear regression with a closed form, beside its certified bound; products with the Hessian against the
condition number (Theorem 1), their exponents printed; memory and time against inner steps of Conv4, 20-way
5-shot.

  --quick   without Conv4, and only the smaller condition numbers: seconds
""",
    "presets": "imaml presets\n\nLists what can be trained.\n",
}
