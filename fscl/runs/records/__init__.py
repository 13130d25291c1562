"""The records of runs on streams of tasks and of federations."""
