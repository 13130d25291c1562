"""Finished federations -> tables, figures, and their section of a page."""
