"""Coverage-guided fuzzing of everything that reads what others wrote.

`python -m tests.fuzz` runs it (see `__main__`); `test_fuzz.py` replays what was found and
gives each target a short run.
"""
