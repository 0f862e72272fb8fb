"""What the jobs of `train/` share, and their parts: nothing here is launched."""

from modeling_mengzi_oscar.cli.threads import sleep_soon

sleep_soon()  # the jobs import this package before torch
