"""How sure a reading is, measured: false alarms on pure noise, and the power to tell planted effects.

    python -m benchmarks.judging --out=DIR [--pair=BASE,POST ...] [--parts=false_alarms,power] [--seconds=...]

Every matrix goes through `polarax.compare` as a user's does, and is named or not by the library's own judgement. The
spectra are those of real weights: by default of the demo's two models (`make demo` installs them), and of any pairs
that are named. The same command continues what was interrupted; DIR gets results.jsonl (as they come), results.json,
results.md and power.png.
"""
