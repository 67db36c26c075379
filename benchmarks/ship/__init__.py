"""What makes everything in models/: train the networks, fit the detectors."""
