"""Mutated files of every kind that is read: each loads, or is refused in one line, in bounded time and memory.

`python -m tests.fuzz_files --count 20000` runs the whole; the test beside this runs a sample of it.
"""
