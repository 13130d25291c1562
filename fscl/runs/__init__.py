"""One learner on one stream, and grids of them: recipes, run folders that resume, records, tuning."""
