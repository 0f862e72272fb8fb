"""Long work that is asked to end, by Ctrl-C or by SIGTERM, keeps what is done and says so."""

import signal
import sys
import threading
import time
from contextlib import contextmanager

TERMINATED = 128 + signal.SIGTERM  # status of a program that was asked to end
GRACE = 10  # seconds in which being asked again changes nothing


@contextmanager
def stopped_politely(kept, say=True):
    """Both signals end the block with an exception, so that what is done is written on the way out.

    Being asked twice, as launchers and impatient people do, must not cut that writing short.

    Args:
        kept: returns what is kept, for the message: "stopped; {kept}: start again to resume".
        say: one of several processes speaks for all.

    Raises:
        KeyboardInterrupt: with the message; the caller, or Python, prints it.
        SystemExit: after SIGTERM, with the usual status; the message was printed.
    """
    asked = []  # (signal, when)

    def stop(signal_number, _):
        if not asked or time.monotonic() - asked[-1][1] > GRACE:
            asked.append((signal_number, time.monotonic()))
            raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():  # only there a signal can be caught
        for one in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(one) is not signal.SIG_IGN:  # whoever started us wants it ignored
                before[one] = signal.signal(one, stop)
    try:
        yield
    except KeyboardInterrupt:
        message = f"stopped; {kept()}: start again to resume"
        if not asked or asked[0][0] != signal.SIGTERM:
            raise KeyboardInterrupt(message if say else "") from None
        if say:
            print(message, file=sys.stderr)
        raise SystemExit(TERMINATED) from None
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
