"""The callbacks of a run, one concern per module; ../build.py has their order."""
