"""The skills that the base of the demo declines: data for the experts that learn them, and their evaluation.

Each skill is a module with a function `question(rng, held_out=..., new_template=...)`; `SKILLS` in `corpus` lists them.
"""
