"""Original checkpoints, detectors and label maps into ours."""
