"""What there is to show: sample photos, and pictures of captions and regions."""
