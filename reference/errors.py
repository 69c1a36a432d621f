"""The one error for bad input: it names where, which field and which value, in one line."""

from __future__ import annotations


class InputError(ValueError):
    """Input a user can mend. The command line prints it as one line and exits with code 2.

    >>> str(InputError("trace.csv", "prompt_tokens", -3, "must be at least 1 (row 7)"))
    'trace.csv: prompt_tokens=-3: must be at least 1 (row 7)'
    """

    def __init__(self, where: object, field: str, value: object, why: str) -> None:
        self.where, self.field, self.value, self.why = str(where), field, value, why
        shown = f"{field}={value!r}" if field else repr(value)
        super().__init__(" ".join(f"{self.where}: {shown}: {why}".split()))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, object, str]]:
        """Let it cross from a worker process: an exception is otherwise rebuilt from its message alone."""
        return InputError, (self.where, self.field, self.value, self.why)
