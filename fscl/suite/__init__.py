"""Running benchmarks and showing what came of them: recipes, run folders, figures, reports, the command line."""
