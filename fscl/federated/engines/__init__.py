"""What runs clients: this process and its workers, or Flower's simulation on Ray."""
