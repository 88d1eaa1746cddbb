"""Document filters: length and language; by default all documents are kept."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pretraining.data.input.documents import CleaningReason
from pretraining.errors import UserError


@dataclass(frozen=True, slots=True)
class CleaningRules:
    """What is removed; None and empty remove nothing.

    Lengths count characters. `language_hook` is `package.module:function`, which returns the language of a text.
    """

    min_characters: int | None = None
    max_characters: int | None = None
    language_hook: str | None = None
    languages: tuple[str, ...] = ()
    exact_duplicates: bool = False
    near_duplicates: float | None = None


class TextFilter:
    """Applies the rules to one text at a time."""

    def __init__(self, rules: CleaningRules) -> None:
        self._rules = rules
        self._language_of = None if rules.language_hook is None else load_hook(rules.language_hook)

    def __reduce__(self) -> tuple[type["TextFilter"], tuple[CleaningRules]]:
        """Pickle the rules: another process imports the hook itself."""
        return TextFilter, (self._rules,)

    @property
    def keeps_all(self) -> bool:
        """Whether no text is removed."""
        rules = self._rules
        return rules.min_characters is None and rules.max_characters is None and self._language_of is None

    def problem(self, text: str) -> CleaningReason | None:
        """Why this text is removed; None if it is kept."""
        rules = self._rules
        if rules.min_characters is not None and len(text) < rules.min_characters:
            return "too_short"
        if rules.max_characters is not None and len(text) > rules.max_characters:
            return "too_long"
        if self._language_of is not None and self._language(text) not in rules.languages:
            return "other_language"
        return None

    def _language(self, text: str) -> str:
        assert self._language_of is not None
        try:
            return self._language_of(text)
        except SystemExit:  # e.g. of sys:exit, which would print the text
            raise UserError(
                f"--language_hook {self._rules.language_hook}: the function exits; use another one"
            ) from None
        except Exception as error:
            raise UserError(
                f"--language_hook {self._rules.language_hook}: raised {type(error).__name__} ({error}) for the text "
                f"that begins with {text[:80]!r}; fix the function"
            ) from error


def load_hook(name: str) -> Callable[[str], str]:
    """Import the function `package.module:function`, also from the working directory.

    Raises:
        UserError: when it does not exist.
    """
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        hook = getattr(importlib.import_module(module_name), function_name)
    except (Exception, SystemExit) as error:
        raise UserError(f"--language_hook {name}: cannot be loaded ({error}); use package.module:function") from None
    finally:
        sys.path.pop(0)
    if not callable(hook):
        raise UserError(f"--language_hook {name}: is not a function; use package.module:function")
    return hook
