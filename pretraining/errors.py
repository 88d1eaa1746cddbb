"""What a user can correct. Imports nothing, so that every package may raise it."""


class UserError(ValueError):
    """A mistake the user can correct: each problem names the flag or file, the value found and the remedy."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
