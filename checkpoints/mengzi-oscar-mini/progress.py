"""How far long work is: a bar on a terminal, from two seconds after its beginning on; elsewhere a line now and then."""

import sys
import time
from threading import Timer

from tqdm import tqdm

SECONDS_WITHOUT_BAR = 2
SECONDS_PER_LINE = 10


class Bar(tqdm):
    """tqdm on a terminal only, and in time: tqdm itself waits for the first step that is done after the delay."""

    timer = None

    def __init__(self, *arguments, disable=None, **options):
        super().__init__(*arguments, disable=disable, delay=SECONDS_WITHOUT_BAR, leave=False, **options)
        if not self.disable:
            self.timer = Timer(self.delay, self.appear)
            self.timer.daemon = True
            self.timer.start()

    def appear(self):
        self.delay = 0  # it is there now: `close` shall wipe it away
        self.refresh()

    def close(self):
        if self.timer is not None:
            self.timer.cancel()
            self.timer.join()
        super().close()


class Progress:
    """What the commands say of their work. `with` ends it.

    Args:
        total: a function to the number of units, as far as it is known by then, or None.
        unit: the word for one. shown: False where another process speaks. options: of the bar.
    """

    def __init__(self, total, unit="photo", shown=True, **options):
        self.total, self.unit, self.shown, self.options = total, unit, shown, options
        self.name = f"{options['desc']}: " if "desc" in options else ""
        self.count, self.bar, self.start = 0, None, time.perf_counter()
        self.said = self.start

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def begin(self):
        """The work begins: what was passed over before is no part of its speed."""
        disable = None if self.shown else True
        options = {"unit": self.unit, "file": sys.stderr, "disable": disable} | self.options
        self.bar = Bar(total=self.total(), initial=self.count, **options)
        return self

    def passed_over(self, count=1):
        """Done before."""
        self.count += count
        if self.bar is not None and not self.bar.disable:
            self.bar.initial += count
            self.bar.n += count

    def update(self, count=1):
        self.count += count
        if self.bar is not None and not self.bar.disable:
            self.bar.total = self.total()  # of tar shards it is an estimate that gets better
            self.bar.update(count)
        elif self.shown and not sys.stderr.isatty() and time.perf_counter() - self.said > SECONDS_PER_LINE:
            self.say()

    def say(self):
        self.said, total = time.perf_counter(), self.total()
        if self.count != total:
            of = f" of {total:,.0f}" if total else ""
            seconds = f"{self.said - self.start:.0f} s"
            print(f"{self.name}{self.count:,}{of} {self.unit}s, {seconds}", file=sys.stderr, flush=True)

    def close(self):
        if self.bar is not None:
            self.bar.close()
