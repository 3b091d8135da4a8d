"""Ctrl-C and SIGTERM: the program ends soon after them, and a training run ends with a checkpoint.

Python runs a signal's handler in the main thread, between two of its instructions. While XLA compiles
there are none, and an exception that a handler raises during an import, a callback or a destructor may be
lost or become another one. So a program does not rely on KeyboardInterrupt: `watch` starts a thread that the
operating system wakes at each signal (`signal.set_wakeup_fd`), and that thread ends the process. Only a
training run defers that (`Interrupts`), until its state is on the disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

STATUS = 130  # 128 + SIGINT, as a shell reports it
TWICE = 0.5  # seconds: signals closer than this are one, as a terminal and a launcher may each send it
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_deferring: list[Interrupts] = []
_watching = threading.Event()
_leaving = threading.Lock()


class Interrupted(KeyboardInterrupt):
    """An interrupt within `Interrupts.stoppable`."""


def watch() -> None:
    """Let SIGINT end this program from now on, with one line and status 130, whatever it is doing.

    For programs, and first of all that they do: it replaces Python's own handler, so that no
    KeyboardInterrupt is raised any more. Does nothing in a thread other than the main one, a second time, and
    where SIGINT is ignored or the caller has a handler of its own.
    """
    if _watching.is_set() or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    reader, writer = os.pipe()
    if os.name != "nt":
        os.set_blocking(writer, False)  # required of a wakeup descriptor
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda number, frame: None)  # without a Python handler no byte is written
    threading.Thread(target=_read, args=(reader,), name="imaml-interrupts", daemon=True).start()
    _watching.set()


def _read(reader: int) -> None:
    """The watching thread: one byte comes for each signal."""
    pressed = -TWICE
    while True:
        for number in os.read(reader, 64):
            now = time.monotonic()
            # The second signal of a press may come when the first has been answered, and the run has ended.
            if number not in SIGNALS or now - pressed < TWICE:
                continue
            pressed = now
            for current in _deferring[-1:]:  # a copy: the main thread may empty the list meanwhile
                current.ask()
                break
            else:
                leave()


def leave(line: bytes = b"imaml: interrupted\n") -> NoReturn:
    """End the process at once, with a line on stderr and status 130.

    Neither `finally` nor `atexit` runs: with XLA compiling in a thread they may wait for long. What imaml
    writes is whole or not there at all at every moment, as for a process that is killed.

    Args:
        line: What is written to stderr.
    """
    if not _leaving.acquire(blocking=False):
        time.sleep(60)  # another thread is ending the process
    with contextlib.suppress(OSError):
        # Written past Python's buffer, whose lock the main thread may hold. Where the process began without
        # stderr, descriptor 2 may be any file.
        if sys.__stderr__ is not None:
            shown = b"\r\033[K\033[?25h" if os.isatty(2) else b""  # a live line hides the cursor
            os.write(2, shown + line)
    os._exit(STATUS)


class Interrupts:
    """Within this context an interrupt is a request, which a loop answers when its state is whole.

    The first Ctrl-C or SIGTERM sets `asked`; a later one ends the program at once (from Python: raises
    KeyboardInterrupt). In a thread other than the main one signals cannot be caught, and nothing is changed.

    Args:
        visible: Whether the first interrupt is acknowledged on stderr.

    Attributes:
        asked: Whether an interrupt came.
        answered: Set by the loop that stopped for it. Otherwise the program ends with the context: the
            interrupt came too late for the loop, but what follows the loop is not wanted either.
    """

    def __init__(self, visible: bool) -> None:
        """See the class."""
        self.visible, self.asked, self.answered = visible, False, False
        self.since = 0.0
        self.free = False  # whether the handler may raise
        self.before: dict[int, object] = {}
        self.lock = threading.RLock()  # a handler may interrupt another one of the same thread

    def __enter__(self) -> Interrupts:
        """Catches the signals."""
        if threading.current_thread() is threading.main_thread():
            if _watching.is_set():
                _deferring.append(self)
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Restores the handlers; ends the program where an interrupt was not answered."""
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self in _deferring:
            _deferring.remove(self)
            if self.asked and not self.answered and kind is None:
                leave()

    def ask(self) -> bool:
        """Take one signal; in a program, a second press ends it.

        Returns:
            Whether it was a second press.
        """
        now = time.monotonic()
        with self.lock:
            first = not self.asked
            if first:
                self.asked, self.since = True, now
        if first:
            if self.visible and sys.__stderr__ is not None:
                with contextlib.suppress(OSError):  # no print: it could be caught in the middle of another
                    os.write(2, b"\nstopping after this step, with a checkpoint; once more stops at once\n")
            return False
        if now - self.since > TWICE and _watching.is_set():
            leave()
        return now - self.since > TWICE

    def _handle(self, number: int, frame: object) -> None:
        """The handler in the main thread.

        In a program the watching thread counts the presses: this one may run long after them, and must not
        take one for a second. It may also run before that thread, and then takes the first.
        """
        if (not _watching.is_set() or not self.asked) and self.ask():
            raise KeyboardInterrupt
        if self.free:
            self.free = False  # the second of two signals must not be raised while the first is dealt with
            raise Interrupted

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Let an interrupt raise `Interrupted` within this context; for what may be given up half done.

        Raises:
            Interrupted: If one comes, or came before.
        """
        previous = sys.unraisablehook

        def tell(lost: sys.UnraisableHookArgs) -> None:
            # Raised within a destructor or a callback of the garbage collector: reported below.
            if not isinstance(lost.exc_value, Interrupted):
                previous(lost)

        try:
            sys.unraisablehook = tell
            self.free = True
            if self.asked:
                raise Interrupted
            yield
        except Exception as error:
            if self.asked:  # an interrupt may come out as another error, of whatever it went through
                raise Interrupted from error
            raise
        finally:
            self.free = False
            sys.unraisablehook = previous
        if self.asked:  # or be lost
            raise Interrupted

    def wait_for(self, *works: Callable[[], object]) -> None:
        """Do each piece of work in a thread of its own; stoppable even within compiled code, then given up.

        In a thread that catches no signals, all work is done there.

        Args:
            *works: What is done at the same time.

        Raises:
            Interrupted: If an interrupt came.
        """
        if not self.before:
            for work in works:
                work()
            return
        # No executor: the interpreter would wait for its threads at exit, also for those given up.
        failed: list[BaseException] = []
        done = [threading.Event() for _ in works]

        def run(work: Callable[[], object], over: threading.Event) -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)
            finally:
                over.set()

        with self.stoppable():
            for each in zip(works, done, strict=True):
                threading.Thread(target=run, args=each, name="imaml-compiling").start()
            while not all(over.wait(0.1) for over in done):
                if self.asked:
                    raise Interrupted
            if failed:
                raise failed[0]
