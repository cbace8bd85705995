"""How long a stream may be silent. Pure."""


class Patience:
    """Deadlines of a stream: one for all that comes before its first proper value, and one between values.

    Args:
        first_seconds: To the first proper value, in all.
        idle_seconds: From then on, each time.
    """

    def __init__(self, first_seconds: float, idle_seconds: float) -> None:
        self._first_seconds = first_seconds
        self._idle_seconds = idle_seconds
        self._left_seconds = first_seconds
        self._begun = False

    @property
    def seconds(self) -> float:
        """How long to wait now."""
        return self._left_seconds

    @property
    def asked_seconds(self) -> float:
        """The deadline in force, as it was asked for."""
        return self._idle_seconds if self._begun else self._first_seconds

    def came(self, *, begins: bool, waited_seconds: float) -> None:
        """Something came.

        Args:
            begins: It is a proper value, and no sign of life.
            waited_seconds: For so long it was waited for.
        """
        if begins:
            self._begun = True
            self._left_seconds = self._idle_seconds
        else:
            self._left_seconds = max(0.0, self._left_seconds - waited_seconds)

    def interrupted(self) -> None:
        """It begins anew, with all that comes before a first value."""
        self._begun = False
        self._left_seconds = self._first_seconds
