"""One federated method, or two that differ in a detail, a file."""
