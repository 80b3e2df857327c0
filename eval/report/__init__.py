"""The report of an evaluation: one HTML page and the tables as Markdown, from results alone."""
