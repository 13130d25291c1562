"""Learners, one method a file."""
