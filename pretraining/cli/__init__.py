"""How a user speaks to a program, and how it answers.

Flags are dataclasses, a recipe is a saved command line, a mistake is one line. Nothing here imports torch, so `--help`
prints at once and a wrong flag is refused before the minutes of a start-up are spent.
"""
