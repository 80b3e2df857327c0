"""What several test files use: makers of files and networks, slow references."""
