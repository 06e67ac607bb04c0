"""The wish that a run ends early, from whoever asks to whoever runs."""


class Stop:
    """Whether a run shall end early; set from a signal handler.

    Attributes:
        signal: the signal that asked for it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def set(self, signal: int) -> None:
        """End as soon as what is in flight is finished."""
        self.signal = signal

    def __bool__(self) -> bool:
        return self.signal is not None
