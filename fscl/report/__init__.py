"""Finished runs -> tables, figures and pages."""
