"""Doing it: the compiled program, reading ahead, sampled controls, progress."""
