"""
What the library costs, beside baselines of the same run.

`python -m benchmarks` runs all of it; see `--help`.
"""
