"""Results of a benchmark as tables, plots, a page and a folder of files: nothing is computed here."""
