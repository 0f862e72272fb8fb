"""What the jobs of `train/` share, and their parts: nothing here is launched."""
