"""Speed and accuracy of polarax, side by side with what a user would run instead.

    python -m benchmarks --short                      # what `make bench` runs
    python -m benchmarks --suites=pairs --models=qwen2.5-1.5b --layers=2 --peers=torch,jnp
    python -m benchmarks compare OLD.json NEW.json

Run from the root of the repository; nothing here is installed. polarax is called as its users call
it: `polarax.kernels`, `polarax.measuring.program.measure_stack` and the command line.
"""
