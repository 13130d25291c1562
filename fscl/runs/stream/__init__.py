"""One run on a stream of tasks: its trainer built from recipes, its tasks, tuning, and what it learned."""
