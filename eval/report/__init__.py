"""The report of an evaluation: an HTML page and Markdown tables, generated from results only."""
