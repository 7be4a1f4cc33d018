"""Runs in buckets: written and read in a local folder, which is kept the same as the bucket."""
