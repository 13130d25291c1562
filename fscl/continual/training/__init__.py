"""A learner trained on a stream: the trainer, what it measures and saves, and how the network is trained fast."""
