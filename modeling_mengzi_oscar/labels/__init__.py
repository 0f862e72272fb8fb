"""What the classes of detectors and classifiers are called in Chinese."""
